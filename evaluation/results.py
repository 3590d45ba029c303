"""Metrics of the primary and the final classifier on the test images."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset

from ..configuration_kgl import KGLConfig
from .calibration import apply_temperature
from .maps import evaluate_maps
from .metrics import (
    DefectClassification,
    decision_rates,
    defect_scores,
    expected_calibration_error,
    paired_bootstrap,
    wilson_interval,
)
from .predictions import Predictions


BOOTSTRAP_DRAWS = 300  # of the test images, for the intervals


def evaluate_run(
    predictions: dict[str, Predictions], test: Dataset, configs: dict[str, KGLConfig], size: tuple[int, int]
) -> tuple[dict[str, dict[str, Any]], dict[str, dict[str, Any]]]:
    """
    Evaluate the primary and the final classifier on the test images.

    Args:
        predictions: `primary` and `final` predictions of `test`.
        test: columns `label` and `mask`.
        configs: `primary` and `final` configs.
        size: height and width at which maps are compared with masks.

    Returns:
        Metrics of each model with `<metric>_interval`, its 95 % interval (Wilson's for the accuracy and the rates at
        the threshold, a stratified bootstrap for the others), and the `difference` (final minus primary) of each
        bootstrapped metric with its `interval`.
    """
    *intervals, differences = paired_bootstrap(
        predictions["primary"].probabilities,
        predictions["final"].probabilities,
        test["label"][:],
        configs["final"].defect_free_id,
        BOOTSTRAP_DRAWS,
    )
    results = {
        model: bootstrap_intervals | _evaluate_model(predictions[model], test, configs[model], size)
        for model, bootstrap_intervals in zip(("primary", "final"), intervals, strict=True)
    }
    return results, differences


def evaluate_predictions(
    predictions: Predictions, dataset: Dataset, defect_free_id: int | None, size: tuple[int, int]
) -> dict[str, Any]:
    """
    Return the metrics of [`DefectClassification`] and, where images have masks, those of [`evaluate_maps`].

    `map_...` is the class map, `saliency_...` the heat map of the saliency head.
    """
    results = DefectClassification(keep_in_memory=True).compute(
        predictions=predictions.probabilities, references=dataset["label"], defect_free_id=defect_free_id
    )
    maps = {"map": predictions.class_map, "saliency": predictions.saliency}
    return results | evaluate_maps(maps, dataset, size)


def _evaluate_model(
    predictions: Predictions, test: Dataset, config: KGLConfig, size: tuple[int, int]
) -> dict[str, Any]:
    results = evaluate_predictions(predictions, test, config.defect_free_id, size)
    labels = np.asarray(test["label"][:])
    results["accuracy_interval"] = wilson_interval(predictions.probabilities.argmax(axis=1) == labels)
    results["ece"] = expected_calibration_error(predictions.probabilities, labels)
    if config.temperature != 1:
        uncalibrated = apply_temperature(predictions.probabilities, 1 / config.temperature)
        results["ece_uncalibrated"] = expected_calibration_error(uncalibrated, labels)
    if config.operating_point is not None:
        scores = defect_scores(predictions.probabilities, config.defect_free_id)
        results |= decision_rates(labels != config.defect_free_id, scores, config.threshold)
    return results


__all__ = ["BOOTSTRAP_DRAWS", "evaluate_predictions", "evaluate_run"]
