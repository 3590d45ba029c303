"""Duplicate search and merged groups."""

import time

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from kgl.data import duplicates
from kgl.data.duplicates import (
    all_pairs,
    choose_keys,
    distance_keys,
    find_near_duplicates,
    keyed_pairs,
    merge_groups,
    perceptual_hash,
)
from kgl.data.synthetic import generate_surface


def brute_force(hashes, distance):
    bits = np.unpackbits(hashes.view(np.uint8).reshape(len(hashes), -1), axis=1).astype(int)
    near = (bits[:, None] != bits[None]).sum(-1) <= distance
    numbers = np.arange(len(hashes))
    for _ in hashes:
        numbers = np.array([numbers[row].min() for row in near])
    return numbers


def differ_in(hashes, bits, generator):
    """Return hashes that differ from given ones in a number of bits each."""
    changed = np.zeros((len(hashes), 256), dtype=np.uint8)
    for row, number in enumerate(bits):
        changed[row, generator.permutation(256)[:number]] = 1
    return hashes ^ np.packbits(changed, axis=1).view(np.uint64)


def pairs(found):
    return {(min(pair), max(pair)) for first, second in found for pair in np.stack([first, second], axis=1).tolist()}


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


@pytest.mark.parametrize(
    ("distance", "groups", "together"),
    [
        (0, 1, 1),
        (1, 1, 1),
        (2, 3, 2),
        (3, 1, 2),
        (7, 8, 1),
        (16, 1, 2),
        (16, 6, 2),
        (16, 8, 3),
        (20, 7, 3),
        (36, 37, 1),
    ],
)
def test_keys_find_the_pairs_of_all_pairs(distance, groups, together, monkeypatch):
    """Near-duplicates are planted at every distance up to two bits more; blocks are small."""
    monkeypatch.setattr(duplicates, "_BLOCK", 64)
    generator = np.random.default_rng(distance)
    far = generator.integers(0, 2**64, (20, 4), dtype=np.uint64)
    near = [differ_in(far, np.full(len(far), bits), generator) for bits in range(distance + 3)]
    hashes = np.concatenate([far, *near])
    words, numbers = np.ascontiguousarray(hashes.T), np.arange(len(hashes))
    expected = {
        (row, other)
        for row in range(len(hashes))
        for other in (
            row + 1 + np.flatnonzero(np.bitwise_count(hashes[row + 1 :] ^ hashes[row]).sum(1) <= distance)
        ).tolist()
    }
    assert len(expected) >= 20 * (distance + 1)
    assert pairs(all_pairs(words, distance)) == expected
    assert pairs(keyed_pairs(words, numbers, distance_keys(distance, groups, together), distance)) == expected


def test_pairs_of_one_number_are_left_out(monkeypatch):
    """And equal keys are compared with each other where a block would end between them."""
    monkeypatch.setattr(duplicates, "_BLOCK", 2)
    found = keyed_pairs(np.zeros((4, 5), dtype=np.uint64), np.array([0, 0, 0, 1, 1]), distance_keys(0, 1, 1), 0)
    assert pairs(found) == {(row, other) for row in (0, 1, 2) for other in (3, 4)}


@pytest.mark.parametrize("distance", [0, 8, 16, 24])
def test_keys_are_chosen_and_join_as_all_pairs_do(distance):
    generator = np.random.default_rng(distance)
    far = generator.integers(0, 2**64, (3000, 4), dtype=np.uint64)
    hashes = np.concatenate([far, differ_in(far[:900], np.arange(900) % 40, generator)])
    words = np.ascontiguousarray(hashes.T)
    assert choose_keys(words, np.arange(len(hashes)), distance) is not None
    near = (np.bitwise_count(far[:900] ^ hashes[3000:]).sum(1) <= distance).tolist()
    expected = {frozenset({row, 3000 + row}) for row in range(900) if near[row]}
    assert {group for group in partition(find_near_duplicates(hashes, distance)) if len(group) > 1} == expected


def test_all_pairs_are_compared_where_keys_would_be_short():
    words = np.random.default_rng(0).integers(0, 2**64, (4, 3000), dtype=np.uint64)
    assert choose_keys(words, np.arange(3000), 100) is None


def test_half_a_million_hashes_are_searched_in_seconds():
    """Most are blank images with equal hashes, or photographs of one part with hashes alike."""
    generator = np.random.default_rng(0)
    far = generator.integers(0, 2**64, (100_000, 4), dtype=np.uint64)
    alike = far[:1] ^ (np.uint64(1) << generator.integers(0, 64, (200_000, 4), dtype=np.uint64))
    started = time.process_time()
    numbers = find_near_duplicates(np.concatenate([far, far[1:2].repeat(200_000, axis=0), alike]), 16)
    assert time.process_time() - started < 20
    assert len(np.unique(numbers)) == 100_000
    assert (numbers[100_000:300_000] == numbers[1]).all() and (numbers[300_000:] == numbers[0]).all()


def test_no_hashes_have_no_duplicates():
    assert find_near_duplicates(np.zeros((0, 4), dtype=np.uint64), 16).shape == (0,)
    assert find_near_duplicates(np.zeros((1, 4), dtype=np.uint64), 16).tolist() == [0]


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
