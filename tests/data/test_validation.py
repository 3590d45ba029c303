"""Every image looked at before training."""

import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageCms

from kgl.data.arguments import DataArguments
from kgl.data.images import encode_png
from kgl.data.loading import read_defect_dataset
from kgl.data.masks import mask_to_array
from kgl.data.schema import defect_dataset
from kgl.data.validation import inspect_images


PIXELS = np.random.default_rng(0).integers(0, 255, (24, 20), dtype=np.uint8)


def scanned(tmp_path, image, mask=None):
    rows = defect_dataset(images=[image], labels=["a"], names=["a"], masks=[mask], file_names=["it"])
    return inspect_images(rows)


def deep_png(path):
    """16 bits a channel in colour, which Pillow cannot write."""
    rows = b"".join(b"\0" + bytes(range(16 * 6)) for _ in range(16))
    header = struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0)
    whole = b"\x89PNG\r\n\x1a\n"
    for part in (b"IHDR" + header, b"IDAT" + zlib.compress(rows), b"IEND"):
        whole += struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
    path.write_bytes(whole)
    return str(path)


def turned(path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(PIXELS).save(path, exif=exif)
    return str(path)


def test_deep_colours_are_refused(tmp_path):
    assert scanned(tmp_path, deep_png(tmp_path / "deep.png")).problems == ["16 bits a channel: convert it to 8"]


def test_colours_of_other_spaces_are_converted(tmp_path):
    """Pillow converts LAB to RGB alone."""
    profiles = (ImageCms.createProfile(name) for name in ("sRGB", "LAB"))
    lab = ImageCms.profileToProfile(Image.new("RGB", (20, 20), "red"), *profiles, outputMode="LAB")
    lab.save(tmp_path / "lab.tif")
    found = scanned(tmp_path, str(tmp_path / "lab.tif"))
    assert found.problems == [None] and ("converted to RGB", "LAB") in [(one.kind, one.note) for one in found.oddities]


@pytest.mark.parametrize(("orientation", "refused"), [(0, False), (1, False), (3, True), (6, True), (9, False)])
def test_a_turned_image_needs_a_turned_mask(tmp_path, orientation, refused):
    image = turned(tmp_path / "it.png", orientation)
    mask = tmp_path / "mask.png"
    Image.fromarray(PIXELS).save(mask)
    found = scanned(tmp_path, image, str(mask))
    assert (found.problems[0] is not None) == refused
    assert scanned(tmp_path, image, turned(tmp_path / "mask.png", orientation)).problems == [None]
    assert ("turned upright by its EXIF tag" in [one.kind for one in found.oddities]) == refused


@pytest.mark.parametrize("kind", ["255", "1", "numbered", "palette", "bits"])
def test_masks_however_they_are_written(kind):
    truth = np.zeros((8, 8), dtype=bool)
    truth[2:4, 3:7] = True
    mask = {
        "255": Image.fromarray(truth * np.uint8(255)),
        "1": Image.fromarray(truth * np.uint8(1)),
        "numbered": Image.fromarray(truth * np.uint8(5)),
        "palette": Image.fromarray(truth * np.uint8(2), mode="P"),
        "bits": Image.fromarray(truth),
    }[kind]
    if kind == "palette":
        mask.putpalette([0, 0, 0, 9, 9, 9, 60, 0, 0])
    assert np.array_equal(mask_to_array(mask, (8, 8)), truth)
    assert np.array_equal(mask_to_array(mask, (16, 16)), truth.repeat(2, 0).repeat(2, 1))


def test_noise_of_a_compressed_mask_is_no_defect():
    noisy = np.where(PIXELS > 128, 200, 40).astype(np.uint8)
    assert np.array_equal(mask_to_array(Image.fromarray(noisy), (24, 20)), PIXELS > 128)


def test_a_mask_that_contradicts_its_label_is_told_of(image_folder):
    for name, defect in (("good/0.png", True), ("scratch/0.png", False), ("scratch/1.png", True)):
        path = image_folder / "ground_truth" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(np.full((40, 48), 255 * defect, dtype=np.uint8))["bytes"])
    args = DataArguments(data_dir=str(image_folder), defect_free_label="good")
    found = [(one.files, one.note) for one in read_defect_dataset(args)[1] if one.kind == "mask contradicts the label"]
    assert found == [(("good/0.png",), "a defect in a good image"), (("scratch/0.png",), "no defect in it")]
