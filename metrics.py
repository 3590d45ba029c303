"""Metrics computed on this machine: `evaluate.Metric` classes that need no network."""

from __future__ import annotations

import datasets
import evaluate
import numpy as np
from sklearn.metrics import average_precision_score, balanced_accuracy_score, roc_auc_score


class DefectClassification(evaluate.Metric):
    """
    Accuracy, balanced accuracy, average precision (AP) and AUROC of class probabilities.

    `compute(predictions=probabilities (N, K), references=labels (N,), defect_free_id=...)` returns `accuracy`,
    `balanced_accuracy`, `ap` and `auroc`. With two classes the last two rank by the defect class (the second, or the
    one that is not `defect_free_id`); with more they are macro averages of one class against the rest, and, given
    `defect_free_id`, `defect_ap` and `defect_auroc` rank all defects against the defect-free class by
    `1 - P(defect-free)`.

    Raises:
        ValueError: hard labels instead of probabilities, or a class that no reference has.
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
        self, predictions: list[list[float]], references: list[int], defect_free_id: int | None = None
    ) -> dict[str, float]:
        scores, labels = np.asarray(predictions), np.asarray(references)
        classes = scores.shape[1]
        if np.isin(scores, (0.0, 1.0)).all() and len(scores) > 1:
            raise ValueError("predictions are hard labels: AP and AUROC rank, so they need probabilities.")
        absent = sorted(set(range(classes)) - set(labels.tolist()))
        if absent:
            raise ValueError(f"No reference has class {absent}: AP and AUROC are not defined for it.")
        answers = scores.argmax(axis=1)
        results = {
            "accuracy": float((answers == labels).mean()),
            "balanced_accuracy": float(balanced_accuracy_score(labels, answers)),
        }
        if classes == 2:
            positive = 1 if defect_free_id is None else 1 - defect_free_id
            return results | _ranking(labels == positive, scores[:, positive])
        each = [_ranking(labels == index, scores[:, index]) for index in range(classes)]
        results |= {name: float(np.mean([one[name] for one in each])) for name in ("ap", "auroc")}
        if defect_free_id is not None:
            defect = 1 - scores[:, defect_free_id]
            results |= {f"defect_{name}": value for name, value in _ranking(labels != defect_free_id, defect).items()}
        return results


def _ranking(positive: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    return {
        "ap": float(average_precision_score(positive, scores)),
        "auroc": float(roc_auc_score(positive, scores)),
    }


def pixel_average_precision(maps: list[np.ndarray], masks: list[np.ndarray]) -> float:
    """AP of all pixels of `maps` against `masks`, each pair `(H, W)`, pooled over the pictures."""
    truth = np.concatenate([mask.ravel() for mask in masks])
    return float(average_precision_score(truth, np.concatenate([one.ravel() for one in maps])))


def pointing_game(maps: list[np.ndarray], masks: list[np.ndarray]) -> float:
    """The share of pictures whose map has its peak on the mask (Zhang et al. 2016), each pair `(H, W)`."""
    return float(np.mean([mask.flat[one.argmax()] for one, mask in zip(maps, masks, strict=True)]))


def concentration(maps: np.ndarray) -> dict[str, float]:
    """
    How concentrated maps `(N, h, w)`, not negative, are: means over the pictures, those of an all-zero map left out.

    `entropy` is that of the map as a distribution over cells, 1 where all are alike and 0 where one has everything;
    `area90` the smallest share of the cells that holds 90 % of the sum.
    """
    flat = maps.reshape(len(maps), -1).astype(np.float64)
    flat = flat[flat.sum(axis=1) > 0]
    if len(flat) == 0:
        return {"entropy": float("nan"), "area90": float("nan")}
    shares = -np.sort(-flat / flat.sum(axis=1, keepdims=True), axis=1)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    needed = (shares.cumsum(axis=1) < 0.9 - 1e-12).sum(axis=1) + 1
    return {
        "entropy": float(-(shares * logs).sum(axis=1).mean() / np.log(shares.shape[1])),
        "area90": float(needed.mean() / shares.shape[1]),
    }


def precision_and_recall(found: list[np.ndarray], masks: list[np.ndarray]) -> tuple[float, float]:
    """Of bool arrays against masks of the same grids, all cells pooled; precision is 0 where nothing was found."""
    taken, truth = (np.concatenate([one.ravel() for one in arrays]) for arrays in (found, masks))
    hits = np.count_nonzero(taken & truth)
    return hits / max(np.count_nonzero(taken), 1), hits / max(np.count_nonzero(truth), 1)


__all__ = [
    "DefectClassification",
    "concentration",
    "pixel_average_precision",
    "pointing_game",
    "precision_and_recall",
]
