"""Synthetic surfaces."""

import numpy as np
import pytest
from tiny import count_labels

from kgl.data.arguments import DataArguments
from kgl.data.loading import read_defect_dataset
from kgl.data.masks import mask_to_array
from kgl.data.synthetic import CLASSES, TEXTURES, _texture, generate_surface


@pytest.mark.parametrize("label", CLASSES)
def test_surfaces_are_reproducible_and_masks_exact(label):
    for seed in range(20):
        surface, twin = generate_surface(label, 64, seed), generate_surface(label, 64, seed)
        assert np.array_equal(surface.image, twin.image) and np.array_equal(surface.mask, twin.mask)
        assert surface.image.shape == (64, 64) and surface.image.dtype == np.uint8
        assert surface.mask.any() == (label != "good")
        assert surface.mask.mean() < 0.3
    assert not np.array_equal(generate_surface(label, 64, 0).image, generate_surface(label, 64, 1).image)


@pytest.mark.parametrize("name", TEXTURES)
def test_borders_of_textures_vary_no_more_than_their_middles(name):
    """A border that differs is what a heat map would show on good surfaces."""
    textures = np.stack([_texture(name, 32, np.random.default_rng(seed)) for seed in range(300)])
    spread = textures.std(axis=0)
    assert spread[[0, 0, -1, -1], [0, -1, 0, -1]].mean() < 1.1 * spread[8:-8, 8:-8].mean()


def test_surfaces_as_a_dataset():
    loaded = read_defect_dataset(DataArguments("surfaces", num_surfaces=60, surface_size=32, validation_share=0))
    train, test = loaded.splits["train"], loaded.splits["test"]
    assert count_labels(train, test) == {"good": 30, "scratch": 10, "pit": 10, "stain": 10}
    for mask, label in zip(test["mask"], test["label"], strict=True):
        assert mask_to_array(mask, (32, 32)).any() == (label > 0)
    assert np.array_equal(train[0]["image"], generate_surface("good", 32, int(train[0]["file_name"][8:-4])).image)
    assert (loaded.dataset, loaded.source, loaded.defect_free_label) == ("surfaces", "--dataset surfaces", "good")


def test_unknown_classes_and_small_sizes_are_refused():
    with pytest.raises(ValueError, match="'rust': choose one of"):
        generate_surface("rust", 64, 0)
    with pytest.raises(ValueError, match="at least 32"):
        generate_surface("good", 16, 0)
