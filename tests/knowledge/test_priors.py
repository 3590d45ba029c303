"""The source of the priors, and where two sources agree."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Value, load_from_disk
from good_parts_images import PROCESSOR, fitted_model, rows
from tiny import tiny_model

from kgl.errors import InputError
from kgl.knowledge.arguments import TrainPriorArguments
from kgl.knowledge.good_parts import write_good_parts_priors
from kgl.knowledge.prior_columns import PRIOR_COLUMNS, prior_features
from kgl.knowledge.priors import agreement, resolve_source, write_priors
from kgl.knowledge.saliency_priors import write_saliency_priors
from kgl.knowledge.thresholds import otsu_threshold


def labelled(*groups):
    """Return good images of these groups and one defective image."""
    features = Features(label=ClassLabel(names=["good", "scratch"]), group=Value("string"))
    return Dataset.from_dict({"label": [0] * len(groups) + [1], "group": [*groups, "z"]}, features=features)


@pytest.mark.parametrize(
    ("source", "groups", "good", "pretrained", "resolved"),
    [
        ("auto", "ab", "good", True, "good_parts"),
        ("auto", "ab", "good", False, "saliency"),
        ("auto", "aa", "good", True, "saliency"),
        ("auto", "ab", None, True, "saliency"),
        ("saliency", "ab", "good", True, "saliency"),
        ("saliency", "a", None, False, "saliency"),
        ("good_parts", "ab", "good", True, "good_parts"),
        ("both", "ab", "good", True, "both"),
    ],
)
def test_source(source, groups, good, pretrained, resolved):
    assert resolve_source(source, labelled(*groups), good, pretrained) == resolved


@pytest.mark.parametrize(
    ("source", "groups", "good", "pretrained", "message"),
    [
        ("good_parts", "aa", "good", True, "at least two independent defect-free images, and there are 1"),
        ("both", "ab", None, True, "there are 0.*--defect_free_label"),
        ("good_parts", "ab", "good", False, "--prior_source good_parts goes with --backbone"),
    ],
)
def test_source_that_cannot_be_used_is_refused(source, groups, good, pretrained, message):
    with pytest.raises(InputError, match=message):
        resolve_source(source, labelled(*groups), good, pretrained)


def test_unknown_source_is_refused():
    with pytest.raises(InputError, match="--prior_source magic: choose one of auto, good_parts"):
        TrainPriorArguments(prior_source="magic")


def table(maps, weights):
    features = Features({"digest": Value("string")} | prior_features((1, 2)))
    columns = {"saliency_prior": maps, "prior_threshold": [0] * len(maps), "prior_weight": weights}
    return Dataset.from_dict({"digest": ["a", "b"]} | columns, features=features)


def test_agreement_is_the_geometric_mean():
    both = agreement(table([[[100, 255]], [[0, 9]]], [0.5, 1.0]), table([[[64, 0]], [[7, 4]]], [0.5, 0.25]), (1, 2))
    assert both["saliency_prior"] == [[[80, 0]], [[0, 6]]]
    assert both["prior_weight"] == [0.25, 0.25] and both["digest"] == ["a", "b"]
    thresholds = [otsu_threshold(np.array(one, dtype=np.uint8)) for one in ([[80, 0]], [[0, 6]])]
    assert both["prior_threshold"] == thresholds
    assert both.features == table([[[0, 0]]] * 2, [0, 0]).features


@pytest.mark.parametrize("source", ["saliency", "good_parts", "both"])
def test_priors_are_those_of_the_source(source, tmp_path):
    primary, cell_model, args = tiny_model(), fitted_model(), TrainPriorArguments(prior_source=source)
    priors = write_priors(rows(), primary, cell_model, PROCESSOR, tmp_path / "priors", 4, args, (4, 4))
    saliency = write_saliency_priors(rows(), primary, PROCESSOR, tmp_path / "one", 4, args)
    good_parts = write_good_parts_priors(rows(), cell_model, PROCESSOR, tmp_path / "other", 4, (4, 4))
    expected = {"saliency": saliency, "good_parts": good_parts}.get(source) or agreement(saliency, good_parts, (4, 4))
    assert np.asarray(priors["saliency_prior"]).shape == (7, 4, 4)
    assert priors.select_columns(list(PRIOR_COLUMNS))[:] == expected.select_columns(list(PRIOR_COLUMNS))[:]
    assert load_from_disk(tmp_path / "priors")[:] == priors[:]
    again = write_priors(rows(), primary, cell_model, PROCESSOR, tmp_path / "priors", 4, args, (4, 4))
    assert again[:] == priors[:]
