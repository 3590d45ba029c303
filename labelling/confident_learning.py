"""Confident learning (Northcutt, Jiang and Chuang 2021): labels that out-of-sample probabilities contradict."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Doubts:
    """
    What probabilities say of N labels.

    Attributes:
        suggested: the class that each image is counted in, `(N,)`; its label where nothing contradicts it.
        margin: probability of the label minus that of the best other class, `(N,)` in -1..1, NaN where unknown.
    """

    suggested: np.ndarray
    margin: np.ndarray


def find_doubts(probabilities: np.ndarray, labels: np.ndarray) -> Doubts:
    """
    Find the off-diagonal entries of the confident joint.

    The threshold of a class is the mean probability of it among the images that carry its label. An image is counted
    in the most probable of the classes whose threshold its probabilities reach, so that a class of which the
    classifier is less sure asks for less.

    Args:
        probabilities: out of sample, `(N, K)`; NaN rows are images without a prediction.
        labels: `(N,)`.
    """
    known = ~np.isnan(probabilities[:, 0])
    thresholds = np.full(probabilities.shape[1], np.inf)
    for label in np.unique(labels[known]):
        thresholds[label] = probabilities[known & (labels == label), label].mean()
    reached = np.where(known[:, None] & (probabilities >= thresholds), probabilities, -1.0)
    counted = reached.argmax(axis=1)
    suggested = np.where(reached.max(axis=1) > 0, counted, labels)
    rows = np.arange(len(labels))
    others = probabilities.copy()
    others[rows, labels] = -np.inf
    margin = np.where(known, probabilities[rows, labels] - others.max(axis=1), np.nan)
    return Doubts(suggested, margin)


__all__ = ["Doubts", "find_doubts"]
