"""Priors of each arm: saliency, true masks, blank, another image's."""

from __future__ import annotations

import numpy as np
from datasets import Dataset, Features, concatenate_datasets
from transformers import BaseImageProcessor

from kgl.benchmarks.evidence.plan import Arm
from kgl.data.images import without_decoding
from kgl.knowledge.arguments import PriorArguments
from kgl.knowledge.saliency_priors import add_saliency_priors
from kgl.knowledge.thresholds import NO_CELL
from kgl.modeling_kgl import KGLForImageClassification


class CannotShuffleError(ValueError):
    """Too few independent images of a class to give each one the prior of another."""


def add_arm_priors(
    arm: Arm, images: Dataset, model: KGLForImageClassification, processor: BaseImageProcessor
) -> Dataset:
    """
    Add the columns of [`add_saliency_priors`], their values those of the arm.

    Args:
        arm: any arm with a prior.
        images: the training images.
        model: the primary; for arms that need none, any classifier with the same feature grid.
        processor: the image processor of the model.

    Raises:
        CannotShuffleError: see [`shuffle_within_classes`].
    """
    rows = images if arm.prior == "masks" else images.remove_columns("mask")
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
    if arm.prior == "blank":
        blank = {
            "saliency_prior": list(np.zeros_like(np.asarray(guided["saliency_prior"], dtype=np.uint8))),
            "prior_weight": [1.0] * len(guided),
            "prior_threshold": [NO_CELL] * len(guided),
        }
        return _replace_columns(guided, {name: blank[name] for name in columns})
    if arm.prior == "shuffled":
        other = shuffle_within_classes(np.asarray(images["label"][:]), np.asarray(images["group"][:]))
        return concatenate_datasets([rows, guided.select_columns(columns).select(other)], axis=1)
    return guided


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
