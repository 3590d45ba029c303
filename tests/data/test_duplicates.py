"""Images that show the same."""

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from kgl.data.duplicates import find_near_duplicates, merge_groups, perceptual_hash
from kgl.data.schema import defect_dataset
from kgl.data.synthetic import generate_surface
from kgl.data.validation import find_duplicate_issues


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
def test_every_pair_counts(distance):
    """As compared one by one, over more than one block and with chains."""
    generator = np.random.default_rng(distance)
    hashes = generator.integers(0, 2**64, (60, 4), dtype=np.uint64)
    chain = np.repeat(hashes[:1], 100, axis=0)
    for link in range(1, 100):
        chain[link] = chain[link - 1]
        chain[link, link % 4] ^= np.uint64(1) << np.uint64(link % 64)
    together = np.concatenate([hashes, hashes[5:9], chain])[generator.permutation(164)]
    assert partition(find_near_duplicates(together, distance)) == partition(brute_force(together, distance))


@pytest.mark.parametrize("seed", range(5))
def test_copies_are_near_and_others_far(seed, tmp_path):
    def distance(one, other):
        return int(np.bitwise_count(perceptual_hash(one) ^ perceptual_hash(other)).sum())

    surface = Image.fromarray(generate_surface("scratch", 128, seed).image)
    surface.save(tmp_path / "copy.jpg", quality=80)
    assert distance(surface, Image.open(tmp_path / "copy.jpg")) <= 16
    assert distance(surface, ImageEnhance.Brightness(surface).enhance(0.8)) <= 16
    assert distance(surface, surface.resize((96, 96))) <= 16
    assert distance(surface, surface.transpose(Image.Transpose.ROTATE_90)) > 60
    assert distance(surface, Image.fromarray(generate_surface("scratch", 128, seed + 5).image)) > 60


def test_groups_are_joined_and_named_after_their_first():
    assert merge_groups(["c", "b", "a", "d", "d"], [[0, 1, 0, 2, 3], [7, 8, 9, 8, 10]]) == ["a", "b", "a", "b", "b"]
    assert merge_groups(["b", "a"], [[0, 1]]) == ["b", "a"]


def test_what_is_found_is_named():
    rows = defect_dataset(
        images=[None] * 6, labels=[*"xyxyxy"], names=[*"xy"], groups=[*"ABBCDE"], file_names=[*"abcdef"]
    )
    rows = rows.add_column("digest", ["1", "1", "2", "3", "4", "5"])
    hashes = np.zeros((6, 4), dtype=np.uint64)
    hashes[:, 0] = [0, 0, 2**20 - 1, 2**20 - 2, 2**63 - 1, 2**40 - 1]
    found = find_duplicate_issues(rows, find_near_duplicates(hashes, 1), ["train"] * 3 + ["test"] * 3)
    assert {(one.kind, "".join(one.files)) for one in found} == {
        ("images of equal bytes", "ab"),
        ("equal images of different classes", "ab"),
        ("near-duplicates", "cd"),
        ("near images of different classes", "cd"),
        ("published split leaks", "cd"),
    }
    assert find_duplicate_issues(rows.select([2, 4]), find_near_duplicates(hashes[[2, 4]], 1), ["train"] * 2) == []
