"""Class-balanced sampling, and shuffling of images in shards."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice

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


class ShardSampler(Sampler[int]):
    """
    Sampler that shuffles blocks of images that are read together, and the images of some blocks in a buffer.

    The order depends on the seed, the epoch, the batch size and the number of readers alone, so a resumed run
    continues in it, and no image is read to get there. Each reader gets batches of its own blocks: accelerate and
    PyTorch deal the batches to processes, and each process to its workers, in turns.

    Args:
        blocks: row numbers of each block.
        seed: of the order.
        buffered: blocks whose images are shuffled together.
        batch_size: of one process.
        readers: processes times workers of each.
    """

    def __init__(
        self, blocks: Sequence[np.ndarray], seed: int, buffered: int, batch_size: int = 1, readers: int = 1
    ) -> None:
        self._blocks, self._seed, self._epoch = blocks, seed, 0
        self._buffered, self._batch_size, self._readers = buffered, batch_size, readers

    def set_epoch(self, epoch: int) -> None:
        """Select the order of this epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return sum(map(len, self._blocks))

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng([self._seed, self._epoch]).permutation(len(self._blocks)).tolist()
        waiting = [self._rows(order[reader :: self._readers], reader) for reader in range(self._readers)]
        while waiting:
            batches = [list(islice(rows, self._batch_size)) for rows in waiting]
            waiting = [rows for rows, batch in zip(waiting, batches, strict=True) if batch]
            for batch in batches:
                yield from batch

    def _rows(self, blocks: list[int], reader: int) -> Iterator[int]:
        """Yield the rows of a reader's blocks, shuffled in the buffer."""
        generator = np.random.default_rng([self._seed, self._epoch, reader])
        for start in range(0, len(blocks), self._buffered):
            rows = np.concatenate([self._blocks[block] for block in blocks[start : start + self._buffered]])
            yield from generator.permutation(rows).tolist()


__all__ = ["BalancedSampler", "ShardSampler"]
