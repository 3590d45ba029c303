"""Metrics of a classifier on the test images."""

from __future__ import annotations

from typing import Any

from datasets import Dataset

from .maps import evaluate_maps
from .metrics import DefectClassification
from .predictions import Predictions


def evaluate_predictions(
    predictions: Predictions, dataset: Dataset, defect_free_id: int | None, size: tuple[int, int]
) -> dict[str, Any]:
    """
    Metrics of [`DefectClassification`], and where images have masks, how right the maps are.

    `map_...` is the class map's, `saliency_...` the saliency head's; see [`evaluate_maps`].
    """
    results = DefectClassification(keep_in_memory=True).compute(
        predictions=predictions.probabilities, references=dataset["label"], defect_free_id=defect_free_id
    )
    maps = {"map": predictions.class_map, "saliency": predictions.saliency}
    return results | evaluate_maps(maps, dataset, size)


__all__ = ["evaluate_predictions"]


def evaluate_run(predictions, test, configs, size):
    from .metrics import paired_bootstrap

    results = {a: evaluate_predictions(p, test, configs[a].defect_free_id, size) for a, p in predictions.items()}
    *i, d = paired_bootstrap(
        predictions["primary"].probabilities,
        predictions["final"].probabilities,
        test["label"][:],
        configs["final"].defect_free_id,
        300,
    )
    for a, one in zip(results, i):
        results[a] = one | results[a]
    return results, d
