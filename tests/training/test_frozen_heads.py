"""The parts of the heads on frozen features: regression, folds, fusion, heat scale."""

import warnings

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from kgl.training.frozen_heads import (
    REGULARIZATION,
    HeatScale,
    cross_fitting_folds,
    defect_margin,
    fit_classifier,
    fit_fusion,
    within_class_deviation,
)


def features(count=60, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(count, 5)) * [1, 10, 0.1, 3, 1] + [0, 50, -1, 2, 0]


@pytest.mark.parametrize("num_labels", [2, 3])
def test_classifier_decides_as_scikit_learn(num_labels):
    pooled = features()
    labels = (pooled[:, 1] + 3 * pooled[:, 3] > 55).astype(int) + (num_labels > 2) * (pooled[:, 0] > 0.5)
    assert set(labels) == set(range(num_labels))
    linear = fit_classifier(pooled, labels, num_labels)
    scaler = StandardScaler().fit(pooled)
    expected = LogisticRegression(C=REGULARIZATION, max_iter=1000).fit(scaler.transform(pooled), labels)
    others = features(40, seed=1)
    logits = linear(others)
    assert logits.shape == (40, num_labels)
    probabilities = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    np.testing.assert_allclose(probabilities, expected.predict_proba(scaler.transform(others)), atol=1e-9)


def test_class_without_images_is_the_least_likely_at_the_average():
    pooled, labels = features(), np.repeat([0, 2, 3], 20)
    linear = fit_classifier(pooled, labels, 4)
    assert (linear.weight[1] == 0).all()
    at_average = linear(pooled.mean(axis=0, keepdims=True))[0]
    assert at_average[1] == pytest.approx(at_average[[0, 2, 3]].min())
    known = fit_classifier(pooled, np.repeat([0, 1, 2], 20), 3)
    np.testing.assert_allclose(linear(pooled)[:, [0, 2, 3]], known(pooled))


def test_folds_keep_groups_whole_and_classes_apart():
    labels = np.array([0] * 12 + [1] * 6 + [2] * 2)
    groups = [f"g{index // 2}" for index in range(12)] + [f"d{index}" for index in range(6)] + ["one", "one"]
    folds = cross_fitting_folds(labels, groups, seed=0)
    assert len(folds) == 4
    held_out = np.sort(np.concatenate(folds))
    assert held_out.tolist() == list(range(18))  # the class of one group is in no fold
    for fold in folds:
        inside = {groups[index] for index in fold}
        assert all(index in fold for index in range(18) if groups[index] in inside)
        assert {0, 1} == set(labels[fold])
    assert all(
        np.array_equal(one, other) for one, other in zip(folds, cross_fitting_folds(labels, groups, 0), strict=True)
    )


@pytest.mark.parametrize(
    ("groups", "count"),
    [(["a", "b", "c", "d", "e"], 2), (["a", "a", "a", "d", "d"], 0), (["a", "b", "c", "d", "d"], 3)],
)
def test_number_of_folds_is_that_of_the_scarcest_class(groups, count):
    """Three good and two defective images; a class of one group does not count."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        folds = cross_fitting_folds(np.array([0, 0, 0, 1, 1]), list(groups), seed=0)
    assert len(folds) == count


def two_classes(margins):
    """Return logits `(N, 2)` with these log-odds of the second class."""
    return np.stack([-margins / 2, margins / 2], axis=1)


def test_fusion_gives_both_scores_equal_spreads():
    generator = np.random.default_rng(0)
    defective = np.arange(40) % 4 == 0
    margins, scores = generator.normal(size=40) * 5 + defective * 4, generator.normal(size=40) * 0.1 + defective * 0.2
    fusion = fit_fusion(two_classes(margins), scores, defective.astype(int), 0)
    spreads = [within_class_deviation(one, defective) for one in (margins, scores)]
    assert spreads[0] == pytest.approx(
        np.sqrt((defective.sum() * margins[defective].var() + (~defective).sum() * margins[~defective].var()) / 40),
        rel=1e-5,
    )
    assert fusion.saliency_weight / fusion.scale == pytest.approx(spreads[0] / spreads[1])
    rescaled = fit_fusion(two_classes(margins), scores * 100, defective.astype(int), 0)
    assert rescaled.saliency_weight * 100 == pytest.approx(fusion.saliency_weight, rel=1e-3)
    fused = fusion.scale * margins + fusion.saliency_weight * scores + fusion.bias
    assert (1 / (1 + np.exp(-fused))).mean() == pytest.approx(defective.mean(), abs=0.02)  # calibrated in sum


def test_fusion_never_turns_the_ranking_round():
    defective = np.arange(20) % 2 == 0
    logits = two_classes(np.where(defective, -3.0, 3.0) + np.arange(20) / 10)
    fusion = fit_fusion(logits, None, defective.astype(int), 0)
    assert fusion.scale > 0 and fusion.saliency_weight == 0


def test_scale_of_many_images_is_that_of_the_least_cross_entropy():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(4000, 3))
    drawn = np.array([generator.choice(3, p=np.exp(row) / np.exp(row).sum()) for row in logits])
    for defect_free_id in (None, 0):
        fusion = fit_fusion(logits * 4, None, drawn, defect_free_id)
        assert fusion.scale == pytest.approx(0.25, rel=0.1) and fusion.bias == pytest.approx(0, abs=0.1)


def test_few_images_do_not_ask_for_certainty():
    defective = np.array([0, 0, 1, 1])
    fusion = fit_fusion(two_classes(np.array([-9.0, -8.0, 8.0, 9.0])), None, defective, 0)
    assert 0.2 < fusion.scale < 0.6


def test_margin_is_the_log_odds_of_a_defect():
    logits = np.array([[1.0, 2.0, 0.5], [900.0, 0.0, 0.0]])
    probability = np.exp(logits[0]) / np.exp(logits[0]).sum()
    margin = defect_margin(logits, 1)
    assert margin[0] == pytest.approx(np.log((1 - probability[1]) / probability[1])) and margin[1] == 900


def test_heat_scale_is_that_of_good_images():
    maps = torch.randn(200, 6, 7, generator=torch.Generator().manual_seed(0)) * 3 + 5
    heat = HeatScale.of(maps)
    scaled = ((maps - heat.offset) / heat.spread).sigmoid()
    assert (scaled.flatten(1).amax(dim=1) > 0.5).sum() == 20  # one in ten of the images
    assert scaled.median().item() == pytest.approx(1 / (1 + np.exp(4)), rel=1e-3)
    assert HeatScale.of(torch.ones(3, 2, 2)).spread > 0
