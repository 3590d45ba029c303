"""The prior columns of a batch: good images, masks, thresholds and weights."""

import numpy as np
from PIL import Image

from kgl.knowledge.prior_columns import load_mask, prior_columns
from kgl.knowledge.thresholds import NO_CELL, otsu_threshold


MAPS = np.array([[[9, 200]], [[90, 10]], [[0, 0]], [[70, 60]], [[5, 6]]], dtype=np.uint8)
GOOD = np.array([True, False, False, False, False])


def mask(*marked):
    pixels = np.zeros((2, 4), dtype=np.uint8)
    for column in marked:
        pixels[0, column] = 255
    return load_mask({"mask": Image.fromarray(pixels)}, (1, 2))


def test_columns_of_each_kind_of_image():
    """Good; a map; an empty map; a mask; an empty mask."""
    weights = np.full(5, 0.25, dtype=np.float32)
    masks = [None, None, None, mask(3), mask()]
    columns = prior_columns(MAPS, weights, GOOD, masks, threshold=64)
    assert [one.tolist() for one in columns["saliency_prior"]] == [
        [[0, 0]],
        [[90, 10]],
        [[0, 0]],
        [[0, 255]],
        [[0, 0]],
    ]
    assert columns["prior_weight"] == [1, 0.25, 0, 1, 0]
    assert columns["prior_threshold"] == [NO_CELL, 64, 64, 0, NO_CELL]
    assert MAPS[0].tolist() == [[9, 200]] and weights[0] == 0.25  # the arguments stay


def test_without_a_threshold_each_map_has_its_own():
    columns = prior_columns(MAPS, np.ones(5, dtype=np.float32), GOOD, [None] * 5)
    own = [otsu_threshold(one) for one in (np.zeros((1, 2), dtype=np.uint8), *MAPS[1:])]
    assert columns["prior_threshold"] == own
    assert columns["prior_weight"] == [1, 1, 0, 1, 1]


def test_mask_of_a_good_image_wins():
    columns = prior_columns(MAPS[:1], np.ones(1, dtype=np.float32), GOOD[:1], [mask(0)], threshold=64)
    assert columns["saliency_prior"][0].tolist() == [[255, 0]] and columns["prior_threshold"] == [0]
