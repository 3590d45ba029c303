"""Defect masks as arrays and on grids."""

import numpy as np
import pytest
from PIL import Image

from kgl.data.masks import count_masks, drop_masks, mask_to_array, mask_to_grid
from kgl.data.schema import defect_dataset


@pytest.mark.parametrize("kind", ["255", "1", "numbered", "palette", "bits"])
def test_masks_of_every_format(kind):
    truth = np.zeros((8, 8), dtype=bool)
    truth[2:4, 3:7] = True
    mask = {
        "255": Image.fromarray(truth * np.uint8(255)),
        "1": Image.fromarray(truth * np.uint8(1)),
        "numbered": Image.fromarray(truth * np.uint8(5)),
        "palette": Image.fromarray(truth * np.uint8(2), mode="P"),
        "bits": Image.fromarray(truth),
    }[kind]
    if kind == "palette":
        mask.putpalette([0, 0, 0, 9, 9, 9, 60, 0, 0])
    assert np.array_equal(mask_to_array(mask, (8, 8)), truth)
    assert np.array_equal(mask_to_array(mask, (16, 16)), truth.repeat(2, 0).repeat(2, 1))


def test_compression_noise_in_a_mask_is_no_defect():
    pixels = np.random.default_rng(0).integers(0, 255, (24, 20), dtype=np.uint8)
    noisy = np.where(pixels > 128, 200, 40).astype(np.uint8)
    assert np.array_equal(mask_to_array(Image.fromarray(noisy), (24, 20)), pixels > 128)


def test_no_mask_stays_none():
    assert mask_to_array(None, (8, 8)) is None


def test_a_cell_is_defect_where_any_pixel_is():
    masks = np.zeros((2, 8, 8), dtype=bool)
    masks[0, 3, 4] = True
    assert mask_to_grid(masks, (2, 2)).tolist() == [[[False, True], [False, False]], [[False, False], [False, False]]]


def test_dropped_masks_leave_the_column():
    mask = np.full((24, 24), 255, dtype=np.uint8)
    rows = defect_dataset(images=[mask] * 2, labels=["a", "a"], names=["a"], masks=[mask, None], file_names=["x", "y"])
    assert count_masks(rows) == 1
    unmarked = drop_masks(rows)
    assert count_masks(unmarked) == 0 and unmarked.column_names == rows.column_names
