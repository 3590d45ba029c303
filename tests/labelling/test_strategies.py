"""Entropy of the decision, the greedy k-center choice, and the strategies on four images."""

import numpy as np
import pytest

from kgl.labelling.choices import DEFAULT_STRATEGY
from kgl.labelling.choices import STRATEGIES as NAMES
from kgl.labelling.strategies import STRATEGIES, Candidates, decision_entropy, k_center, standardize


def test_entropy_is_highest_at_the_threshold():
    probabilities = np.array([[0.9, 0.1], [0.7, 0.3], [0.5, 0.5], [0.01, 0.99]])
    assert decision_entropy(probabilities, 0, 0.3).argmax() == 1
    assert decision_entropy(probabilities, 0, 0.3)[1] == pytest.approx(1)
    assert decision_entropy(probabilities, 0, 0.5).argmax() == 2
    assert decision_entropy(probabilities, None, 0.3)[2] == pytest.approx(1)


def test_entropy_at_one_half_is_that_of_the_classes():
    """The chain rule: good against defective, and the defects among themselves."""
    probabilities = np.array([[0.5, 0.25, 0.25], [0.2, 0.7, 0.1]])
    found = decision_entropy(probabilities, 0, 0.5)
    np.testing.assert_allclose(found, -(probabilities * np.log2(probabilities)).sum(axis=1))
    assert found[0] == pytest.approx(1.5)


def test_k_center_takes_the_farthest_point_each_time():
    points = np.array([[0.0], [1.0], [10.0], [10.5], [4.0]])
    assert k_center(points, np.array([[0.0]]), 3).tolist() == [3, 4, 1]
    assert k_center(points, np.zeros((0, 1)), 2).tolist() == [3, 0]  # mean 5.1
    assert sorted(k_center(points, np.array([[0.0]]), 9).tolist()) == [0, 1, 2, 3, 4]


CANDIDATES = Candidates(
    uncertainty=np.array([0.9, 0.8, 0.1, 0.2]),
    anomaly=np.array([0.0, 2.0, 3.0, 1.0]),
    features=np.array([[0.0], [0.1], [1.0], [5.0]]),
    labelled=np.array([[0.2]]),
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("uncertainty", [0, 1]),
        ("anomaly", [2, 1]),
        ("both", [1, 0]),  # ranks 3 + 3, 4 + 1, 1 + 4, 2 + 2; equal ones in order
        ("diverse_both", [0, 1]),  # the shortlist is half of all; 0 is farther from the labelled one
    ],
)
def test_strategies_choose(name, expected):
    assert STRATEGIES[name](CANDIDATES, 2, np.random.default_rng(0)).tolist() == expected


def test_diverse_choice_stays_in_the_shortlist():
    many = Candidates(np.arange(20.0), np.arange(20.0), np.arange(20.0)[:, None] % 7, np.zeros((1, 1)))
    chosen = STRATEGIES["diverse_both"](many, 1, np.random.default_rng(0))
    assert chosen.tolist() == [19]  # of rows 15 to 19, not 6 or 13


def test_random_choice_takes_each_image_once():
    chosen = STRATEGIES["random"](CANDIDATES, 4, np.random.default_rng(0))
    assert sorted(chosen.tolist()) == [0, 1, 2, 3]


def test_names_of_the_command_are_those_of_the_strategies():
    assert tuple(STRATEGIES) == NAMES and DEFAULT_STRATEGY in NAMES


def test_standardized_features_have_one_scale():
    first, second = standardize(np.array([[0.0, 100.0], [1.0, 300.0]]), np.array([[2.0, 200.0]]))
    both = np.concatenate([first, second])
    np.testing.assert_allclose(both.mean(axis=0), 0, atol=1e-9)
    np.testing.assert_allclose(both.std(axis=0), 1, atol=1e-4)
