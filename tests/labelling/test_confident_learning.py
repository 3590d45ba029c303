"""The confident joint of a table worked out by hand."""

import numpy as np

from kgl.labelling.confident_learning import confident_classes


LABELS = np.array([0, 0, 0, 1, 1, 2, 2])
PROBABILITIES = np.array([
    [0.9, 0.1, 0.0],
    [0.6, 0.3, 0.1],
    [0.1, 0.8, 0.1],  # labelled 0, counted in 1
    [0.2, 0.7, 0.1],
    [0.4, 0.5, 0.1],  # below the thresholds of 0 (.533) and 1 (.6): counted nowhere
    [0.1, 0.2, 0.7],
    [0.6, 0.3, 0.1],  # labelled 2, counted in 0
])  # fmt: skip


def test_off_diagonal_images_are_doubted():
    """Thresholds: (.9 + .6 + .1) / 3 = .533, (.7 + .5) / 2 = .6, (.7 + .1) / 2 = .4."""
    found = confident_classes(PROBABILITIES, LABELS)
    assert found.tolist() == [0, 0, 1, 1, 1, 2, 0]


def test_less_confident_class_asks_for_less():
    """.45 of class 1 suffices, whose mean is .4, and .5 of class 0 does not, whose mean is .9."""
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.5, 0.5], [0.65, 0.35]])
    labels = np.array([0, 0, 1, 0, 1])
    found = confident_classes(probabilities, labels)
    assert found.tolist() == [0, 0, 1, 1, 1]


def test_image_without_a_prediction_is_not_doubted():
    probabilities = PROBABILITIES.copy()
    probabilities[2] = np.nan
    found = confident_classes(probabilities, LABELS)
    assert found[2] == 0
    assert found[6] == 2  # the threshold of class 0 is .75 without it
