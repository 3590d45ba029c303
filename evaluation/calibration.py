"""Temperature scaling and the decision threshold, chosen on validation images."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from .metrics import defect_scores, expected_calibration_error


def calibrate(
    probabilities: np.ndarray,
    labels: np.ndarray,
    defect_free_id: int | None,
    wanted_recall: float = 1.0,
    miss_cost: float | None = None,
) -> dict[str, Any]:
    """
    Fit the temperature and choose the decision threshold on validation images.

    Args:
        probabilities: the model's at temperature 1, `(N, K)`.
        labels: `(N,)`.
        defect_free_id: index of the class without defects.
        wanted_recall: see [`choose_operating_point`].
        miss_cost: see [`choose_operating_point`].

    Returns:
        The number of `images`; the `temperature`, which is 1 where not every class has an image; the expected
        calibration errors `ece_uncalibrated` at temperature 1 and `ece`; and `operating_point`, the result of
        [`choose_operating_point`], None where no class is defect-free or all images are of one kind.
    """
    temperature = 1.0
    if len(np.unique(labels)) == probabilities.shape[1]:
        temperature = fit_temperature(probabilities, labels)
    calibrated = apply_temperature(probabilities, temperature)
    operating_point = None
    if defect_free_id is not None:
        defective = labels != defect_free_id
        if defective.any() and not defective.all():
            scores = defect_scores(calibrated, defect_free_id)
            operating_point = choose_operating_point(scores, defective, wanted_recall, miss_cost)
    return {
        "images": len(labels),
        "temperature": temperature,
        "ece_uncalibrated": expected_calibration_error(probabilities, labels),
        "ece": expected_calibration_error(calibrated, labels),
        "operating_point": operating_point,
    }


def choose_operating_point(
    scores: np.ndarray, defective: np.ndarray, wanted_recall: float = 1.0, miss_cost: float | None = None
) -> dict[str, Any]:
    """
    Choose the threshold on `P(defect)` at and above which an image counts as defective.

    The threshold lies half-way between the lowest score that it calls defective and the next lower one, so that
    rounding elsewhere (another device, an exported model) changes no decision.

    Args:
        scores: `P(defect)`, `(N,)` in 0..1.
        defective: `(N,)` bool, with both values.
        wanted_recall: take the highest threshold with at least this recall, in 0..1.
        miss_cost: take the threshold of lowest cost instead, a missed defect costing this many false alarms.

    Returns:
        `threshold`; `recall` and `false_alarm_rate` on these images; the number of `defective` and `good` images; and
        `chosen`, the rule in words. This is what a model's config stores.
    """
    candidates = np.append(np.unique(scores), 2 - scores.max())[::-1]  # the first one calls nothing defective
    recalls = np.array([(scores[defective] >= score).mean() for score in candidates])
    false_alarms = np.array([(scores[~defective] >= score).mean() for score in candidates])
    if miss_cost is None:
        best = int(np.argmax(recalls >= wanted_recall))
        chosen = f"highest threshold that finds at least {100 * wanted_recall:.4g} % of the validation defects"
    else:
        cost = miss_cost * (1 - recalls) * defective.sum() + false_alarms * (~defective).sum()
        best = int(np.argmin(cost))
        chosen = f"lowest cost on the validation images, one missed defect costing {miss_cost:g} false alarms"
    below = candidates[best + 1] if best + 1 < len(candidates) else 0.0
    return {
        "threshold": float((candidates[best] + below) / 2),
        "recall": float(recalls[best]),
        "false_alarm_rate": float(false_alarms[best]),
        "defective": int(defective.sum()),
        "good": int((~defective).sum()),
        "chosen": chosen,
    }


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """
    Return the temperature T in 1..20 of least cross-entropy of `softmax(log p / T)` (Guo et al. 2017).

    Temperatures below 1 are left out: a few validation images that are all classified correctly would ask for
    unlimited sharpening.

    Args:
        probabilities: `(N, K)`.
        labels: `(N,)`.
    """
    logs, rows = np.log(probabilities), np.arange(len(labels))

    def cross_entropy(log_temperature: float) -> float:
        return -log_softmax(logs / np.exp(log_temperature), axis=1)[rows, labels].mean()

    return float(np.exp(minimize_scalar(cross_entropy, bounds=(0.0, np.log(20)), method="bounded").x))


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return probabilities `(N, K)` at another temperature."""
    return softmax(np.log(probabilities) / temperature, axis=1)


__all__ = ["apply_temperature", "calibrate", "choose_operating_point", "fit_temperature"]
