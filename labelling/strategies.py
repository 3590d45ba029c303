"""Which images to label next: scores of unlabelled images, and ways to choose among them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import expit, logit
from scipy.stats import entropy, rankdata
from sklearn.metrics import pairwise_distances_argmin_min

from ..evaluation.metrics import defect_scores
from ..training.cell_scores import farthest_rows


SHORTLIST = 5  # times the wanted number: the highest scores, among which the choice is spread; half of all at most
_EPS = 1e-6


@dataclass(frozen=True)
class Candidates:
    """
    Unlabelled images.

    Attributes:
        uncertainty: entropy of the decision in bits, `(N,)`.
        anomaly: how unusual their most unusual cells are, `(N,)`.
        features: standardised, `(N, P)`.
        labelled: features of the images that the classifier was trained on, `(M, P)`.
    """

    uncertainty: np.ndarray
    anomaly: np.ndarray
    features: np.ndarray
    labelled: np.ndarray


def decision_entropy(probabilities: np.ndarray, defect_free_id: int | None, threshold: float) -> np.ndarray:
    """
    Return the entropy of the decision in bits, `(N,)`: between good and defective, and among the defects.

    `P(defect)` is moved so that the threshold becomes one half; by the chain rule, the entropy is that of good against
    defective, plus that among the defects as often as there is one.

    Args:
        probabilities: `(N, K)`.
        defect_free_id: index of the class without defects; without one, it is the entropy of the classes.
        threshold: of `P(defect)`.
    """
    if defect_free_id is None:
        return entropy(probabilities, base=2, axis=1)
    scores = np.clip(defect_scores(probabilities, defect_free_id), _EPS, 1 - _EPS)
    moved = expit(logit(scores) - logit(np.clip(threshold, _EPS, 1 - _EPS)))
    kinds = np.delete(probabilities, defect_free_id, axis=1)
    return entropy(np.stack([moved, 1 - moved]), base=2) + moved * entropy(kinds, base=2, axis=1)


def k_center(features: np.ndarray, centers: np.ndarray, count: int) -> np.ndarray:
    """
    Return rows chosen one by one, each the one farthest from those before (Sener and Savarese 2018).

    Args:
        features: to choose among, `(N, P)`.
        centers: chosen before, `(M, P)`; without any, the first is the one farthest from the mean.
        count: how many; all where there are fewer.
    """
    start = centers if len(centers) else features.mean(axis=0, keepdims=True)
    nearest = torch.from_numpy(pairwise_distances_argmin_min(features, start)[1]).square()
    return farthest_rows(torch.from_numpy(features).double(), nearest, min(count, len(features))).numpy()


def _highest(scores: np.ndarray, count: int) -> np.ndarray:
    return np.argsort(-scores, kind="stable")[:count]


def _spread(scores: np.ndarray, candidates: Candidates, count: int) -> np.ndarray:
    """Return rows among the highest scores that are far from each other and from the labelled images."""
    shortlist = _highest(scores, min(SHORTLIST * count, max(count, len(scores) // 2)))
    return shortlist[k_center(candidates.features[shortlist], candidates.labelled, count)]


def _both(candidates: Candidates) -> np.ndarray:
    return rankdata(candidates.uncertainty) + rankdata(candidates.anomaly)


# Name -> function of candidates, count and a generator that returns row numbers, best first.
STRATEGIES: dict[str, Callable[[Candidates, int, np.random.Generator], np.ndarray]] = {
    "random": lambda some, count, generator: generator.permutation(len(some.anomaly))[:count],
    "uncertainty": lambda some, count, generator: _highest(some.uncertainty, count),
    "anomaly": lambda some, count, generator: _highest(some.anomaly, count),
    "both": lambda some, count, generator: _highest(_both(some), count),
    "diverse_both": lambda some, count, generator: _spread(_both(some), some, count),
}


def standardize(features: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return two sets of features, `(N, P)` and `(M, P)`, scaled by the mean and deviation of both together."""
    both = np.concatenate([features, others])
    mean, deviation = both.mean(axis=0), both.std(axis=0) + _EPS
    return (features - mean) / deviation, (others - mean) / deviation


__all__ = ["STRATEGIES", "Candidates", "decision_entropy", "k_center", "standardize"]
