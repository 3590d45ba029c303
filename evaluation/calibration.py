"""Temperature scaling, the decision threshold and the heat map's threshold, chosen on validation images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from datasets import Dataset
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax
from transformers import BaseImageProcessor

from ..modeling_kgl import KGLForImageClassification
from ..training.arguments import OperatingArguments
from .metrics import average_precisions, defect_scores, expected_calibration_error
from .predictions import predict


TEMPERATURE_DEVIATION = 0.5  # of log T in the prior of the temperature


def calibrate_model(
    model: KGLForImageClassification,
    validation: Dataset,
    image_processor: BaseImageProcessor,
    batch_size: int,
    operating: OperatingArguments,
) -> dict[str, Any]:
    """
    Set temperature, operating point and heat-map threshold in a model's config, chosen on validation images.

    Args:
        model: at temperature 1.
        validation: columns `image` and `label`.
        image_processor: the model's.
        batch_size: images per forward pass.
        operating: how the thresholds are chosen.

    Returns:
        The result of [`calibrate`]; `saliency_threshold`, that of [`choose_saliency_threshold`], None without a class
        or an image free of defects, or without a heat map; and `defect_scores`, the calibrated `P(defect)` of each
        image, None without a class free of defects.
    """
    config, labels = model.config, np.asarray(validation["label"])
    predictions = predict(model, validation, image_processor, batch_size)
    rule = (operating.wanted_recall, operating.miss_cost, operating.look_again_recall)
    calibration = calibrate(predictions.probabilities, labels, config.defect_free_id, *rule)
    saliency_threshold, scores = None, None
    if config.defect_free_id is not None:
        calibrated = apply_temperature(predictions.probabilities, calibration["temperature"])
        scores = defect_scores(calibrated, config.defect_free_id).tolist()
    if config.has_heat_map and config.defect_free_id is not None:
        good_maps = predictions.saliency[labels == config.defect_free_id]
        if len(good_maps) > 0:
            saliency_threshold = choose_saliency_threshold(good_maps, operating.heat_false_alarms)
    config.temperature = calibration["temperature"]
    config.operating_point = calibration["operating_point"]
    config.saliency_threshold = saliency_threshold
    return calibration | {"saliency_threshold": saliency_threshold, "defect_scores": scores}


def without_scores(validation: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return what [`calibrate_model`] returned without the scores of the images, which have a table of their own."""
    if validation is None:
        return None
    return {name: value for name, value in validation.items() if name != "defect_scores"}


def calibrate(
    probabilities: np.ndarray,
    labels: np.ndarray,
    defect_free_id: int | None,
    wanted_recall: float = 1.0,
    miss_cost: float | None = None,
    look_again_recall: float | None = None,
) -> dict[str, Any]:
    """
    Fit the temperature and choose the decision threshold on validation images.

    Args:
        probabilities: the model's at temperature 1, `(N, K)`.
        labels: `(N,)`.
        defect_free_id: index of the class without defects.
        wanted_recall: see [`choose_operating_point`].
        miss_cost: see [`choose_operating_point`].
        look_again_recall: see [`choose_operating_point`].

    Returns:
        The number of `images`; the `temperature`, which is 1 where not every class has an image; the expected
        calibration errors `ece_uncalibrated` at temperature 1 and `ece`; the [`average_precisions`], which may choose
        between classifiers; and `operating_point`, the result of [`choose_operating_point`], None where no class is
        defect-free or all images are of one kind.
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
            operating_point = choose_operating_point(scores, defective, wanted_recall, miss_cost, look_again_recall)
    return {
        "images": len(labels),
        "temperature": temperature,
        "ece_uncalibrated": expected_calibration_error(probabilities, labels),
        "ece": expected_calibration_error(calibrated, labels),
        **average_precisions(calibrated, labels, defect_free_id),
        "operating_point": operating_point,
    }


def choose_operating_point(
    scores: np.ndarray,
    defective: np.ndarray,
    wanted_recall: float = 1.0,
    miss_cost: float | None = None,
    look_again_recall: float | None = None,
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
        look_again_recall: also take the highest lower threshold with at least this recall; images from there up to
            the threshold are to be looked at again.

    Returns:
        `threshold`; `recall` and `false_alarm_rate` on these images; the number of `defective` and `good` images;
        `marks_all_good`, whether every good image counts as defective, so that the threshold sorts nothing; and
        `chosen`, the rule in words. With `look_again_recall` also `look_again_threshold`, `look_again_recall` and
        `look_again_false_alarm_rate`, which count defective and look again together, and `look_again_chosen`; the
        last one alone where the threshold has that recall already. This is what a model's config stores.
    """
    candidates = np.append(np.unique(scores), 2 - scores.max())[::-1]  # the first one calls nothing defective
    recalls = np.array([(scores[defective] >= score).mean() for score in candidates])
    false_alarms = np.array([(scores[~defective] >= score).mean() for score in candidates])
    if miss_cost is None:
        best = int(np.argmax(recalls >= wanted_recall))
        chosen = recall_rule(wanted_recall)
    else:
        cost = miss_cost * (1 - recalls) * defective.sum() + false_alarms * (~defective).sum()
        best = int(np.argmin(cost))
        chosen = f"lowest cost on the validation images, one missed defect costing {miss_cost:g} false alarms"
    band: dict[str, Any] = {}
    if look_again_recall is not None:
        lower = int(np.argmax(recalls >= look_again_recall))
        band["look_again_chosen"] = recall_rule(look_again_recall)
        if lower > best:
            band["look_again_threshold"] = _half_way_down(candidates, lower)
            band["look_again_recall"] = float(recalls[lower])
            band["look_again_false_alarm_rate"] = float(false_alarms[lower])
    return {
        "threshold": _half_way_down(candidates, best),
        "recall": float(recalls[best]),
        "false_alarm_rate": float(false_alarms[best]),
        "defective": int(defective.sum()),
        "good": int((~defective).sum()),
        "marks_all_good": bool(false_alarms[best] == 1),
        "chosen": chosen,
        **band,
    }


def recall_rule(recall: float) -> str:
    """Return the rule of `wanted_recall` in words, the `chosen` of an operating point."""
    return f"highest threshold that finds at least {100 * recall:.4g} % of the validation defects"


def _half_way_down(candidates: np.ndarray, index: int) -> float:
    below = candidates[index + 1] if index + 1 < len(candidates) else 0.0
    return float((candidates[index] + below) / 2)


def choose_saliency_threshold(good_maps: np.ndarray, false_alarms: float) -> dict[str, Any]:
    """
    Choose the value of the heat map from which a cell is marked, so that few good images have a marked cell.

    It lies just above the `ceil((N + 1) (1 - false_alarms))`-th smallest of the N maps' maxima. Among further images
    like these, the expected share with a marked cell is then at most `false_alarms` (conformal prediction). Fewer
    than `1 / false_alarms - 1` images cannot bound that share: with them it lies just above all maxima, and is at
    least 0.5.

    Args:
        good_maps: heat maps of good images, `(N, h, w)` float32 in 0..1, N > 0.
        false_alarms: the wanted share, between 0 and 1.

    Returns:
        `threshold`; the number of `good_images`; `false_alarm_rate`, the share of these with a marked cell; and
        `chosen`, the rule in words. This is what a model's config stores.
    """
    maxima = np.sort(good_maps.reshape(len(good_maps), -1).max(axis=1))
    above = np.nextafter(maxima, np.float32(1))  # a cell is marked from the threshold on
    rank = math.ceil((len(maxima) + 1) * (1 - false_alarms) - 1e-9)  # rounding must not raise a whole number
    if rank <= len(maxima):
        threshold = float(above[rank - 1])
        chosen = f"value that at most {100 * false_alarms:.4g} % of good images exceed anywhere"
    else:
        threshold = max(0.5, float(above[-1]))
        chosen = (
            "value that no good validation image exceeds, at least 0.5; too few images for a rate of "
            f"{100 * false_alarms:.4g} %"
        )
    return {
        "threshold": threshold,
        "good_images": len(maxima),
        "false_alarm_rate": float((maxima >= threshold).mean()),
        "chosen": chosen,
    }


def fit_temperature(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """
    Return the most probable temperature T in 1..20 of `softmax(log p / T)` (Guo et al. 2017).

    It minimises the summed cross-entropy plus `(log T)^2 / (2 * 0.5^2)`, a normal prior of log T around 0, so that
    few images move it little. Temperatures below 1 are left out: images that are all classified correctly would ask
    for sharpening.

    Args:
        probabilities: `(N, K)`.
        labels: `(N,)`.
    """
    logs, rows = np.log(probabilities), np.arange(len(labels))

    def cost(log_temperature: float) -> float:
        cross_entropy = -log_softmax(logs / np.exp(log_temperature), axis=1)[rows, labels].sum()
        return cross_entropy + log_temperature**2 / (2 * TEMPERATURE_DEVIATION**2)

    return float(np.exp(minimize_scalar(cost, bounds=(0.0, np.log(20)), method="bounded").x))


def apply_temperature(probabilities: np.ndarray, temperature: float) -> np.ndarray:
    """Return probabilities `(N, K)` at another temperature."""
    return softmax(np.log(probabilities) / temperature, axis=1)


__all__ = [
    "apply_temperature",
    "calibrate",
    "calibrate_model",
    "choose_operating_point",
    "choose_saliency_threshold",
    "fit_temperature",
    "recall_rule",
    "without_scores",
]
