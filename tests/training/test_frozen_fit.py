"""Both classifiers' heads fitted to frozen features: out of sample, with masks, and where images are scarce."""

import numpy as np
import pytest
import torch
from tiny import stages_model

from kgl.heads_kgl import top_cells
from kgl.training.frozen_features import FrozenFeatures
from kgl.training.frozen_heads import FrozenHeads, defect_margin


def features_of(labels, cell_rows=None, seed=0):
    """Return features in which defects shift the pooled channels, and one cell of each defective image."""
    generator = np.random.default_rng(seed)
    labels = np.asarray(labels)
    pooled = generator.normal(size=(len(labels), 96)) + 0.5 * np.eye(96)[labels * 7]
    cells = generator.normal(size=(len(labels), 6, 4, 5))
    cells[labels > 0, :, 1, 2] = [4, -4, 4, 0, 0, 0]
    kept = np.arange(len(labels)) if cell_rows is None else np.asarray(cell_rows)
    pooled = pooled.astype(np.float32)
    flipped = pooled + generator.normal(size=pooled.shape).astype(np.float32) / 10
    return FrozenFeatures(pooled, flipped, cells[kept].astype(np.float16), kept)


def heads_of(labels, groups=None, model=None, defect_cells=None, cell_rows=None):
    labels = np.asarray(labels)
    groups = [str(index) for index in range(len(labels))] if groups is None else groups
    return FrozenHeads(
        model or stages_model(), features_of(labels, cell_rows), labels, groups, seed=0, defect_cells=defect_cells
    )


def saliency(model, cells):
    """Return the saliency logits `(N, h, w)` that the model's head makes of projected cells."""
    head, cells = model.saliency_head, torch.from_numpy(cells).float()
    return head.output(torch.cat([cells, head.distances(cells)], dim=1))[:, 0].detach()


LABELS = [0] * 16 + [1] * 6 + [2] * 5


def test_logits_are_the_fused_scores():
    heads = heads_of(LABELS)
    fit = heads.fit_final()
    features, model = heads.features, heads.model
    linear = heads._regression(np.arange(len(LABELS)))
    score = heads._fit_saliency(features.cell_rows)
    maps = (score(torch.from_numpy(features.cells).float()) - fit["offset"]) / fit["spread"]
    torch.testing.assert_close(saliency(model, features.cells), maps, rtol=1e-3, atol=1e-3)
    top = top_cells(maps[:, None], model.config.top_cells)
    logits = model.classifier(torch.cat([torch.from_numpy(features.pooled), top], dim=1)).detach().numpy()
    by_regression = fit["scale"] * linear(features.pooled)
    extra = fit["saliency_weight"] * top.numpy() + fit["bias"]
    np.testing.assert_allclose(logits[:, :1], by_regression[:, :1], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(logits[:, 1:], by_regression[:, 1:] + extra, rtol=1e-3, atol=1e-3)
    assert fit["saliency_weight"] > 0


def test_probability_of_a_defect_is_calibrated_with_several_defect_classes():
    """A small scale alone would give each of them the probability of the good class."""
    generator = np.random.default_rng(0)
    labels = np.array([0] * 40 + [1] * 7 + [2] * 7)
    logits = generator.normal(size=(54, 3)) * 8  # knows little, and is certain
    heads = heads_of(labels)
    fusion = heads._fusion(np.arange(54), logits, None)
    assert fusion.scale < 0.1
    margins = defect_margin(fusion.scale * logits, 0) + fusion.bias
    assert (1 / (1 + np.exp(-margins))).mean() == pytest.approx(14 / 54, abs=0.02)


def test_primary_has_no_saliency_in_its_logits():
    heads = heads_of(LABELS)
    before = heads.model.saliency_head.output.weight.clone()
    fit = heads.fit_primary()
    assert fit["saliency_weight"] == 0 and (heads.model.classifier.weight[:, -1] == 0).all()
    assert torch.equal(heads.model.saliency_head.output.weight, before)


def test_fusion_is_fitted_to_images_that_the_heads_have_not_seen(monkeypatch):
    heads, learned = heads_of(LABELS), []
    regression, fit_saliency = FrozenHeads._regression, FrozenHeads._fit_saliency
    monkeypatch.setattr(FrozenHeads, "_regression", lambda self, rows: learned.append(rows) or regression(self, rows))
    rows, logits = heads._out_of_sample_logits()
    assert rows.tolist() == list(range(27)) and len(learned) == len(heads.folds) == 4
    for held_out, seen in zip(heads.folds, learned, strict=True):
        assert not set(held_out) & set(seen) and len(held_out) + len(seen) == 27
        np.testing.assert_allclose(logits[held_out], regression(heads, seen)(heads.features.pooled[held_out]))
    learned.clear()
    monkeypatch.setattr(
        FrozenHeads, "_fit_saliency", lambda self, rows: learned.append(rows) or fit_saliency(self, rows)
    )
    maps = heads._out_of_sample_maps(np.arange(27))
    for held_out, seen in zip(heads.folds, learned, strict=True):
        assert not set(held_out) & set(seen) and len(held_out) + len(seen) == 27
        own = fit_saliency(heads, seen)(torch.from_numpy(heads.features.cells[held_out]).float())
        torch.testing.assert_close(maps[held_out], own)


def test_cells_under_masks_are_defective():
    """On cells of defective images that lie among the good ones, where the distance says nothing."""
    marked = np.zeros((27, 4, 5), dtype=bool)
    marked[16:, 3, 4] = True
    maps = {}
    for name, masks in (("without", None), ("with", marked)):
        heads = heads_of(LABELS, defect_cells=masks)
        heads.features.cells[16:, :, 3, 4] = [0.3, 0.3, 0.3, 0.3, 0.3, 0.3]
        heads = FrozenHeads(heads.model, heads.features, heads.labels, [str(one) for one in range(27)], 0, masks)
        heads.fit_final()
        maps[name] = saliency(heads.model, heads.features.cells)[16:, 3, 4].mean()
    assert maps["with"] > maps["without"] + 1


def test_masks_of_held_out_images_are_not_learned(monkeypatch):
    marked, seen = np.zeros((27, 4, 5), dtype=bool), []
    marked[16:, 3, 4] = True
    heads = heads_of(LABELS, defect_cells=marked)
    fit_score = FrozenHeads._fit_score
    monkeypatch.setattr(
        FrozenHeads, "_fit_score",
        lambda self, good, defective: seen.append((good, defective)) or fit_score(self, good, defective),
    )  # fmt: skip
    heads._fit_saliency(np.arange(20))
    ((good, defective),) = seen
    assert good[:16].all() and not good[16:].any()
    assert defective[16:20, 3, 4].all() and defective.sum() == 4


def test_without_a_good_class_priors_are_learned():
    model = stages_model(defect_free_label=None)
    heads = heads_of([0] * 8 + [1] * 8 + [2] * 8, model=model)
    fit = heads.fit_primary()
    assert (fit["saliency_weight"], fit["bias"]) == (0, 0) and 0.05 <= fit["scale"] <= 2
    priors = np.zeros((24, 4, 5), dtype=np.uint8)
    heads.features.cells[:, :, 0, 0] = [5, 5, 0, 0, 0, 0]
    priors[:, 0, 0], priors[:, 0, 1] = 200, 90
    heads.fit_saliency_to_priors(priors, np.full(24, 128))
    maps = saliency(model, heads.features.cells)
    assert (maps[:, 0, 0] > 0).double().mean() > 0.95
    assert (maps[:, 1:] > 0).double().mean() < 0.05
    before = model.saliency_head.output.weight.clone()
    heads.fit_saliency_to_priors(np.zeros_like(priors), np.full(24, 128))  # nothing to learn from
    assert torch.equal(model.saliency_head.output.weight, before)


@pytest.mark.parametrize(
    ("labels", "groups"),
    [
        ([0] * 6 + [1, 1], None),
        ([0] * 6 + [1], None),
        ([0] * 6 + [1, 1], ["a"] * 6 + ["d", "e"]),
        ([0] * 6 + [1, 1], ["a", "a", "b", "b", "b", "a", "d", "d"]),
        ([0, 1], None),
    ],
    ids=["two defects", "one defect", "one good group", "one defective group", "one of each"],
)
def test_scarce_images(labels, groups):
    heads = heads_of(labels, groups)
    primary, fit = heads.fit_primary(), heads.fit_final()
    assert all(np.isfinite(value) for value in (*primary.values(), *fit.values()))
    assert fit["spread"] > 0 and fit["scale"] > 0 and fit["saliency_weight"] >= 0
    model = heads.model
    assert all(parameter.isfinite().all() for parameter in model.parameters())
    top = top_cells(saliency(model, heads.features.cells)[:, None], 0.05)
    logits = model.classifier(torch.cat([torch.from_numpy(heads.features.pooled), top], dim=1)).detach().numpy()
    margins = defect_margin(logits, 0)
    assert margins[np.array(labels) > 0].min() > margins[np.array(labels) == 0].max()


def test_images_without_cells_count_in_the_regression_alone(monkeypatch):
    rows = []
    regression = FrozenHeads._regression
    monkeypatch.setattr(FrozenHeads, "_regression", lambda self, one: rows.append(one) or regression(self, one))
    heads = heads_of(LABELS, cell_rows=[*range(0, 16, 2), *range(16, 27)])
    fit = heads.fit_final()
    assert max(len(one) for one in rows) == 27 and np.isfinite(list(fit.values())).all()
    maps = heads._out_of_sample_maps(np.array([0, 2, 16]))
    assert maps.shape == (3, 4, 5) and maps.isfinite().all()
