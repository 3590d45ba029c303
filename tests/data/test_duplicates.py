"""Duplicate search and merged groups."""

import time

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from kgl.data.duplicates import find_near_duplicates, merge_groups, perceptual_hash
from kgl.data.synthetic import generate_surface


def brute_force(hashes, distance):
    bits = np.unpackbits(hashes.view(np.uint8).reshape(len(hashes), -1), axis=1).astype(int)
    near = (bits[:, None] != bits[None]).sum(-1) <= distance
    numbers = np.arange(len(hashes))
    for _ in hashes:
        numbers = np.array([numbers[row].min() for row in near])
    return numbers


def partition(numbers):
    return {frozenset(np.flatnonzero(numbers == number).tolist()) for number in np.unique(numbers)}


@pytest.mark.parametrize("distance", [0, 1, 20, 100, 120])
def test_near_duplicates_are_those_of_all_pairs(distance):
    """Over more than one block and with chains."""
    generator = np.random.default_rng(distance)
    hashes = generator.integers(0, 2**64, (60, 4), dtype=np.uint64)
    chain = np.repeat(hashes[:1], 100, axis=0)
    for link in range(1, 100):
        chain[link] = chain[link - 1]
        chain[link, link % 4] ^= np.uint64(1) << np.uint64(link % 64)
    together = np.concatenate([hashes, hashes[5:9], chain])[generator.permutation(164)]
    assert partition(find_near_duplicates(together, distance)) == partition(brute_force(together, distance))


@pytest.mark.parametrize("seed", range(5))
def test_copies_are_near_and_other_images_far(seed, tmp_path):
    def distance(one, other):
        return int(np.bitwise_count(perceptual_hash(one) ^ perceptual_hash(other)).sum())

    surface = Image.fromarray(generate_surface("scratch", 128, seed).image)
    surface.save(tmp_path / "copy.jpg", quality=80)
    assert distance(surface, Image.open(tmp_path / "copy.jpg")) <= 16
    assert distance(surface, ImageEnhance.Brightness(surface).enhance(0.8)) <= 16
    assert distance(surface, surface.resize((96, 96))) <= 16
    assert distance(surface, surface.transpose(Image.Transpose.ROTATE_90)) > 60
    assert distance(surface, Image.fromarray(generate_surface("scratch", 128, seed + 5).image)) > 60


def test_merged_groups_have_the_first_name():
    assert merge_groups(["c", "b", "a", "d", "d"], [0, 1, 0, 2, 3], [7, 8, 9, 8, 10]) == ["a", "b", "a", "b", "b"]
    assert merge_groups(["b", "a"], [0, 1]) == ["b", "a"]


def test_groups_of_100_000_images_are_merged_in_seconds():
    count = 100_000
    groups, numbers = [f"images/{index:06d}.png" for index in range(count)], np.arange(count) // 2
    digests = [f"{index // 3:040x}" for index in range(count)]
    started = time.perf_counter()
    merged = merge_groups(groups, digests, numbers.tolist())
    assert time.perf_counter() - started < 10
    # Pairs and triples chain over whole blocks of six.
    assert len(set(merged)) == -(-count // 6) and merged[5] == groups[0] and merged[6] == groups[6]
