"""Class-balanced sampling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class BalancedSampler(Sampler[int]):
    """
    As many images an epoch as there are, the same number of each class (give or take one).

    Within a class every image comes once before any comes again. The order depends on the seed and the epoch
    alone, so all processes draw the same one, each takes its share of it, and a resumed run goes on in it.
    """

    def __init__(self, labels: Sequence[int], seed: int) -> None:
        self._of_class = [np.flatnonzero(np.asarray(labels) == label) for label in np.unique(labels)]
        self._size, self._seed, self._epoch = len(labels), seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Draw another order from now on."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self._seed, self._epoch])
        share, rest = divmod(self._size, len(self._of_class))
        larger = set(generator.permutation(len(self._of_class))[:rest].tolist())
        drawn = []
        for index, rows in enumerate(self._of_class):
            wanted = share + (index in larger)
            rounds = [generator.permutation(rows) for _ in range(-(-wanted // len(rows)))]
            drawn.append(np.concatenate(rounds)[:wanted])
        yield from generator.permutation(np.concatenate(drawn)).tolist()


__all__ = ["BalancedSampler"]
