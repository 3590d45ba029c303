"""Classification metrics as an `evaluate.Metric` that needs no network."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import datasets
import evaluate
import numpy as np
from scipy.stats import binomtest
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve


METRIC_TITLES = {
    "ap": "AP",
    "auroc": "AUROC",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "defect_ap": "AP, defective against good",
    "defect_auroc": "AUROC, defective against good",
    "f1_max": "F1 at its best threshold",
    "recall_at_false_alarm_rate": "Defects found at 5 % false alarms",
    "false_alarm_rate_at_zero_missed": "False alarms when no defect is missed",
    "map_ap": "Class map, pixel AP",
    "map_image_ap": "Class map, pixel AP per image",
    "map_cell_ap": "Class map, cell AP",
    "map_pointing": "Class map, peak on the defect",
    "map_entropy": "Class map, entropy",
    "map_area90": "Class map, area with 90 % of the sum",
    "saliency_ap": "Heat map, pixel AP",
    "saliency_image_ap": "Heat map, pixel AP per image",
    "saliency_cell_ap": "Heat map, cell AP",
    "saliency_pointing": "Heat map, peak on the defect",
    "saliency_entropy": "Heat map, entropy",
    "saliency_area90": "Heat map, area with 90 % of the sum",
}


class DefectClassification(evaluate.Metric):
    """
    How right class probabilities are, and how well they part defects from good parts.

    `compute(predictions=probabilities (N, K), references=labels (N,), defect_free_id=None, false_alarm_rate=0.05,
    bootstrap=0, seed=0)` returns

    - `accuracy` and `balanced_accuracy` of the likeliest class;
    - `ap` and `auroc`: with two classes of the defect class (the second, or the one that is not `defect_free_id`),
      with more the macro averages of one class against the rest, whose parts are `ap_per_class` and
      `auroc_per_class`; then also `macro_...` and `..._per_class` of the three figures below, each class being the
      defect in its turn;
    - with two classes, or with `defect_free_id`, how all defects rank against the good class by `1 - P(good)`:
      `defect_ap` and `defect_auroc` (with more than two classes), `f1_max`, the best F1 of any threshold;
      `recall_at_false_alarm_rate`, the largest share of defects found where at most `false_alarm_rate` of the good
      parts are called defective; and `false_alarm_rate_at_zero_missed`, the share of good parts that are called so
      where every defect is found;
    - with `bootstrap` draws, stratified by class, `<figure>_interval`: the 2.5 and 97.5 % quantiles of each figure.

    What is not defined, because one of the two sides has no images, is NaN; macro averages leave such classes out.

    Raises:
        ValueError: hard labels instead of probabilities.
    """

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
        false_alarm_rate: float = 0.05,
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
            drawn = [
                _classification_metrics(scores[picked], labels[picked], defect_free_id, false_alarm_rate)
                for picked in _bootstrap_draws(labels, bootstrap, seed)
            ]
            for name in [name for name, value in results.items() if isinstance(value, float)]:
                results[f"{name}_interval"] = _interval([one[name] for one in drawn])
        return results


def paired_bootstrap(
    before: np.ndarray,
    after: np.ndarray,
    labels: Sequence[int],
    defect_free_id: int | None,
    draws: int,
    false_alarm_rate: float = 0.05,
    seed: int = 0,
) -> tuple[dict[str, list[float]], dict[str, list[float]], dict[str, dict[str, float | list[float]]]]:
    """
    95 % intervals of two models' figures of [`DefectClassification`] on the same images, and of their difference.

    Args:
        before: probabilities `(N, K)`.
        after: the other model's.
        labels: `(N,)`.
        defect_free_id: index of the class without defects.
        draws: of the images, the same ones for both, stratified by class.
        false_alarm_rate: as in [`DefectClassification`].
        seed: of the draws.

    Returns:
        `<figure>_interval` of the first and of the second, and `difference` (after less before) with its `interval`
        of every figure.
    """
    labels = np.asarray(labels)

    def figures(picked: np.ndarray) -> list[dict[str, float]]:
        return [
            _classification_metrics(scores[picked], labels[picked], defect_free_id, false_alarm_rate)
            for scores in (before, after)
        ]

    one, other = figures(np.arange(len(labels)))
    names = [name for name, value in one.items() if isinstance(value, float)]
    drawn = [figures(picked) for picked in _bootstrap_draws(labels, draws, seed)]
    intervals = [
        {f"{name}_interval": _interval([pair[at][name] for pair in drawn]) for name in names} for at in (0, 1)
    ]
    differences = {
        name: {
            "difference": other[name] - one[name],
            "interval": _interval([pair[1][name] - pair[0][name] for pair in drawn]),
        }
        for name in names
    }
    return *intervals, differences


def _bootstrap_draws(labels: np.ndarray, count: int, seed: int) -> Iterator[np.ndarray]:
    """Bootstrap draws of row numbers, every class as large as it is."""
    generator = np.random.default_rng(seed)
    of_class = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for _ in range(count):
        yield np.concatenate([generator.choice(rows, len(rows)) for rows in of_class])


def _interval(values: list[float]) -> list[float]:
    return np.quantile(values, (0.025, 0.975)).tolist()


def _classification_metrics(
    scores: np.ndarray, labels: np.ndarray, defect_free_id: int | None, false_alarm_rate: float
) -> dict[str, float | list[float]]:
    answers = scores.argmax(axis=1)
    present = np.unique(labels)
    results: dict[str, float | list[float]] = {
        "accuracy": float((answers == labels).mean()),
        "balanced_accuracy": float(np.mean([(answers[labels == label] == label).mean() for label in present])),
    }
    two = scores.shape[1] == 2
    if two:
        defect_free_id = 0 if defect_free_id is None else defect_free_id
    else:
        one_by_one = [(labels == index, scores[:, index]) for index in range(scores.shape[1])]
        each = [_ranking(*one) | _decisions(*one, false_alarm_rate) for one in one_by_one]
        for name in each[0]:
            parts = [one[name] for one in each]
            macro = float(np.mean([part for part in parts if not np.isnan(part)] or [np.nan]))
            results[name if name in ("ap", "auroc") else f"macro_{name}"] = macro
            results[f"{name}_per_class"] = parts
    if defect_free_id is not None:
        defective, defect = labels != defect_free_id, defect_scores(scores, defect_free_id)
        results |= {name if two else f"defect_{name}": value for name, value in _ranking(defective, defect).items()}
        results |= _decisions(defective, defect, false_alarm_rate)
    return results


def _ranking(positive: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    if positive.all() or not positive.any():
        return {"ap": float("nan"), "auroc": float("nan")}
    return {
        "ap": float(average_precision_score(positive, scores)),
        "auroc": float(roc_auc_score(positive, scores)),
    }


def _decisions(positive: np.ndarray, scores: np.ndarray, false_alarm_rate: float) -> dict[str, float]:
    """What the best thresholds reach, `score >= threshold` meaning defect."""
    names = ("f1_max", "recall_at_false_alarm_rate", "false_alarm_rate_at_zero_missed")
    if positive.all() or not positive.any():
        return dict.fromkeys(names, float("nan"))
    precision, recall, _ = precision_recall_curve(positive, scores)
    alarms, found, _ = roc_curve(positive, scores, drop_intermediate=False)
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    values = (f1.max(), found[alarms <= false_alarm_rate].max(), alarms[found == 1].min())
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> float:
    """
    How far from its accuracy the confidence is, on average over `bins` equal intervals of it (Guo et al. 2017).

    Args:
        probabilities: `(N, K)`.
        labels: `(N,)`.
        bins: how many.
    """
    confidence, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    of_bin = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = np.bincount(of_bin, weights=confidence - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(labels))


def defect_scores(probabilities: np.ndarray, defect_free_id: int) -> np.ndarray:
    """`P(not defect-free)`, `(N,)`, of probabilities `(N, K)`; 1 less P(good) would lose what is small."""
    return np.delete(probabilities, defect_free_id, axis=1).sum(axis=1)


def decision_rates(positive: np.ndarray, scores: np.ndarray, threshold: float) -> dict[str, float | list[float]]:
    """The share of the positive images with `score >= threshold`, and of the others, each with its interval."""
    called = scores >= threshold
    rates: dict[str, float | list[float]] = {}
    for name, of_kind in (("recall", called[positive]), ("false_alarm_rate", called[~positive])):
        rates[f"{name}_at_operating_point"] = float(of_kind.mean()) if len(of_kind) else float("nan")
        rates[f"{name}_at_operating_point_interval"] = wilson_interval(of_kind)
    return rates


def wilson_interval(right: np.ndarray) -> list[float]:
    """
    Wilson's 95 % interval of the share of True in `(N,)` bool; 0..1 where there is nothing.

    A bootstrap has no width where all or none are right, however few there are.
    """
    if len(right) == 0:
        return [0.0, 1.0]
    around = binomtest(int(right.sum()), len(right)).proportion_ci(method="wilson")
    return [float(around.low), float(around.high)]


__all__ = [
    "METRIC_TITLES",
    "DefectClassification",
    "decision_rates",
    "defect_scores",
    "expected_calibration_error",
    "paired_bootstrap",
    "wilson_interval",
]
