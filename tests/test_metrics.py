"""Metrics against scikit-learn and by hand."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_auc_score

from kgl.metrics import (
    DefectClassification,
    concentration,
    pixel_average_precision,
    pointing_game,
    precision_and_recall,
)


def compute(scores, labels, **options):
    return DefectClassification(keep_in_memory=True).compute(predictions=scores, references=labels, **options)


@pytest.mark.parametrize("seed", range(5))
def test_two_classes_rank_by_the_defect(seed):
    generator = np.random.default_rng(seed)
    defect = generator.integers(0, 20, 60) / 20 + 0.01  # ties included
    labels = np.r_[0, 1, generator.integers(0, 2, 58)]
    scores = np.stack([1 - defect, defect], axis=1).astype(np.float32)
    results = compute(scores, labels, defect_free_id=0)
    assert results["ap"] == pytest.approx(average_precision_score(labels, scores[:, 1]))
    assert results["auroc"] == pytest.approx(roc_auc_score(labels, scores[:, 1]))
    assert results["accuracy"] == pytest.approx(np.mean((defect > 0.5) == labels))
    swapped = compute(scores[:, ::-1], 1 - labels, defect_free_id=1)
    assert swapped == pytest.approx(results)


def test_more_classes_are_macro_averaged():
    generator = np.random.default_rng(0)
    labels = np.r_[0, 1, 2, generator.integers(0, 3, 50)]
    scores = generator.dirichlet([1, 1, 1], 53).astype(np.float32)
    results = compute(scores, labels, defect_free_id=2)
    onehot = np.eye(3)[labels]
    assert results["ap"] == pytest.approx(average_precision_score(onehot, scores, average="macro"))
    assert results["auroc"] == pytest.approx(roc_auc_score(onehot, scores, average="macro"))
    assert results["defect_ap"] == pytest.approx(average_precision_score(labels != 2, 1 - scores[:, 2]))
    assert "defect_ap" not in compute(scores, labels)


def test_hard_labels_and_missing_classes_are_refused():
    with pytest.raises(ValueError, match="hard labels"):
        compute([[1.0, 0.0], [0.0, 1.0]], [0, 1])
    with pytest.raises(ValueError, match=r"No reference has class \[1\]"):
        compute([[0.7, 0.3], [0.4, 0.6]], [0, 0])


def test_pixel_average_precision_by_hand():
    maps = [np.array([[0.9, 0.1]]), np.array([[0.8], [0.7]])]
    masks = [np.array([[True, False]]), np.array([[False], [True]])]
    assert pixel_average_precision(maps, masks) == pytest.approx((1 + 2 / 3) / 2)


def test_pointing_game_by_hand():
    maps = [np.array([[0.9, 0.1]]), np.array([[0.8], [0.7]]), np.array([[0.0, 0.2]])]
    masks = [np.array([[True, False]]), np.array([[False], [True]]), np.array([[False, True]])]
    assert pointing_game(maps, masks) == pytest.approx(2 / 3)


def test_precision_and_recall_by_hand():
    found = [np.array([[True, True, False]]), np.array([[False], [True]])]
    masks = [np.array([[True, False, False]]), np.array([[True], [True]])]
    assert precision_and_recall(found, masks) == (pytest.approx(2 / 3), pytest.approx(2 / 3))
    assert precision_and_recall([np.zeros((2, 2), bool)], [np.ones((2, 2), bool)]) == (0, 0)


def test_concentration_by_hand():
    one_cell, flat = np.zeros((1, 5, 4)), np.ones((1, 5, 4))
    one_cell[0, 2, 1] = 7
    assert concentration(one_cell) == {"entropy": 0, "area90": 1 / 20}
    assert concentration(flat) == pytest.approx({"entropy": 1, "area90": 18 / 20})
    both = np.concatenate([one_cell, flat, np.zeros((1, 5, 4))])  # the empty map is left out
    assert concentration(both) == pytest.approx({"entropy": 0.5, "area90": 9.5 / 20})
    assert np.isnan(concentration(np.zeros((2, 3, 3)))["entropy"])
