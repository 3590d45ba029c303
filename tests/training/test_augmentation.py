"""Images and priors are transformed alike."""

import pytest
import torch

from kgl.training.augmentation import PairedAugmentation


@pytest.fixture
def geometric(monkeypatch):
    """The augmentation without brightness and contrast."""
    augmentation = PairedAugmentation()
    monkeypatch.setattr(augmentation, "_photometric", lambda images: images)
    return augmentation


@pytest.mark.parametrize("seed", range(5))
def test_prior_that_equals_its_image_stays_equal(geometric, seed):
    torch.manual_seed(seed)
    images = torch.rand(8, 1, 24, 40)
    augmented, priors = geometric(images, images.clone())
    assert not torch.equal(augmented, images)
    torch.testing.assert_close(augmented, priors, rtol=0, atol=1e-6)


def test_coarse_prior_follows_its_image(geometric):
    """A bright quarter of the image and its prior of 2 x 2 cells end up in the same place."""
    torch.manual_seed(0)
    priors = torch.zeros(64, 1, 2, 2)
    priors[:, :, 0, 1] = 1
    images = priors.repeat_interleave(16, dim=2).repeat_interleave(16, dim=3)
    augmented, priors = geometric(images, priors)
    torch.testing.assert_close(torch.nn.functional.adaptive_avg_pool2d(augmented, 2), priors, rtol=0, atol=1e-5)
    assert len({tuple(prior.round().flatten().tolist()) for prior in priors}) == 4  # all four flips occurred


def test_same_seed_same_images_with_and_without_priors():
    augmentation, images, priors = PairedAugmentation(), torch.rand(4, 3, 16, 16), torch.rand(4, 1, 4, 4)
    torch.manual_seed(3)
    with_priors, _ = augmentation(images, priors)
    torch.manual_seed(3)
    without, none = augmentation(images)
    assert torch.equal(with_priors, without) and none is None


def test_ranges_are_kept():
    torch.manual_seed(0)
    images, priors = PairedAugmentation()(torch.rand(16, 3, 16, 16), torch.rand(16, 1, 4, 4))
    assert images.min() >= 0 and images.max() <= 1 and priors.min() >= 0 and priors.max() <= 1
