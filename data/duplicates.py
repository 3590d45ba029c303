"""Duplicate search: near-equal perceptual hashes, and groups merged by it."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Sequence
from itertools import combinations, pairwise, product
from math import comb

import imagehash
import numpy as np
from PIL import Image as PILImage
from scipy.cluster.hierarchy import DisjointSet
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components


HASH_BITS = 256
Pairs = tuple[np.ndarray, np.ndarray]
Key = tuple[tuple[int, int, int], ...]  # word, first bit and number of bits of each chunk

_BLOCK = 1 << 17  # hashes or pairs at once: what the cache holds
_SAMPLE = 1 << 14  # hashes that candidates are counted among
_KEY_BITS = 31
_POSITION_BITS, _POSITIONS = np.uint64(32), np.uint64(0xFFFFFFFF)
_FACTORS = np.random.default_rng(0).integers(2**64, size=HASH_BITS // 64, dtype=np.uint64) | np.uint64(1)
# Nanoseconds on one core: a hash sorted by one key, a candidate of it compared, and one of all pairs.
_SORT_COST, _CANDIDATE_COST, _PAIR_COST = 80, 20, 5


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

    Equal hashes count as one. Of the others only those are compared that have a key of [`choose_keys`] in common and
    are not joined yet; where keys would be too short to leave few, all pairs are. Memory is linear in N.

    Args:
        hashes: `(N, 4)` uint64.
        distance: 0 joins equal hashes only.
    """
    words = np.ascontiguousarray(hashes.T)
    order = _order_by(np.einsum("wn,w->n", words, _FACTORS))  # equal hashes have equal sums
    words = words[:, order]
    is_new = np.ones(len(order), dtype=bool)
    is_new[1:] = (words[:, 1:] != words[:, :-1]).any(axis=0)
    of_image = np.empty(len(order), dtype=np.int64)
    of_image[order] = np.cumsum(is_new) - 1
    words = words[:, is_new]
    numbers = _join_neighbours(words, distance)
    by_number = np.argsort(numbers, kind="stable")
    numbers[by_number] = _join_pairs(words[:, by_number], numbers[by_number], distance)
    return numbers[of_image]


def _join_neighbours(words: np.ndarray, distance: int) -> np.ndarray:
    """Return numbers of hashes, joined where they are neighbours in the order of one word: large groups soon are."""
    numbers = np.arange(words.shape[1])
    for word in words:
        order = _order_by(word)
        numbers = _join(numbers, *_keep_near(words, order[:-1], order[1:], distance))
    return numbers


def _order_by(values: np.ndarray) -> np.ndarray:
    """Return positions in the order of the upper 32 bits of uint64 values: a tenth of the time of `np.argsort`."""
    packed = values >> _POSITION_BITS << _POSITION_BITS
    packed |= np.arange(len(values), dtype=np.uint64)
    packed.sort()
    return (packed & _POSITIONS).astype(np.int64)


def _join_pairs(words: np.ndarray, numbers: np.ndarray, distance: int) -> np.ndarray:
    """Return the numbers joined by all pairs at most `distance` apart."""
    keys = choose_keys(words, numbers, distance)
    found = all_pairs(words, distance) if keys is None else keyed_pairs(words, numbers, keys, distance)
    waiting, count = [], 0
    for first, second in found:
        is_new = numbers[first] != numbers[second]
        if is_new.any():
            waiting.append((first[is_new], second[is_new]))
            count += len(waiting[-1][0])
        if count > _BLOCK:
            numbers, waiting, count = _join(numbers, *map(np.concatenate, zip(*waiting, strict=True))), [], 0
    return _join(numbers, *map(np.concatenate, zip(*waiting, strict=True))) if waiting else numbers


def _join(numbers: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Return the numbers with those of the pairs joined; the smallest stands for all of a component."""
    joined, ends = np.unique(np.stack([numbers[first], numbers[second]]), return_inverse=True)
    # Not DisjointSet: where most images are alike, there are millions of pairs.
    edges = coo_array((np.ones(len(first), dtype=bool), tuple(ends.reshape(2, -1))), shape=(len(joined),) * 2)
    _, components = connected_components(edges, directed=False)
    replacement = np.arange(len(numbers))
    replacement[joined] = joined[np.unique(components, return_index=True)[1]][components]
    return replacement[numbers]


def _keep_near(words: np.ndarray, first: np.ndarray, second: np.ndarray, distance: int) -> Pairs:
    """Return those of the pairs of hashes that are at most `distance` bits apart."""
    distances = np.zeros(len(first), dtype=np.uint16)
    for word in words:
        distances += np.bitwise_count(word[first] ^ word[second])
        near = distances <= distance
        first, second, distances = first[near], second[near], distances[near]
    return first, second


def all_pairs(words: np.ndarray, distance: int) -> Iterator[Pairs]:
    """Yield the pairs of hashes, `(4, N)`, at most `distance` bits apart, after comparing all of them."""
    count = words.shape[1]
    rows = max(1, _BLOCK // max(count, 1))
    for start in range(0, count, rows):
        distances = np.zeros((min(rows, count - start), count - start), dtype=np.uint8)
        for word in words[:3]:  # of all four, 256 bits would be too many for a byte
            distances += np.bitwise_count(word[start : start + rows, None] ^ word[None, start:])
        first, second = np.nonzero(distances <= distance)
        is_pair = first < second
        yield _keep_near(words, first[is_pair] + start, second[is_pair] + start, distance)


def keyed_pairs(words: np.ndarray, numbers: np.ndarray, keys: Sequence[Key], distance: int) -> Iterator[Pairs]:
    """
    Yield the pairs of hashes at most `distance` bits apart that have different numbers and any key in common.

    A pair comes once for each key that it has in common.

    Args:
        words: of the hashes, `(4, N)`.
        numbers: `(N,)`, ascending.
        keys: of [`distance_keys`].
        distance: at most the one that the keys are for.
    """
    count = words.shape[1]
    packed = np.empty(count, dtype=np.uint64)
    for key in keys:
        for start in range(0, count, _BLOCK):
            values = key_values(words[:, start : start + _BLOCK], key)
            positions = np.arange(start, start + len(values), dtype=np.uint64)
            packed[start : start + _BLOCK] = values << _POSITION_BITS | positions
        packed.sort()
        stop = 0
        while stop < count:
            start, last = stop, packed[min(stop + _BLOCK, count) - 1] >> _POSITION_BITS
            stop = int(np.searchsorted(packed, (last + np.uint64(1)) << _POSITION_BITS))
            values, order = packed[start:stop] >> _POSITION_BITS, (packed[start:stop] & _POSITIONS).astype(np.int64)
            yield from _pairs_of_equal(values, order, words, numbers[order], distance)


def _pairs_of_equal(
    values: np.ndarray, order: np.ndarray, words: np.ndarray, numbers: np.ndarray, distance: int
) -> Iterator[Pairs]:
    """Yield near pairs among the hashes `order` that have equal values and different numbers; both must ascend."""
    changes, word = values[1:] != values[:-1], words[0][order]
    second, ends = _run_ends(changes | (numbers[1:] != numbers[:-1])), _run_ends(changes)
    first = np.arange(len(order))
    while True:
        going_on = np.flatnonzero(second < ends)
        if len(going_on) == 0:
            return
        if len(going_on) < len(first):
            first, second, ends = first[going_on], second[going_on], ends[going_on]
        near = np.flatnonzero(np.bitwise_count(word[first] ^ word[second]) <= distance)
        yield _keep_near(words, order[first[near]], order[second[near]], distance)
        second += 1


def _run_ends(changes: np.ndarray) -> np.ndarray:
    """Return the position after the end of each element's run, from where elements differ from the one before."""
    ends = np.append(np.flatnonzero(changes) + 1, len(changes) + 1)
    return np.repeat(ends, np.diff(ends, prepend=0))


def key_values(words: np.ndarray, key: Key) -> np.ndarray:
    """Return the bits of a key's chunks, `(N,)` uint64 below 2^32."""
    values = np.zeros(words.shape[1], dtype=np.uint64)
    for word, start, bits in key:
        values <<= np.uint64(bits)
        values |= words[word] >> np.uint64(start) & np.uint64((1 << bits) - 1)
    return values


def distance_keys(distance: int, groups: int, together: int) -> list[Key]:
    """
    Return keys of which two hashes at most `distance` bits apart have at least one in common.

    The bits are cut into chunks, `distance + 1` and `together - 1` more for each of the groups that chunks form. Each
    choice of `together` chunks of one group is a key: one group at least has as many without a differing bit.
    """
    sizes = _group_sizes(distance, groups, together)
    chunks, keys = _split_bits(sum(sizes), _KEY_BITS // together), []
    for size in sizes:
        keys += combinations(chunks[:size], together)
        chunks = chunks[size:]
    return keys


def _group_sizes(distance: int, groups: int, together: int) -> list[int]:
    return [len(part) + together - 1 for part in np.array_split(np.arange(distance + 1), groups)]


def _split_bits(count: int, longest: int) -> list[tuple[int, int, int]]:
    """Return chunks of about equal length, none in two words."""
    chunks = []
    for word, part in enumerate(np.array_split(np.arange(count), HASH_BITS // 64)):
        bounds = np.linspace(0, 64, len(part) + 1).astype(int).tolist()
        chunks += [(word, low, min(high - low, longest)) for low, high in pairwise(bounds)]
    return chunks


def choose_keys(words: np.ndarray, numbers: np.ndarray, distance: int) -> list[Key] | None:
    """
    Return the keys of least cost, None where comparing all pairs costs less.

    More and longer keys cost more sorting and leave fewer candidates, which are counted in a sample.
    """
    count = words.shape[1]
    sample = np.random.default_rng(0).permutation(count)[:_SAMPLE]
    words, numbers = words[:, sample], numbers[sample]
    chosen, least = None, _PAIR_COST * count**2 / 2
    for together, groups in product(range(1, 4), range(1, distance + 2)):
        sizes = _group_sizes(distance, groups, together)
        number = sum(comb(size, together) for size in sizes)
        if sum(sizes) > HASH_BITS or number * _SORT_COST * count >= least:
            continue
        keys = distance_keys(distance, groups, together)
        found = np.mean([_count_candidates(key_values(words, key), numbers) for key in keys[:: -(-number // 2)]])
        cost = number * (_SORT_COST * count + _CANDIDATE_COST * found * (count / len(sample)) ** 2)
        if cost < least:
            chosen, least = keys, cost
    return chosen


def _count_candidates(values: np.ndarray, numbers: np.ndarray) -> int:
    """Return how many pairs have equal values and different numbers."""
    _, alike = np.unique(values, return_counts=True)
    _, joined = np.unique(values << np.uint64(32) | numbers.astype(np.uint64), return_counts=True)
    return int((alike**2).sum() - (joined**2).sum()) // 2


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
