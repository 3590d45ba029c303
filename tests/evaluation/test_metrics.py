"""Metrics against scikit-learn and by hand."""

import time

import datasets
import numpy as np
import pytest
from datasets import Dataset
from PIL import Image
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    balanced_accuracy_score,
    f1_score,
    roc_auc_score,
)

from kgl.evaluation.maps import (
    concentration,
    evaluate_maps,
    pixel_average_precision,
    pointing_game,
    precision_and_recall,
)
from kgl.evaluation.metrics import (
    METRIC_TITLES,
    DefectClassification,
    _binary_metrics,
    paired_bootstrap,
    wilson_interval,
)
from kgl.evaluation.predictions import Predictions
from kgl.evaluation.results import evaluate_predictions


def compute(scores, labels, **options):
    return DefectClassification(keep_in_memory=True).compute(predictions=scores, references=labels, **options)


@pytest.mark.parametrize("seed", range(5))
def test_two_classes_rank_by_the_defect_class(seed):
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


@pytest.mark.parametrize("seed", range(20))
def test_threshold_metrics_against_every_threshold(seed):
    generator = np.random.default_rng(seed)
    count = int(generator.integers(2, 40))
    defect = generator.integers(1, 10, count) / 10  # ties
    labels = np.r_[0, 1, generator.integers(0, 2, count - 2)]
    scores = np.stack([1 - defect, defect], axis=1)
    results = compute(scores, labels, false_alarm_rate=0.2)
    called = [(1 - scores[:, 0]) >= threshold for threshold in [*(1 - scores[:, 0]), 2.0]]
    recall = np.array([(answer & (labels == 1)).sum() / (labels == 1).sum() for answer in called])
    alarms = np.array([(answer & (labels == 0)).sum() / (labels == 0).sum() for answer in called])
    assert results["f1_max"] == pytest.approx(max(f1_score(labels, answer, zero_division=0) for answer in called))
    assert results["recall_at_false_alarm_rate"] == pytest.approx(recall[alarms <= 0.2].max())
    assert results["false_alarm_rate_at_zero_missed"] == pytest.approx(alarms[recall == 1].min())
    answers = scores.argmax(axis=1)
    assert results["accuracy"] == pytest.approx(accuracy_score(labels, answers))
    assert results["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, answers))


def test_threshold_metrics_of_more_classes_are_good_against_all_defects():
    scores = np.array([[0.8, 0.1, 0.1], [0.4, 0.1, 0.5], [0.3, 0.6, 0.1], [0.1, 0.2, 0.7]])
    results = compute(scores, [0, 0, 1, 2], defect_free_id=0)
    assert results["defect_ap"] == results["f1_max"] == results["recall_at_false_alarm_rate"] == 1
    assert results["false_alarm_rate_at_zero_missed"] == 0
    assert results["ap_per_class"] == pytest.approx([1, 1, 1])
    assert "f1_max" not in compute(scores, [0, 0, 1, 2])


@pytest.mark.parametrize("seed", range(20))
def test_ranking_metrics_equal_those_of_scikit_learn(seed):
    generator = np.random.default_rng(seed)
    positive = np.r_[True, False, generator.random(int(generator.integers(0, 80))) < generator.random()]
    scores = generator.random(len(positive)).astype((np.float32, np.float64)[seed % 2])
    scores = scores.round(1) if seed % 3 == 0 else scores  # ties
    results = _binary_metrics(positive, scores, 0.05)
    assert abs(results["ap"] - average_precision_score(positive, scores)) < 1e-12
    assert abs(results["auroc"] - roc_auc_score(positive, scores)) < 1e-12


def test_bootstrap_takes_little_time():
    scores, labels = np.random.default_rng(0).dirichlet([1, 1, 1, 1], 100), np.arange(100) % 4
    started = time.process_time()
    paired_bootstrap(scores, scores, labels, 0, 300)
    assert time.process_time() - started < 4  # 0.3 s, and 12 s with a call of scikit-learn per metric


def test_undefined_metrics_are_nan():
    one = compute([[0.7, 0.3], [0.4, 0.6]], [0, 0])
    assert one["accuracy"] == one["balanced_accuracy"] == 0.5
    for name in ("ap", "auroc", "f1_max", "recall_at_false_alarm_rate", "false_alarm_rate_at_zero_missed"):
        assert np.isnan(one[name])
    scores = [[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.5, 0.4, 0.1]]
    two_of_three = compute(scores, [0, 1, 0])
    assert two_of_three["ap"] == 1 and np.isnan(two_of_three["ap_per_class"][2])


def test_bootstrap_intervals_are_stratified_and_reproducible():
    generator = np.random.default_rng(0)
    labels = np.array([0] * 60 + [1] * 3)
    defect = np.clip(generator.normal(0.3 + 0.3 * labels, 0.15), 0.01, 0.99)
    scores = np.stack([1 - defect, defect], axis=1)
    results = compute(scores, labels, bootstrap=50)
    for name in ("ap", "auroc", "accuracy", "f1_max", "false_alarm_rate_at_zero_missed"):
        low, high = results[f"{name}_interval"]
        assert 0 <= low <= results[name] <= high <= 1  # never without a defect, so never NaN
    assert results["ap_interval"][0] < results["ap_interval"][1]
    assert compute(scores, labels, bootstrap=50) == results
    assert compute(scores, labels, bootstrap=50, seed=1) != results


def test_hard_labels_are_refused():
    with pytest.raises(ValueError, match="hard labels"):
        compute([[1.0, 0.0], [0.0, 1.0]], [0, 1])


def test_pixel_average_precision_by_hand():
    maps = [np.array([[0.9, 0.1]]), np.array([[0.8], [0.7]])]
    masks = [np.array([[True, False]]), np.array([[False], [True]])]
    assert pixel_average_precision(maps, masks) == pytest.approx((1 + 2 / 3) / 2)


def test_maps_are_evaluated_pooled_and_per_image():
    """The first defect covers half of its image and is found, the second one pixel, ranked last of four."""
    masks = [[[1, 0], [1, 0]], [[0, 0], [0, 1]], [[0, 0], [0, 0]]]
    maps = np.array([[[0.9, 0.1], [0.8, 0.2]], [[0.7, 0.6], [0.5, 0.3]], [[1.0, 1.0], [1.0, 1.0]]])
    masks = [Image.fromarray(np.array(mask, dtype=np.uint8) * 255) for mask in masks]
    dataset = Dataset.from_dict({"mask": [*masks, None]}, features=datasets.Features(mask=datasets.Image()))
    results = evaluate_maps({"map": np.concatenate([maps, maps[:1]])}, dataset, (2, 2))
    assert results["map_image_ap"] == pytest.approx((1 + 1 / 4) / 2)
    assert results["map_ap"] == results["map_cell_ap"] == pytest.approx((1 + 1 + 3 / 6) / 3)
    assert results["map_pointing"] == 0.5
    assert evaluate_maps({"map": maps[:1]}, Dataset.from_dict({"mask": [None]}), (2, 2)) == {}


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


def test_paired_intervals_equal_those_of_the_metric():
    generator = np.random.default_rng(0)
    labels = np.r_[0, 1, 2, generator.integers(0, 3, 57)]
    before, after = (generator.dirichlet([1, 1, 1], 60) + weight * np.eye(3)[labels] for weight in (0.2, 1.0))
    before, after = (one / one.sum(axis=1, keepdims=True) for one in (before, after))
    of_before, of_after, differences = paired_bootstrap(before, after, labels, 0, 40, seed=3)
    for scores, intervals in ((before, of_before), (after, of_after)):
        alone = compute(scores, labels, defect_free_id=0, bootstrap=40, seed=3)
        assert {name: value for name, value in alone.items() if name.endswith("_interval")} == intervals
    assert differences["ap"]["interval"][0] > 0
    _, _, none = paired_bootstrap(before, before, labels, 0, 10)
    assert all(one == {"difference": 0, "interval": [0, 0]} for one in none.values())


def test_metrics_per_class_and_their_macro_average():
    generator = np.random.default_rng(1)
    labels = np.r_[0, 1, 2, generator.integers(0, 3, 40)]
    scores = generator.dirichlet([1, 1, 1], 43)
    results = compute(scores, labels)
    assert "f1_max" not in results
    for name in ("f1_max", "recall_at_false_alarm_rate", "false_alarm_rate_at_zero_missed"):
        pairs = [np.stack([1 - scores[:, index], scores[:, index]], axis=1) for index in range(3)]
        alone = [compute(pair, labels == index)[name] for index, pair in enumerate(pairs)]
        assert results[f"{name}_per_class"] == pytest.approx(alone)
        assert results[f"macro_{name}"] == pytest.approx(np.mean(alone))


def test_wilson_interval_has_width():
    assert wilson_interval(np.array([], dtype=bool)) == [0, 1]
    low, high = wilson_interval(np.ones(7, dtype=bool))
    assert high == 1 and low == pytest.approx(7 / (7 + 1.959964**2), abs=1e-6)


@pytest.mark.parametrize("scores", [[[1.0, 0.0]], np.zeros((0, 2))])
def test_one_hard_label_and_no_predictions_are_refused(scores):
    with pytest.raises(ValueError, match=r"hard labels|no predictions"):
        compute(scores, [0] * len(scores))


def test_every_metric_has_a_title():
    generator = np.random.default_rng(0)
    masks = [Image.fromarray(np.eye(4, dtype=np.uint8) * 255)] * 6
    dataset = Dataset.from_dict(
        {"mask": masks, "label": [0, 0, 1, 1, 2, 2]},
        features=datasets.Features(mask=datasets.Image(), label=datasets.Value("int64")),
    )
    predictions = Predictions(generator.dirichlet([1, 1, 1], 6), *generator.random((2, 6, 4, 4)))
    metrics = evaluate_predictions(predictions, dataset, 0, (4, 4))
    per_class = {name for name in metrics if name.endswith("_per_class") or name.startswith("macro_")}
    assert metrics.keys() - per_class <= METRIC_TITLES.keys()


def test_metric_needs_no_home_directory(monkeypatch, tmp_path):
    """A cache folder below a file cannot be made, as below a home on a read-only file system."""
    (tmp_path / "home").touch()
    monkeypatch.setattr("evaluate.config.HF_METRICS_CACHE", tmp_path / "home" / "metrics")
    metric = DefectClassification(keep_in_memory=True)
    results = metric.compute(predictions=[[0.9, 0.1], [0.2, 0.8]], references=[0, 1])
    assert results["accuracy"] == 1.0
