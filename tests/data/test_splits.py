"""Leakage-free splits."""

from collections import Counter

import pytest

from kgl.data.schema import defect_dataset
from kgl.data.splits import find_complete_fold, group_folds, hold_out_validation
from kgl.errors import InputError


def rows(labels, groups):
    names = [f"{index}" for index in range(len(labels))]
    return defect_dataset(
        images=[None] * len(labels), labels=labels, names=sorted(set(labels)), groups=groups, file_names=names
    )


@pytest.mark.parametrize("seed", range(5))
def test_validation_is_stratified_and_keeps_groups_whole(seed):
    labels = ["good"] * 60 + ["scratch"] * 30 + ["dent"] * 10
    groups = [f"{label}{index // 2}" for index, label in enumerate(labels)]
    train, validation = hold_out_validation(rows(labels, groups), 0.2, seed)
    assert len(train) + len(validation) == 100
    assert not set(train["group"]) & set(validation["group"])
    held = Counter(validation.features["label"].int2str(validation["label"]))
    # Versions of scikit-learn split differently, none exactly.
    assert abs(held["good"] - 12) <= 2 and abs(held["scratch"] - 6) <= 2 and held["dent"] == 2


def test_a_class_of_one_group_stays_in_training():
    labels = ["good"] * 20 + ["scratch"] * 8 + ["dent"] * 3
    groups = [str(index) for index in range(28)] + ["dents"] * 3
    for seed in range(8):
        train, validation = hold_out_validation(rows(labels, groups), 0.25, seed)
        assert "dents" in train["group"] and "dents" not in validation["group"]
        assert len(train) + len(validation) == 31


def test_a_single_group_stays_whole():
    train, validation = hold_out_validation(rows(["good", "bad"], ["one", "one"]), 0.5, 0)
    assert len(train) == 2 and len(validation) == 0


@pytest.mark.parametrize(
    ("groups", "advice"),
    [
        (["a", "a", "b", "b"], r"of bad \(2\); .* Add images, or give --num_folds 2\."),
        (["a", "a", "a", "a"], r"of bad \(1\); .* Add images: two independent ones of each class are needed\."),
    ],
)
def test_advice_about_too_few_images_can_be_followed(groups, advice):
    images = rows(["good"] * 5 + ["bad"] * 4, [*"vwxyz", *groups])
    with pytest.raises(InputError, match=advice):
        group_folds(images, 3, 0, "--num_folds")


def test_fewer_folds_are_advised_where_they_help():
    """Three groups with two classes each: whatever the folds, a class is on one side only."""
    images = rows(["a", "a", "b", "b", "c", "c"], [*"xyyzzx"])
    assert find_complete_fold(images, 2, 0) is None
    with pytest.raises(InputError, match=r"a \(2\), b \(2\), c \(2\); .* Add images of other groups\.$"):
        group_folds(images, 3, 0, "--num_folds")
