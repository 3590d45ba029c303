"""Duplicate search: equal bytes and near-equal perceptual hashes."""

from __future__ import annotations

from collections.abc import Sequence

import imagehash
import numpy as np
from PIL import Image as PILImage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


HASH_BITS = 256
_BLOCK = 128


def perceptual_hash(image: PILImage.Image) -> np.ndarray:
    """
    `imagehash`'s pHash of the low frequencies in 256 bits, as `(4,)` uint64.

    Two images of unlike things differ in about half of the bits; the same image in another size, compression or
    light in few.
    """
    bits = imagehash.phash(image, hash_size=16).hash
    return np.packbits(bits.ravel()).view(np.uint64)


def find_near_duplicates(hashes: np.ndarray, distance: int) -> np.ndarray:
    """
    `(N,)` a number for each image, the same for those that chains of pairs at most `distance` bits apart join.

    Every pair is compared, block by block: memory is linear in N whatever comes out, time quadratic (10 to 20 seconds
    for 100,000 images).

    Args:
        hashes: `(N, 4)` uint64.
        distance: 0 joins equal hashes only.
    """
    unique, of_unique = np.unique(hashes, axis=0, return_inverse=True)
    numbers = np.arange(len(unique))
    if distance > 0:
        for start in range(0, len(unique), _BLOCK):
            block = unique[start : start + _BLOCK]
            apart = np.zeros((len(block), len(unique) - start), dtype=np.uint16)
            for word in range(unique.shape[1]):
                apart += np.bitwise_count(block[:, word, None] ^ unique[None, start:, word])
            near, other = np.nonzero(apart <= distance)
            near, other = near + start, other + start
            fresh = numbers[near] != numbers[other]  # joined before: nothing to add
            if fresh.any():
                numbers = _join_components(numbers, near[fresh], other[fresh])
    return numbers[of_unique.ravel()]


def _join_components(numbers: np.ndarray, near: np.ndarray, other: np.ndarray) -> np.ndarray:
    size = numbers.max() + 1
    edges = coo_array((np.ones(len(near), dtype=bool), (numbers[near], numbers[other])), shape=(size, size))
    _, components = connected_components(edges, directed=False)
    return components[numbers]


def merge_groups(groups: Sequence[str], same: Sequence[Sequence[object]]) -> list[str]:
    """
    Groups that hold images which show the same become one, named after its first.

    Args:
        groups: one an image.
        same: any number of lists, one value an image; equal values in one of them join the groups of their images.
    """
    names, codes = np.unique(np.asarray(groups, dtype=object).astype(str), return_inverse=True)
    rows, columns, nodes = [], [], len(names)
    for values in same:
        _, of_value = np.unique(np.asarray(values), return_inverse=True)
        rows.append(codes)
        columns.append(nodes + of_value)
        nodes += of_value.max() + 1
    edges = (np.ones(sum(map(len, rows)), dtype=bool), (np.concatenate(rows), np.concatenate(columns)))
    _, component = connected_components(coo_array(edges, shape=(nodes, nodes)), directed=False)
    first_of: dict[int, str] = {}
    for name, code in zip(names.tolist(), component[: len(names)].tolist(), strict=True):
        first_of.setdefault(code, name)
    return [first_of[component[code]] for code in codes.tolist()]


__all__ = ["HASH_BITS", "find_near_duplicates", "merge_groups", "perceptual_hash"]
