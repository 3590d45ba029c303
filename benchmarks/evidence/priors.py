"""Priors of each arm: saliency, true masks, blank, another image's, cross-fitted."""

from __future__ import annotations

from collections.abc import Callable
from itertools import zip_longest

import numpy as np
from datasets import Dataset, Features, concatenate_datasets
from transformers import BaseImageProcessor

from kgl.benchmarks.evidence.plan import Arm
from kgl.data.images import without_decoding
from kgl.data.splits import group_folds
from kgl.knowledge.arguments import PriorArguments
from kgl.knowledge.saliency_priors import add_saliency_priors
from kgl.knowledge.thresholds import NO_CELL
from kgl.modeling_kgl import KGLForImageClassification


class CannotShuffleError(ValueError):
    """Too few independent images of a class to give each one the prior of another."""


def add_arm_priors(
    arm: Arm, images: Dataset, model: KGLForImageClassification, processor: BaseImageProcessor, seed: int
) -> Dataset:
    """
    Add the columns of [`add_saliency_priors`], their values those of the arm.

    Args:
        arm: any arm with a prior but `cross_fitted`.
        images: the training images.
        model: the primary; for arms that need none, any classifier with the same feature grid.
        processor: the image processor of the model.
        seed: of the choice of the images with a known mask.

    Raises:
        CannotShuffleError: see [`shuffle_within_classes`].
    """
    rows = keep_known_masks(arm, images, model.config.defect_free_label, seed)
    guided = add_saliency_priors(rows, model.eval(), processor, args=PriorArguments(**arm.prior_arguments))
    columns = [name for name in guided.column_names if name not in rows.column_names]
    if arm.prior == "masks":
        # The location of a defect without a mask is unknown.
        names, masks = rows.features["label"].names, without_decoding(rows)["mask"]
        known = [
            names[label] == model.config.defect_free_label or mask is not None
            for label, mask in zip(rows["label"], masks, strict=True)
        ]
        return _replace_columns(guided, {"prior_weight": (np.asarray(guided["prior_weight"]) * known).tolist()})
    if arm.prior in ("blank", "zero_weight"):
        blank = {
            "saliency_prior": list(np.zeros_like(np.asarray(guided["saliency_prior"], dtype=np.uint8))),
            "prior_weight": [float(arm.prior == "blank")] * len(guided),
            "prior_threshold": [NO_CELL] * len(guided),
        }
        return _replace_columns(guided, {name: blank[name] for name in columns})
    if arm.prior == "shuffled":
        other = shuffle_within_classes(np.asarray(images["label"][:]), np.asarray(images["group"][:]))
        return concatenate_datasets([rows, guided.select_columns(columns).select(other)], axis=1)
    return guided


def add_cross_fitted_priors(
    arm: Arm,
    images: Dataset,
    fold_primary: Callable[[int, Dataset], KGLForImageClassification],
    processor: BaseImageProcessor,
    seed: int,
) -> Dataset:
    """
    Add saliency priors to each half of the images by a primary that was trained on the other half.

    Args:
        arm: its prior arguments and known masks are used.
        images: the training images.
        fold_primary: from the number of a fold and its training images to a trained primary.
        processor: the image processor of the primaries.
        seed: of the folds.
    """
    arguments = PriorArguments(**arm.prior_arguments)
    parts, order = [], []
    for fold, (rest, held_out) in enumerate(group_folds(images, 2, seed, "cross-fitting")):
        model = fold_primary(fold, images.select(rest))
        rows = keep_known_masks(arm, images, model.config.defect_free_label, seed).select(held_out)
        parts.append(add_saliency_priors(rows, model, processor, args=arguments))
        order.append(held_out)
    return concatenate_datasets(parts).select(np.argsort(np.concatenate(order)))


def keep_known_masks(arm: Arm, images: Dataset, defect_free: str | None, seed: int) -> Dataset:
    """Drop all masks but those the arm knows; the defect classes take turns in an order fixed by the seed."""
    names, labels = images.features["label"].names, images["label"][:]
    by_class: list[list[int]] = [[] for _ in names]
    for row in np.random.default_rng(seed).permutation(len(images)).tolist():
        by_class[labels[row]].append(row)
    turns = zip_longest(*(rows for name, rows in zip(names, by_class, strict=True) if name != defect_free))
    defective = [row for turn in turns for row in turn if row is not None]
    known = set(defective if arm.prior == "masks" else defective[: arm.known_masks])
    masks = [mask if row in known else None for row, mask in enumerate(without_decoding(images)["mask"])]
    return images.remove_columns("mask").add_column("mask", masks, feature=images.features["mask"])


def shuffle_within_classes(labels: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """
    Return for each image another one of its class and not of its group, every image once.

    Args:
        labels: `(N,)`.
        groups: `(N,)`, near-duplicates share one.

    Raises:
        CannotShuffleError: more than half of a class is one group.
    """
    other = np.empty(len(labels), dtype=int)
    for label in np.unique(labels):
        of_class = np.flatnonzero(labels == label)
        of_class = of_class[np.argsort(groups[of_class], kind="stable")]
        largest = np.unique(groups[of_class], return_counts=True)[1].max()
        other[of_class] = np.roll(of_class, largest)  # past the end of any image's own group
    if (groups[other] == groups).any():
        raise CannotShuffleError("More than half of a class are near-duplicates: its priors cannot be shuffled.")
    return other


def _replace_columns(dataset: Dataset, columns: dict[str, list]) -> Dataset:
    features = Features({name: dataset.features[name] for name in columns})
    others = dataset.remove_columns(list(columns))
    return concatenate_datasets([others, Dataset.from_dict(columns, features=features)], axis=1)
