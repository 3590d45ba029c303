"""Priors of each arm."""

from types import SimpleNamespace

import numpy as np
import pytest
from datasets import Array2D, Dataset, Features, Value, concatenate_datasets

from kgl.benchmarks.evidence import priors as priors_module
from kgl.benchmarks.evidence.bench import Bench
from kgl.benchmarks.evidence.plan import ARMS, Arm
from kgl.benchmarks.evidence.priors import CannotShuffleError, add_arm_priors, shuffle_within_classes
from kgl.data.images import without_decoding
from kgl.data.masks import mask_to_array, mask_to_grid


def test_priors_of_each_arm(tmp_path):
    bench = Bench("smoke", 4, 0, False, False, tmp_path)
    names, labels = bench.train_images.features["label"].names, np.asarray(bench.train_images["label"])
    defective = np.array([names[label] != "good" for label in labels])

    def priors(arm):
        rows = bench._with_priors(ARMS[arm])
        assert rows["index"] == bench.train_images["index"]
        return np.asarray(rows["saliency_prior"]), np.asarray(rows["prior_weight"])

    own, weight = priors("guided")
    assert own[defective].max(axis=(1, 2)).min() == 255 and own[~defective].max() == 0 and (weight == 1).all()
    blank, weight = priors("blank mask")
    assert blank.max() == 0 and (weight == 1).all()
    shuffled, _ = priors("shuffled prior")
    for label in set(labels[defective]):
        of_class = np.flatnonzero(labels == label)
        assert sorted(map(bytes, own[of_class])) == sorted(map(bytes, shuffled[of_class]))
    assert not any(np.array_equal(one, other) for one, other in zip(own[defective], shuffled[defective], strict=True))
    masks, weight = priors("guided, true masks")
    truth = [
        mask_to_grid(mask_to_array(mask, (32, 32))[None], own.shape[1:])[0] for mask in bench.train_images["mask"]
    ]
    assert np.array_equal(masks > 0, np.stack(truth)) and (weight == 1).all()


def test_defect_without_mask_has_weight_zero_among_true_masks(tmp_path):
    bench = Bench("smoke", 4, 0, False, False, tmp_path)
    names, labels = bench.train_images.features["label"].names, bench.train_images["label"]
    missing = next(row for row, label in enumerate(labels) if names[label] != "good")
    masks = [None if row == missing else mask for row, mask in enumerate(without_decoding(bench.train_images)["mask"])]
    feature = bench.train_images.features["mask"]
    bench.train_images = bench.train_images.remove_columns("mask").add_column("mask", masks, feature=feature)
    weight = np.asarray(bench._with_priors(ARMS["guided, true masks"])["prior_weight"])
    assert weight[missing] == 0 and weight.sum() == len(weight) - 1


def test_threshold_follows_replaced_priors(monkeypatch):
    """Blank priors have no cell above the threshold, shuffled ones the threshold of the other image."""

    def add(rows, model, processor, args):
        known = Features(
            saliency_prior=Array2D((2, 2), "uint8"), prior_weight=Value("float32"), prior_threshold=Value("uint8")
        )
        values = {
            "saliency_prior": [np.full((2, 2), index + 1, dtype=np.uint8) for index in range(len(rows))],
            "prior_weight": [1.0] * len(rows),
            "prior_threshold": list(range(len(rows))),
        }
        return concatenate_datasets([rows, Dataset.from_dict(values, features=known)], axis=1)

    monkeypatch.setattr(priors_module, "add_saliency_priors", add)
    images = Dataset.from_dict({"label": [0, 0, 1, 1], "group": ["a", "b", "c", "d"], "mask": [None] * 4})
    model = SimpleNamespace(eval=lambda: None, config=SimpleNamespace(defect_free_label=None))
    blank = add_arm_priors(Arm("blank"), images, model, None)
    assert blank["prior_threshold"][:] == [255] * 4 and np.asarray(blank["saliency_prior"]).max() == 0
    shuffled = add_arm_priors(Arm("shuffled"), images, model, None)
    assert shuffled["prior_threshold"][:] == [1, 0, 3, 2]
    assert np.asarray(shuffled["saliency_prior"])[:, 0, 0].tolist() == [2, 1, 4, 3]


def test_shuffle_stays_in_the_class_and_leaves_the_group():
    labels, groups = np.array([0, 0, 0, 0, 1, 1]), np.array(["a", "b", "a", "b", "c", "d"])
    other = shuffle_within_classes(labels, groups)
    assert sorted(other) == list(range(6)) and (labels[other] == labels).all() and (groups[other] != groups).all()
    labels, groups = np.array([0, 0, 0, 1, 1]), np.array(["a", "a", "b", "c", "d"])
    with pytest.raises(CannotShuffleError, match="More than half"):
        shuffle_within_classes(labels, groups)


def test_unknown_prior_is_refused():
    with pytest.raises(ValueError, match="prior='shufled': choose one of"):
        Arm("shufled")
