"""The power law on exact, capped, falling and noisy values."""

import numpy as np
import pytest

from kgl.labelling.power_law import PowerLaw


SIZES = np.array([2, 4, 8, 16, 32])


def test_exact_values_give_the_law_back():
    laws = [(0.9, 0.6, 0.5), (0.7, 0.4, 1.0), (0.95, 0.3, 0.25)]
    values = np.array([[a - b * float(size) ** -c for size in SIZES] for a, b, c in laws])
    law = PowerLaw.fit(SIZES, values)
    np.testing.assert_allclose(np.stack([law.a, law.b, law.c], axis=1), laws, atol=1e-6)
    np.testing.assert_allclose(law.gain(32), [b * (32.0**-c - 64.0**-c) for _, b, c in laws], atol=1e-8)
    np.testing.assert_allclose(law.value(SIZES), values, atol=1e-8)


def test_no_value_lies_above_the_best():
    law = PowerLaw.fit(SIZES, np.array([[0.5, 0.65, 0.8, 0.95, 1.0]]))
    assert law.a[0] <= 1 and law.value(1e6)[0] <= 1
    assert law.gain(32)[0] < 0.05


def test_falling_values_gain_nothing():
    law = PowerLaw.fit(SIZES, np.array([[0.9, 0.8, 0.7, 0.6, 0.5]]))
    assert law.b[0] == 0 and law.a[0] == pytest.approx(0.7) and law.gain(8)[0] == 0
