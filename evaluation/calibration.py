"""Temperature scaling and the decision threshold, chosen on validation images."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from .metrics import defect_scores, expected_calibration_error


def choose_operating_point(scores: np.ndarray, defective: np.ndarray, wanted_recall, miss_cost) -> dict[str, Any]:
    """
    The threshold on `P(defect)`, from which on an image counts as defective, and what it does on these images.

    It lies half-way between the last score that it calls defective and the next one below, so that rounding elsewhere
    (another device, an exported graph) turns no decision round.

    Args:
        scores: `P(defect)`, `(N,)` in 0..1.
        defective: `(N,)` bool; some are and some are not.

    Returns:
        `threshold`, `recall`, `false_alarm_rate`, how many `defective` and `good` images it was chosen on, and how
        (`chosen`); what a model's config stores.
    """
    candidates = np.append(np.unique(scores), 2 - scores.max())[::-1]  # the first one calls nothing defective
    recalls = np.array([(scores[defective] >= score).mean() for score in candidates])
    alarms = np.array([(scores[~defective] >= score).mean() for score in candidates])
    if miss_cost is None:
        at = int(np.argmax(recalls >= wanted_recall))
        chosen = f"the highest threshold that finds {100 * wanted_recall:.4g} % of the defects in validation images"
    else:
        cost = miss_cost * (1 - recalls) * defective.sum() + alarms * (~defective).sum()
        at = int(np.argmin(cost))
        chosen = f"least cost on validation images, a missed defect costing {miss_cost:g} false alarms"
    below = candidates[at + 1] if at + 1 < len(candidates) else 0.0
    return {
        "threshold": float((candidates[at] + below) / 2),
        "recall": float(recalls[at]),
        "false_alarm_rate": float(alarms[at]),
        "defective": int(defective.sum()),
        "good": int((~defective).sum()),
        "chosen": chosen,
    }


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """
    The temperature T at which `softmax(log p / T)` has the least cross-entropy (Guo et al. 2017), in 1..20.

    It softens only: few validation images that are all told apart would ask for no end of sharpening.

    Args:
        probabilities: `(N, K)`.
        labels: `(N,)`.
    """
    logs, rows = np.log(probabilities), np.arange(len(labels))

    def cross_entropy(log_temperature: float) -> float:
        return -log_softmax(logs / np.exp(log_temperature), axis=1)[rows, labels].mean()

    return float(np.exp(minimize_scalar(cross_entropy, bounds=(0.0, np.log(20)), method="bounded").x))


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Probabilities `(N, K)` at a temperature."""
    return softmax(np.log(probabilities) / temperature, axis=1)


def calibrate(
    probabilities: np.ndarray, labels: np.ndarray, defect_free_id: int | None, wanted_recall, miss_cost
) -> dict[str, Any]:
    """
    What validation images tell of a model: `temperature`, calibration errors, and its `operating_point`.

    The operating point is None where no class is free of defects, or one of the two sides has no validation image;
    the temperature is 1 where not all classes have one.

    Args:
        probabilities: the model's at temperature 1, `(N, K)`.
        labels: `(N,)`.
        defect_free_id: index of the class without defects.
    """
    temperature = 1.0
    if len(np.unique(labels)) == probabilities.shape[1]:
        temperature = fit_temperature(probabilities, labels)
    calibrated = apply_temperature(probabilities, temperature)
    settled: dict[str, Any] = {
        "images": len(labels),
        "temperature": temperature,
        "ece_uncalibrated": expected_calibration_error(probabilities, labels),
        "ece": expected_calibration_error(calibrated, labels),
        "operating_point": None,
    }
    if defect_free_id is not None:
        defective = labels != defect_free_id
        if defective.any() and not defective.all():
            scores = defect_scores(calibrated, defect_free_id)
            settled["operating_point"] = choose_operating_point(scores, defective, wanted_recall, miss_cost)
    return settled


__all__ = ["apply_temperature", "calibrate", "choose_operating_point", "fit_temperature"]
