"""Classification metrics as an `evaluate.Metric` that needs no network, their intervals and their titles."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import datasets
import evaluate
import numpy as np
from scipy.stats import binomtest


FALSE_ALARM_RATE = 0.05  # at which `recall_at_false_alarm_rate` is given by default
_RANKING_METRICS = ("ap", "auroc")
_THRESHOLD_METRICS = ("f1_max", "recall_at_false_alarm_rate", "false_alarm_rate_at_zero_missed")

# JSON key of a metric -> its title in reports, model cards and tables.
METRIC_TITLES = {
    "ap": "AP",
    "auroc": "AUROC",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "defect_ap": "AP, defective against good",
    "defect_auroc": "AUROC, defective against good",
    "f1_max": "F1 at its best threshold",
    "recall_at_false_alarm_rate": f"Defects found at {100 * FALSE_ALARM_RATE:g} % false alarms",
    "false_alarm_rate_at_zero_missed": "False alarms when no defect is missed",
    "recall_at_operating_point": "Defects found at the threshold",
    "false_alarm_rate_at_operating_point": "False alarms at the threshold",
    "recall_with_look_again": "Defects found or looked at again",
    "false_alarm_rate_with_look_again": "Good images called defective or looked at again",
    "ece_uncalibrated": "Calibration error before temperature scaling",
    "ece": "Calibration error",
    "map_ap": "Class map, pixel AP",
    "map_image_ap": "Class map, pixel AP per image",
    "map_cell_ap": "Class map, cell AP",
    "map_cell_image_ap": "Class map, cell AP per image",
    "map_pointing": "Class map, peak on the defect",
    "map_entropy": "Class map, entropy",
    "map_area90": "Class map, area with 90 % of the sum",
    "saliency_ap": "Heat map, pixel AP",
    "saliency_image_ap": "Heat map, pixel AP per image",
    "saliency_cell_ap": "Heat map, cell AP",
    "saliency_cell_image_ap": "Heat map, cell AP per image",
    "saliency_pointing": "Heat map, peak on the defect",
    "saliency_entropy": "Heat map, entropy",
    "saliency_area90": "Heat map, area with 90 % of the sum",
    "saliency_false_alarm_rate": "Heat map, good images with a marked cell",
    "saliency_found_rate": "Heat map, defects touched by a marked cell",
    "seconds": "Training time in seconds",
}


class DefectClassification(evaluate.Metric):
    """
    Metrics of class probabilities, and of how well they separate defective from good images.

    `compute(predictions=probabilities (N, K), references=labels (N,), defect_free_id=None, false_alarm_rate=0.05,
    bootstrap=0, seed=0)` returns

    - `accuracy` and `balanced_accuracy` of the most probable class;
    - `ap` and `auroc`: with two classes those of the defect class (the second one, or the one that is not
      `defect_free_id`); with more classes the macro averages of each class against the rest, whose parts are
      `ap_per_class` and `auroc_per_class`, and also `macro_...` and `..._per_class` of the three metrics below, each
      class in turn taken as the defect;
    - with two classes, or with `defect_free_id`, ranking all defects against the good class by `1 - P(good)`:
      `defect_ap` and `defect_auroc` (with more than two classes), `f1_max`, the best F1 of any threshold,
      `recall_at_false_alarm_rate`, the largest share of defects found while at most `false_alarm_rate` of the good
      images are called defective, and `false_alarm_rate_at_zero_missed`, the share of good images called defective
      while every defect is found;
    - with `bootstrap` draws, stratified by class, `<metric>_interval`: the 2.5 and 97.5 % quantiles of each metric.

    A metric that needs images of both kinds is NaN where one kind is missing; macro averages leave such classes out.

    Raises:
        ValueError: hard labels instead of probabilities, or no predictions.
    """

    def _build_data_dir(self) -> str:
        # evaluate makes a folder below the home directory, which may not be writable; in memory none is needed.
        return self._data_dir_root if self.keep_in_memory else super()._build_data_dir()

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=self.__doc__,
            citation="",
            features=datasets.Features(
                predictions=datasets.Sequence(datasets.Value("float64")), references=datasets.Value("int64")
            ),
        )

    def _compute(
        self,
        predictions: list[list[float]],
        references: list[int],
        defect_free_id: int | None = None,
        false_alarm_rate: float = FALSE_ALARM_RATE,
        bootstrap: int = 0,
        seed: int = 0,
    ) -> dict[str, float | list[float]]:
        scores, labels = np.asarray(predictions), np.asarray(references)
        if len(scores) == 0:
            raise ValueError("there are no predictions.")
        if np.isin(scores, (0.0, 1.0)).all():
            raise ValueError("predictions are hard labels: AP and AUROC rank, so they need probabilities.")
        results = _classification_metrics(scores, labels, defect_free_id, false_alarm_rate)
        if bootstrap > 0:
            draws = [
                _classification_metrics(scores[rows], labels[rows], defect_free_id, false_alarm_rate)
                for rows in _bootstrap_rows(labels, bootstrap, seed)
            ]
            for name in [name for name, value in results.items() if isinstance(value, float)]:
                results[f"{name}_interval"] = _interval([draw[name] for draw in draws])
        return results


def paired_bootstrap(
    first: np.ndarray,
    second: np.ndarray,
    labels: Sequence[int],
    defect_free_id: int | None,
    draws: int,
    false_alarm_rate: float = FALSE_ALARM_RATE,
    seed: int = 0,
) -> tuple[dict[str, list[float]], dict[str, list[float]], dict[str, dict[str, float | list[float]]]]:
    """
    Return 95 % intervals of two models' metrics on the same images, and of the differences between them.

    Args:
        first: probabilities `(N, K)` of one model.
        second: those of the other model.
        labels: `(N,)`.
        defect_free_id: index of the class without defects.
        draws: bootstrap draws of the images, the same ones for both models, stratified by class.
        false_alarm_rate: as in [`DefectClassification`].
        seed: seed of the draws.

    Returns:
        `<metric>_interval` of the first model, that of the second, and for each metric `difference` (second minus
        first) with its `interval`.
    """
    labels = np.asarray(labels)

    def metrics_of_both(rows: np.ndarray) -> list[dict[str, float]]:
        return [
            _classification_metrics(scores[rows], labels[rows], defect_free_id, false_alarm_rate)
            for scores in (first, second)
        ]

    of_first, of_second = metrics_of_both(np.arange(len(labels)))
    names = [name for name, value in of_first.items() if isinstance(value, float)]
    pairs = [metrics_of_both(rows) for rows in _bootstrap_rows(labels, draws, seed)]
    intervals = [
        {f"{name}_interval": _interval([pair[index][name] for pair in pairs]) for name in names} for index in (0, 1)
    ]
    differences = {
        name: {
            "difference": of_second[name] - of_first[name],
            "interval": _interval([pair[1][name] - pair[0][name] for pair in pairs]),
        }
        for name in names
    }
    return *intervals, differences


def _bootstrap_rows(labels: np.ndarray, draws: int, seed: int) -> Iterator[np.ndarray]:
    """Yield the row numbers of each draw; every class keeps its size."""
    generator = np.random.default_rng(seed)
    rows_per_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for _ in range(draws):
        yield np.concatenate([generator.choice(rows, len(rows)) for rows in rows_per_class])


def _interval(values: list[float]) -> list[float]:
    return np.quantile(values, (0.025, 0.975)).tolist()


def _classification_metrics(
    scores: np.ndarray, labels: np.ndarray, defect_free_id: int | None, false_alarm_rate: float
) -> dict[str, float | list[float]]:
    predicted = scores.argmax(axis=1)
    present = np.unique(labels)
    results: dict[str, float | list[float]] = {
        "accuracy": float((predicted == labels).mean()),
        "balanced_accuracy": float(np.mean([(predicted[labels == label] == label).mean() for label in present])),
    }
    two_classes = scores.shape[1] == 2
    if two_classes:
        defect_free_id = 0 if defect_free_id is None else defect_free_id
    else:
        one_against_rest = [(labels == index, scores[:, index]) for index in range(scores.shape[1])]
        per_class = [_binary_metrics(*one, false_alarm_rate) for one in one_against_rest]
        for name in per_class[0]:
            values = [metrics[name] for metrics in per_class]
            macro = float(np.mean([value for value in values if not np.isnan(value)] or [np.nan]))
            results[name if name in _RANKING_METRICS else f"macro_{name}"] = macro
            results[f"{name}_per_class"] = values
    if defect_free_id is not None:
        defective, defect = labels != defect_free_id, defect_scores(scores, defect_free_id)
        of_defects = _binary_metrics(defective, defect, false_alarm_rate)
        if not two_classes:
            of_defects |= {f"defect_{name}": of_defects.pop(name) for name in _RANKING_METRICS}
        results |= of_defects
    return results


def _binary_metrics(positive: np.ndarray, scores: np.ndarray, false_alarm_rate: float) -> dict[str, float]:
    """
    Return AP, AUROC and what the best thresholds reach; `score >= threshold` means positive.

    All of them are read from one sorting: scikit-learn's functions, one per metric, give the same values but take
    some thirty times as long, ten seconds of an evaluation with its bootstrap.
    """
    if positive.all() or not positive.any():
        return dict.fromkeys((*_RANKING_METRICS, *_THRESHOLD_METRICS), float("nan"))
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    found = np.append(0, np.cumsum(positive[order])[last_of_ties])  # at each threshold, from above all scores down
    called = np.append(0, last_of_ties + 1)
    wrong, defects, good = called - found, positive.sum(), (~positive).sum()
    recall, false_alarms = found / defects, wrong / good
    values = (
        np.diff(found) @ (found[1:] / called[1:]) / defects,
        np.diff(wrong) @ (found[1:] + found[:-1]) / (2 * defects * good),
        (2 * found / (called + defects)).max(),
        recall[false_alarms <= false_alarm_rate].max(),
        false_alarms[recall == 1].min(),
    )
    return {name: float(value) for name, value in zip((*_RANKING_METRICS, *_THRESHOLD_METRICS), values, strict=True)}


def average_precisions(probabilities: np.ndarray, labels: np.ndarray, defect_free_id: int | None) -> dict[str, float]:
    """Return `ap` and, with more than two classes, `defect_ap` of [`DefectClassification`], where images tell them."""
    metrics = _classification_metrics(probabilities, labels, defect_free_id, FALSE_ALARM_RATE)
    return {name: metrics[name] for name in ("ap", "defect_ap") if name in metrics and not np.isnan(metrics[name])}


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """
    Return the mean gap between confidence and accuracy over equal bins of the confidence (Guo et al. 2017).

    Args:
        probabilities: `(N, K)`.
        labels: `(N,)`.
        bins: number of bins.
    """
    confidence, correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bin_of_image = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(bin_of_image, weights=confidence - correct, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def defect_scores(probabilities: np.ndarray, defect_free_id: int) -> np.ndarray:
    """Return `P(defect)`, `(N,)`, of probabilities `(N, K)`: `KGLForImageClassification.decide`'s sum for arrays."""
    return np.delete(probabilities, defect_free_id, axis=1).sum(axis=1)


def decision_rates(
    positive: np.ndarray, scores: np.ndarray, threshold: float, suffix: str = "at_operating_point"
) -> dict[str, float | list[float]]:
    """
    Return `recall_SUFFIX` and `false_alarm_rate_SUFFIX` of the decision `score >= threshold`, with Wilson's interval.

    Args:
        positive: `(N,)` bool, the defective images.
        scores: `P(defect)`, `(N,)`.
        threshold: in 0..1.
        suffix: of the names.
    """
    called_defective = scores >= threshold
    rates: dict[str, float | list[float]] = {}
    for name, decisions in (
        ("recall", called_defective[positive]),
        ("false_alarm_rate", called_defective[~positive]),
    ):
        rates[f"{name}_{suffix}"] = float(decisions.mean()) if len(decisions) else float("nan")
        rates[f"{name}_{suffix}_interval"] = wilson_interval(decisions)
    return rates


def count_decisions(
    defective: np.ndarray, scores: np.ndarray, threshold: float, look_again_threshold: float | None = None
) -> dict[str, dict[str, int]]:
    """
    Return how many `good` and how many `defective` images are `called_good`, to `look_again` and `called_defective`.

    Args:
        defective: `(N,)` bool.
        scores: `P(defect)`, `(N,)`.
        threshold: an image is called defective from it on.
        look_again_threshold: an image is to be looked at again from it up to the threshold; without it no image is.
    """
    edges, names = [threshold], ["called_good", "called_defective"]
    if look_again_threshold is not None:
        edges, names = [look_again_threshold, threshold], ["called_good", "look_again", "called_defective"]
    decided = np.digitize(scores, edges)
    counts = {
        kind: np.bincount(decided[rows], minlength=len(names)).tolist()
        for kind, rows in (("good", ~defective), ("defective", defective))
    }
    return {kind: dict(zip(names, of_kind, strict=True)) for kind, of_kind in counts.items()}


def wilson_interval(outcomes: np.ndarray) -> list[float]:
    """
    Return Wilson's 95 % interval of the share of True in `(N,)` bool; 0..1 for N = 0.

    A bootstrap interval has no width where all outcomes are alike, however few they are.
    """
    if len(outcomes) == 0:
        return [0.0, 1.0]
    interval = binomtest(int(outcomes.sum()), len(outcomes)).proportion_ci(method="wilson")
    return [float(interval.low), float(interval.high)]


__all__ = [
    "FALSE_ALARM_RATE",
    "METRIC_TITLES",
    "DefectClassification",
    "average_precisions",
    "count_decisions",
    "decision_rates",
    "defect_scores",
    "expected_calibration_error",
    "paired_bootstrap",
    "wilson_interval",
]
