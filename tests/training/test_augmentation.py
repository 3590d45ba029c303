"""Images and priors go the same way."""

import pytest
import torch

from kgl.training.augmentation import PairedAugmentation


@pytest.fixture
def moves_only(monkeypatch):
    augmentation = PairedAugmentation()
    monkeypatch.setattr(augmentation, "_light", lambda images: images)
    return augmentation


@pytest.mark.parametrize("seed", range(5))
def test_a_prior_that_equals_the_image_stays_equal_to_it(moves_only, seed):
    torch.manual_seed(seed)
    images = torch.rand(8, 1, 24, 40)
    moved, priors = moves_only(images, images.clone())
    assert not torch.equal(moved, images)
    torch.testing.assert_close(moved, priors, rtol=0, atol=1e-6)


def test_a_coarse_prior_follows_its_image(moves_only):
    """A bright quarter of the image and its prior of 2 x 2 cells end up in the same place."""
    torch.manual_seed(0)
    priors = torch.zeros(64, 1, 2, 2)
    priors[:, :, 0, 1] = 1
    images = priors.repeat_interleave(16, dim=2).repeat_interleave(16, dim=3)
    moved, priors = moves_only(images, priors)
    torch.testing.assert_close(torch.nn.functional.adaptive_avg_pool2d(moved, 2), priors, rtol=0, atol=1e-5)
    assert len({tuple(prior.round().flatten().tolist()) for prior in priors}) == 4  # all four flips came up


def test_the_same_seed_shows_the_same_images_with_and_without_priors():
    augmentation, images, priors = PairedAugmentation(), torch.rand(4, 3, 16, 16), torch.rand(4, 1, 4, 4)
    torch.manual_seed(3)
    with_priors, _ = augmentation(images, priors)
    torch.manual_seed(3)
    without, none = augmentation(images)
    assert torch.equal(with_priors, without) and none is None


def test_ranges_stay():
    torch.manual_seed(0)
    images, priors = PairedAugmentation()(torch.rand(16, 3, 16, 16), torch.rand(16, 1, 4, 4))
    assert images.min() >= 0 and images.max() <= 1 and priors.min() >= 0 and priors.max() <= 1
