"""Duplicate search: near-equal perceptual hashes, and groups merged by it."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import imagehash
import numpy as np
from PIL import Image as PILImage
from scipy.cluster.hierarchy import DisjointSet
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


HASH_BITS = 256
_BLOCK = 128  # hashes compared with all others at once


def perceptual_hash(image: PILImage.Image) -> np.ndarray:
    """
    Return imagehash's pHash of 256 bits as `(4,)` uint64.

    The hashes of unrelated images differ in about half of the bits, those of copies in another size, compression or
    brightness in few.
    """
    bits = imagehash.phash(image, hash_size=16).hash
    return np.packbits(bits.ravel()).view(np.uint64)


def find_near_duplicates(hashes: np.ndarray, distance: int) -> np.ndarray:
    """
    Return a number per image `(N,)`, the same for images joined by chains of pairs at most `distance` bits apart.

    All pairs are compared in blocks: memory is linear in N, time quadratic (10 to 20 seconds for 100,000 images).

    Args:
        hashes: `(N, 4)` uint64.
        distance: 0 joins equal hashes only.
    """
    unique, unique_index = np.unique(hashes, axis=0, return_inverse=True)
    numbers = np.arange(len(unique))
    if distance > 0:
        for start in range(0, len(unique), _BLOCK):
            block = unique[start : start + _BLOCK]
            distances = np.zeros((len(block), len(unique) - start), dtype=np.uint16)
            for word in range(unique.shape[1]):
                distances += np.bitwise_count(block[:, word, None] ^ unique[None, start:, word])
            first, second = np.nonzero(distances <= distance)
            first, second = first + start, second + start
            is_new = numbers[first] != numbers[second]
            if is_new.any():
                numbers = _join(numbers, first[is_new], second[is_new])
    return numbers[unique_index.ravel()]


def _join(numbers: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    # Not DisjointSet: where most images are alike, one block has millions of pairs.
    size = numbers.max() + 1
    edges = coo_array((np.ones(len(first), dtype=bool), (numbers[first], numbers[second])), shape=(size, size))
    _, components = connected_components(edges, directed=False)
    return components[numbers]


def merge_groups(groups: Sequence[str], *values_per_image: Sequence[Hashable]) -> list[str]:
    """
    Merge groups whose images share a value; a merged group has the name that comes first in the alphabet.

    Args:
        groups: the group of each image.
        values_per_image: any number of sequences with one value per image, such as digests.
    """
    merged = DisjointSet(groups)
    for values in values_per_image:
        group_of_value: dict[Hashable, str] = {}
        for group, value in zip(groups, values, strict=True):
            merged.merge(group, group_of_value.setdefault(value, group))
    name_of_root: dict[str, str] = {}
    for group in sorted(set(groups)):
        name_of_root.setdefault(merged[group], group)
    return [name_of_root[merged[group]] for group in groups]


__all__ = ["HASH_BITS", "find_near_duplicates", "merge_groups", "perceptual_hash"]
