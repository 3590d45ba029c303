"""Class-balanced sampling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler


class BalancedSampler(Sampler[int]):
    """
    Sampler that draws every class equally often, up to one image, in epochs as long as the dataset.

    Within a class, every image is drawn once before any is drawn again. The order depends on the seed and the epoch
    alone: all processes draw the same order and take their share of it, and a resumed run continues in it.

    Args:
        labels: class index of each image.
        seed: of the order.
    """

    def __init__(self, labels: Sequence[int], seed: int) -> None:
        self._rows_by_class = [np.flatnonzero(np.asarray(labels) == label) for label in np.unique(labels)]
        self._size, self._seed, self._epoch = len(labels), seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Select the order of this epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[int]:
        generator = np.random.default_rng([self._seed, self._epoch])
        share, rest = divmod(self._size, len(self._rows_by_class))
        larger = set(generator.permutation(len(self._rows_by_class))[:rest].tolist())
        drawn = []
        for index, rows in enumerate(self._rows_by_class):
            count = share + (index in larger)
            rounds = [generator.permutation(rows) for _ in range(-(-count // len(rows)))]
            drawn.append(np.concatenate(rounds)[:count])
        yield from generator.permutation(np.concatenate(drawn)).tolist()


__all__ = ["BalancedSampler"]
