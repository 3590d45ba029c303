"""Otsu's thresholds of priors."""

import numpy as np
import pytest
from datasets import Array2D, Dataset, Features, Value
from skimage.filters import threshold_otsu

from kgl.knowledge.thresholds import NO_CELL, add_prior_thresholds, otsu_threshold


def test_otsu_separates_two_kinds_of_cells():
    prior = np.array([[0, 10, 20], [15, 200, 255]], dtype=np.uint8)
    assert (prior > otsu_threshold(prior)).tolist() == [[False, False, False], [False, True, True]]


def test_otsu_is_scikit_images():
    generator = np.random.default_rng(0)
    for _ in range(50):
        prior = generator.integers(0, 256, (6, 9), dtype=np.uint8)
        assert otsu_threshold(prior) == threshold_otsu(prior)


@pytest.mark.parametrize("value", [1, 7, 255])
def test_prior_of_one_value_is_all_defect(value):
    prior = np.full((2, 3), value, dtype=np.uint8)
    assert otsu_threshold(prior) == value - 1 and (prior > otsu_threshold(prior)).all()


def test_blank_prior_has_no_cell():
    blank = np.zeros((2, 3), dtype=np.uint8)
    assert otsu_threshold(blank) == NO_CELL and not (blank > otsu_threshold(blank)).any()


@pytest.mark.parametrize("count", [1, 3, 5])
def test_mask_is_its_own_pseudo_mask(count):
    mask = np.zeros(6, dtype=np.uint8)
    mask[:count] = 255
    mask = mask.reshape(2, 3)
    assert ((mask > otsu_threshold(mask)) == (mask == 255)).all()


def test_add_prior_thresholds():
    priors = np.array([[[0, 9], [200, 255]], [[0, 0], [0, 0]], [[0, 255], [0, 0]]], dtype=np.uint8)
    rows = Dataset.from_dict(
        {"saliency_prior": list(priors), "prior_weight": [1.0, 1.0, 0.5]},
        features=Features(saliency_prior=Array2D((2, 2), "uint8"), prior_weight=Value("float32")),
    )
    extended = add_prior_thresholds(rows)
    assert extended.column_names == ["saliency_prior", "prior_weight", "prior_threshold"]
    assert extended.features["prior_threshold"] == Value("uint8")
    assert extended["prior_threshold"] == [otsu_threshold(prior) for prior in priors]
    assert extended["prior_threshold"][1:] == [NO_CELL, 0]
    assert add_prior_thresholds(extended.select([2, 1]))["prior_threshold"] == [0, NO_CELL]  # computed anew
