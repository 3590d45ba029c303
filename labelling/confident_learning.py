"""Confident learning (Northcutt, Jiang and Chuang 2021): labels that out-of-sample probabilities contradict."""

from __future__ import annotations

import numpy as np


def confident_classes(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """
    Return the class that each image is counted in by the confident joint, `(N,)`; its label where it is in none.

    The threshold of a class is the mean probability of it among the images that carry its label. An image is counted
    in the most probable of the classes whose threshold its probabilities reach, so that a class of which the
    classifier is less sure asks for less. Images off the diagonal, counted in another class than their label, are
    suspicious.

    Args:
        probabilities: out of sample, `(N, K)`; NaN rows are images without a prediction.
        labels: `(N,)`.
    """
    known = ~np.isnan(probabilities[:, 0])
    thresholds = np.full(probabilities.shape[1], np.inf)
    for label in np.unique(labels[known]):
        thresholds[label] = probabilities[known & (labels == label), label].mean()
    reached = np.where(known[:, None] & (probabilities >= thresholds), probabilities, -1.0)
    return np.where(reached.max(axis=1) > 0, reached.argmax(axis=1), labels)


__all__ = ["confident_classes"]
