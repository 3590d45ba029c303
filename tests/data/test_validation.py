"""Inspection of images and data issues."""

import os

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from kgl.data import validation
from kgl.data.arguments import DataArguments
from kgl.data.duplicates import find_near_duplicates
from kgl.data.loading import read_defect_dataset
from kgl.data.schema import defect_dataset
from kgl.data.validation import (
    DataIssue,
    find_duplicate_issues,
    find_mask_issues,
    find_small_classes,
    find_unusable,
    inspect_images,
)


PIXELS = np.random.default_rng(0).integers(0, 255, (24, 20), dtype=np.uint8)


def inspect_one(image, mask=None):
    rows = defect_dataset(images=[image], labels=["a"], names=["a"], masks=[mask], file_names=["it"])
    return inspect_images(rows)


def save_oriented(path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(path, exif=exif)
    return str(path)


def test_a_usable_image_is_described():
    mask = np.zeros((24, 20), dtype=np.uint8)
    found = inspect_one(PIXELS, mask)
    assert (found.problems, found.sizes, found.modes, found.issues) == ([None], [(20, 24)], ["L"], [])
    assert found.mask_shows_defect == [False] and found.hashes.any() and len(found.digests[0]) == 40
    assert inspect_one(PIXELS, mask + 255).mask_shows_defect == [True]
    assert inspect_one(PIXELS).mask_shows_defect == [None]


def test_an_unusable_image_is_described(tmp_path):
    (tmp_path / "text.png").write_bytes(b"no image")
    found = inspect_one(str(tmp_path / "text.png"))
    assert (found.problems, found.sizes, found.modes, found.issues) == (["not an image"], [(0, 0)], [""], [])
    assert find_unusable(["it"], found) == [DataIssue("unusable", ("it",), "not an image")]
    assert inspect_one(None).problems == ["no image"]
    assert inspect_one(PIXELS, str(tmp_path / "text.png")).problems == ["its mask: not an image"]


@pytest.mark.parametrize("ending", ["png", "tif"])
def test_masks_of_16_bits_are_usable(tmp_path, ending):
    mask = np.zeros((24, 20), dtype=np.uint16)
    for value in (0, 300, 65535):
        mask[4:8, 5:9] = value
        Image.fromarray(mask).save(tmp_path / f"mask.{ending}")
        found = inspect_one(PIXELS, str(tmp_path / f"mask.{ending}"))
        assert (found.problems, found.mask_shows_defect, found.issues) == ([None], [value > 0], [])
    assert inspect_one(str(tmp_path / f"mask.{ending}")).problems == ["more than 8 bits per channel; convert it to 8"]


def test_images_in_lab_colours_are_usable(tmp_path):
    """Pillow converts LAB to RGB only."""
    profiles = (ImageCms.createProfile(name) for name in ("sRGB", "LAB"))
    lab = ImageCms.profileToProfile(Image.new("RGB", (20, 20), "red"), *profiles, outputMode="LAB")
    lab.save(tmp_path / "lab.tif")
    found = inspect_one(str(tmp_path / "lab.tif"))
    assert found.problems == [None]
    assert DataIssue("converted to RGB", ("it",), "LAB") in found.issues


@pytest.mark.parametrize(("orientation", "rotates"), [(0, False), (1, False), (3, True), (6, True), (9, False)])
def test_image_and_mask_must_be_rotated_alike(tmp_path, orientation, rotates):
    image = save_oriented(tmp_path / "it.png", orientation)
    mask = tmp_path / "mask.png"
    Image.fromarray(PIXELS).save(mask)
    found = inspect_one(image, str(mask))
    expected = "an EXIF tag rotates either the image or its mask, but not both" if rotates else None
    assert found.problems == [expected]
    assert inspect_one(image, save_oriented(tmp_path / "mask.png", orientation)).problems == [None]
    assert ("rotated by EXIF" in [issue.kind for issue in found.issues]) == rotates


def test_a_mask_of_another_size_is_an_issue():
    found = inspect_one(PIXELS, PIXELS[:, :10])
    assert found.problems == [None]
    assert found.issues == [DataIssue("mask size differs", ("it",), "mask 10 x 24, image 20 x 24")]


def test_several_processes_inspect_as_one_does(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 255, (24, 20), dtype=np.uint8) for _ in range(300)]
    (tmp_path / "text.png").write_bytes(b"no image")
    images[7] = str(tmp_path / "text.png")
    masks = [np.full((24, 20), 255 * (row == 9), dtype=np.uint8) for row in range(300)]
    names = [f"{row}.png" for row in range(300)]
    rows = defect_dataset(images=images, labels=["a"] * 300, names=["a"], masks=masks, file_names=names)
    found = []
    state = torch.get_rng_state()
    for processes in (1, 2):
        monkeypatch.setattr(torch, "get_num_threads", lambda processes=processes: processes)
        found.append(vars(inspect_images(rows)))
    assert torch.equal(torch.get_rng_state(), state)
    hashes = [one.pop("hashes") for one in found]
    assert found[0] == found[1] and (hashes[0] == hashes[1]).all()
    assert found[1]["problems"][7] == "not an image" and found[1]["issues"][0].files == ("9.png",)
    monkeypatch.setattr(validation, "perceptual_hash", lambda image: np.full(4, os.getpid(), dtype=np.uint64))
    processes = set(np.delete(inspect_images(rows).hashes, 7, axis=0).ravel().tolist())
    assert len(processes) == 2 and os.getpid() not in processes


def test_no_bar_without_a_terminal(capfd):
    inspect_one(PIXELS)
    assert capfd.readouterr() == ("", "")


def test_unusual_formats_are_usable(image_folder):
    image = Image.open(image_folder / "good" / "0.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(image_folder / "good" / "rotated.jpg", exif=exif)
    image.convert("CMYK").save(image_folder / "good" / "cmyk.jpg", quality=100)
    image.convert("P").rotate(90).save(image_folder / "good" / "palette \u202e\u00fc.png")
    image.convert("RGBA").transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(image_folder / "good" / "alpha.png")
    Image.new("RGB", (20, 20), (7, 7, 7)).save(image_folder / "good" / "grey.png")
    loaded = read_defect_dataset(DataArguments(data_dir=str(image_folder), validation_share=0))
    assert sum(map(len, loaded.splits.values())) == 23
    assert {(issue.kind, issue.files, issue.note) for issue in loaded.issues} >= {
        ("rotated by EXIF", ("good/rotated.jpg",), ""),
        ("converted to RGB", ("good/cmyk.jpg",), "CMYK"),
        ("converted to RGB", ("good/palette \u202e\u00fc.png",), "P"),
        ("converted to RGB", ("good/alpha.png",), "RGBA"),
        ("single grey value", ("good/grey.png",), "7"),
        ("near-duplicates", ("good/0.png", "good/cmyk.jpg"), ""),
    }


def test_duplicates_across_labels_groups_and_splits():
    rows = defect_dataset(
        images=[None] * 6, labels=[*"xyxyxy"], names=[*"xy"], groups=[*"ABBCDE"], file_names=[*"abcdef"]
    )
    rows = rows.add_column("digest", ["1", "1", "2", "3", "4", "5"])
    hashes = np.zeros((6, 4), dtype=np.uint64)
    hashes[:, 0] = [0, 0, 2**20 - 1, 2**20 - 2, 2**63 - 1, 2**40 - 1]
    found = find_duplicate_issues(rows, find_near_duplicates(hashes, 1), ["train"] * 3 + ["test"] * 3)
    assert {(issue.kind, "".join(issue.files), issue.note) for issue in found} == {
        ("identical images", "ab", ""),
        ("identical images with different labels", "ab", "x, y"),
        ("near-duplicates", "cd", ""),
        ("near-duplicates with different labels", "cd", "x, y"),
        ("source split leaks", "cd", "near-duplicates in test and train"),
    }
    assert find_duplicate_issues(rows.select([2, 4]), find_near_duplicates(hashes[[2, 4]], 1), ["train"] * 2) == []


def test_masks_that_contradict_the_label():
    rows = defect_dataset(images=[None] * 5, labels=[*"ggddd"], names=["g", "d"], file_names=[*"abcde"])
    assert find_mask_issues(rows, [True, False, True, False, None], "g") == [
        DataIssue("mask contradicts label", ("a",), "defect in the mask"),
        DataIssue("mask contradicts label", ("d",), "no defect in the mask"),
    ]


def test_mask_issues_are_found_while_reading(image_folder):
    for name, defect in (("good/0.png", True), ("scratch/0.png", False), ("scratch/1.png", True)):
        path = image_folder / "ground_truth" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 48), 255 * defect, dtype=np.uint8)).save(path)
    loaded = read_defect_dataset(DataArguments(data_dir=str(image_folder)))
    found = {(issue.kind, issue.files, issue.note) for issue in loaded.issues}
    assert found == {
        ("mask contradicts label", ("good/0.png",), "defect in the mask"),
        ("mask contradicts label", ("scratch/0.png",), "no defect in the mask"),
        ("mask covers more than half", ("good/0.png",), "100%"),
        ("mask covers more than half", ("scratch/1.png",), "100%"),
    }
    contradictions, large = loaded.warnings
    assert contradictions.startswith("Masks that contradict the label: 2, such as good/0.png (defect in the mask); ")
    assert large.startswith("Masks that cover more than half of the image: 2, such as good/0.png (100%); ")


def test_small_classes_are_issues():
    rows = defect_dataset(images=[None] * 3, labels=["x", "x", "y"], names=["x", "y", "z"], file_names=[*"abc"])
    kind = "class with fewer than two images"
    assert find_small_classes(rows) == [DataIssue(kind, ("y",)), DataIssue(kind, ("z",))]


def test_issues_are_shortened():
    issue = DataIssue("near-duplicates", tuple(f"{index}.png" for index in range(6)), "a, b")
    assert str(issue) == "0.png, 1.png, 2.png, 3.png, 4.png, 5.png (a, b)"
    assert issue.shortened() == "0.png, 1.png, 2.png, 3.png, 2 more (a, b)"
    assert DataIssue("unusable", ("0.png",)).shortened() == "0.png"
