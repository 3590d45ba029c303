"""Metrics of the primary and the final classifier on the test images."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Dataset

from ..configuration_kgl import KGLConfig
from ..data.masks import mask_to_array, mask_to_grid
from .calibration import apply_temperature
from .maps import evaluate_maps
from .metrics import (
    DefectClassification,
    count_decisions,
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
        a threshold, a stratified bootstrap for the others), and the `difference` (final minus primary) of each
        bootstrapped metric with its `interval`. A classifier without a threshold has `decisions_at_half`, of
        [`count_decisions`] at 0.5.
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
    predictions: Predictions,
    dataset: Dataset,
    defect_free_id: int | None,
    size: tuple[int, int],
    has_heat_map: bool = True,
) -> dict[str, Any]:
    """
    Return the metrics of [`DefectClassification`] and, where images have masks, those of [`evaluate_maps`].

    `map_...` is the class map, `saliency_...` the heat map of the saliency head, where it was trained.
    """
    results = DefectClassification(keep_in_memory=True).compute(
        predictions=predictions.probabilities, references=dataset["label"], defect_free_id=defect_free_id
    )
    maps = {"map": predictions.class_map}
    if has_heat_map:
        maps["saliency"] = predictions.saliency
    return results | evaluate_maps(maps, dataset, size)


def _evaluate_model(
    predictions: Predictions, test: Dataset, config: KGLConfig, size: tuple[int, int]
) -> dict[str, Any]:
    results = evaluate_predictions(predictions, test, config.defect_free_id, size, config.has_heat_map)
    labels = np.asarray(test["label"][:])
    results["accuracy_interval"] = wilson_interval(predictions.probabilities.argmax(axis=1) == labels)
    results["ece"] = expected_calibration_error(predictions.probabilities, labels)
    if config.temperature != 1:
        uncalibrated = apply_temperature(predictions.probabilities, 1 / config.temperature)
        results["ece_uncalibrated"] = expected_calibration_error(uncalibrated, labels)
    if config.defect_free_id is not None:
        scores, defective = (
            defect_scores(predictions.probabilities, config.defect_free_id),
            labels != config.defect_free_id,
        )
        if config.operating_point is None:
            results["decisions_at_half"] = count_decisions(defective, scores, config.threshold)
        else:
            results |= operating_rates(defective, scores, config.operating_point)
    if config.has_heat_map:
        results |= heat_map_rates(predictions.saliency >= config.heat_threshold, test, config.defect_free_id, size)
    return results


def operating_rates(defective: np.ndarray, scores: np.ndarray, operating_point: dict[str, Any]) -> dict[str, Any]:
    """
    Return [`decision_rates`] at the threshold and, where there is a look-again band, `..._with_look_again`.

    The latter count the images called defective and those to be looked at again. `decisions_at_operating_point` are
    the numbers of images behind them, of [`count_decisions`].

    Args:
        defective: `(N,)` bool.
        scores: `P(defect)`, `(N,)`.
        operating_point: of a model's config.
    """
    threshold, look_again = operating_point["threshold"], operating_point.get("look_again_threshold")
    rates: dict[str, Any] = decision_rates(defective, scores, threshold, "at_operating_point")
    rates["decisions_at_operating_point"] = count_decisions(defective, scores, threshold, look_again)
    if look_again is not None:
        rates |= decision_rates(defective, scores, look_again, "with_look_again")
    return rates


def heat_map_rates(
    marked: np.ndarray, dataset: Dataset, defect_free_id: int | None, size: tuple[int, int]
) -> dict[str, Any]:
    """
    Return how often the marked cells of the heat map are right, per image, each rate with Wilson's interval.

    `saliency_false_alarm_rate` is the share of good images with a marked cell, `saliency_found_rate` the share of
    images with a true mask that a marked cell touches. A rate without such images is left out.

    Args:
        marked: cells that reach the heat map's threshold, `(N, h, w)` bool.
        dataset: columns `label` and `mask`.
        defect_free_id: index of the class without defects.
        size: height and width at which masks are read.
    """
    outcomes: dict[str, np.ndarray] = {}
    if defect_free_id is not None:
        good = np.asarray(dataset["label"][:]) == defect_free_id
        outcomes["saliency_false_alarm_rate"] = marked[good].any(axis=(1, 2))
    masks = [mask_to_array(mask, size) for mask in dataset["mask"]]
    rows = [index for index, mask in enumerate(masks) if mask is not None and mask.any()]
    if rows:
        truth = mask_to_grid(np.stack([masks[index] for index in rows]), marked.shape[1:])
        outcomes["saliency_found_rate"] = (marked[rows] & truth).any(axis=(1, 2))
    rates: dict[str, Any] = {}
    for name, of_images in outcomes.items():
        if len(of_images) > 0:
            rates[name], rates[f"{name}_interval"] = float(of_images.mean()), wilson_interval(of_images)
    return rates


__all__ = ["BOOTSTRAP_DRAWS", "evaluate_predictions", "evaluate_run", "heat_map_rates", "operating_rates"]
