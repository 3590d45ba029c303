"""The power law of learning curves, `a - b n^-c`, fitted to means and to many resampled means at once."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


_EXPONENTS = np.linspace(0.05, 2, 391)  # steps of .005
BEST = 1.0  # no value lies above it


@dataclass(frozen=True)
class PowerLaw:
    """
    Curves `a - b n^-c` with `b >= 0` and `a <= 1`, one per fitted row of values.

    Attributes:
        a: values of endlessly many labels, `(D,)`.
        b: what a single label leaves to gain, `(D,)`.
        c: how fast it is gained, `(D,)`.
    """

    a: np.ndarray
    b: np.ndarray
    c: np.ndarray

    @classmethod
    def fit(cls, sizes: np.ndarray, values: np.ndarray) -> PowerLaw:
        """
        Fit by least squares: for each exponent of a fine grid the best `a` and `b` in closed form.

        Args:
            sizes: numbers of labels, `(B,)`, three or more.
            values: `(D, B)`, at most 1.
        """
        best, least = np.zeros((3, len(values))), np.full(len(values), np.inf)
        mean = values.mean(axis=1)
        for c in _EXPONENTS:
            x = sizes.astype(float) ** -c
            b = -((values - mean[:, None]) @ (x - x.mean())) / ((x - x.mean()) ** 2).sum()
            b = np.maximum(b, 0)
            a = mean + b * x.mean()
            above = a > BEST
            b = np.where(above, (BEST - values) @ x / (x @ x), b)
            a = np.where(above, BEST, a)
            errors = ((values - a[:, None] + b[:, None] * x) ** 2).sum(axis=1)
            better = errors < least - 1e-15
            least[better] = errors[better]
            best[:, better] = np.stack([a, b, np.full(len(b), c)])[:, better]
        return cls(*best)

    def value(self, size: float | np.ndarray) -> np.ndarray:
        """Return the curves' values at a number of labels, `(D,)`, or at several, `(D, S)`."""
        at = np.asarray(size, dtype=float)
        if at.ndim == 0:
            return self.a - self.b * at**-self.c
        return self.a[:, None] - self.b[:, None] * at[None] ** -self.c[:, None]

    def gain(self, size: float) -> np.ndarray:
        """Return what twice as many labels bring, `(D,)`."""
        return self.value(2 * size) - self.value(size)


__all__ = ["BEST", "PowerLaw"]
