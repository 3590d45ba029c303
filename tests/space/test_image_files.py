"""Images are decoded within limits, and examples are read."""

import re

import numpy as np
import pytest
from PIL import Image
from space_server import ROOT, encode, make_png, noise, write

import quotas
from image_files import read_examples, read_image
from input_error import InputError
from rendering import examples_html


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "not a readable image"),
        (b"no image", "not a readable image"),
        (encode(noise(), "GIF"), "not a readable image"),
        (encode(noise())[:900], "damaged"),
        (make_png(30_000, 30_000), "more than 50 million pixels"),
        (make_png(10_000, 9_500), "more than 50 million pixels"),  # Pillow only warns of it
        (encode(noise(7, 60)), "less than 8 pixels"),
        (make_png(16, 16, bits=16, pixels=bytes(16 * (1 + 16 * 6))), "more than 8 bits"),
        (encode(Image.fromarray(np.zeros((16, 16), dtype=np.uint16))), "more than 8 bits"),
        (bytes(quotas.MAX_FILE_BYTES + 1), "larger than 20 MB"),
    ],
)
def test_unusable_images_are_refused(raw, message):
    with pytest.raises(InputError, match=message) as refused:
        read_image(raw)
    assert "/" not in str(refused.value)


def test_too_large_image_is_not_decoded(monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(InputError, match="million pixels"):
        read_image(make_png(8_000, 8_000))


def test_images_are_upright_and_rgb():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = read_image(encode(noise().transpose(Image.Transpose.ROTATE_90), exif=exif))
    assert turned.mode == "RGB" and np.array_equal(np.asarray(turned)[..., 0], np.asarray(noise()))
    for mode, format in (("P", "PNG"), ("1", "TIFF"), ("RGBA", "WEBP"), ("L", "BMP"), ("CMYK", "JPEG")):
        assert read_image(encode(noise().convert(mode), format)).mode == "RGB"


def test_examples_of_the_repository():
    paths = sorted((ROOT / "examples").iterdir())
    assert 4 <= len(paths) <= quotas.MAX_EXAMPLES and sum(path.stat().st_size for path in paths) < 100_000
    examples = read_examples(ROOT / "examples")
    assert [example.path for example in examples] == paths
    assert examples_html(examples).count("<button") == len(paths)


def test_examples_are_image_files(tmp_path):
    image = write(tmp_path, "<b>.PNG", encode(noise(480, 240)))
    write(tmp_path, "notes.txt", b"")
    (tmp_path / "folder.png").mkdir()
    (example,) = read_examples(tmp_path)
    assert example.path == image and example.thumbnail.size == (192, 96)
    assert "<b>" not in examples_html([example])


def test_examples_that_are_strips_have_a_larger_thumbnail(tmp_path):
    for name, size in (("square", (400, 400)), ("tall", (64, 400)), ("wide", (1600, 256))):
        write(tmp_path, f"{name}.png", encode(noise(*size)))
    examples = read_examples(tmp_path)
    assert [example.thumbnail.size for example in examples] == [(96, 96), (46, 288), (288, 46)]
    assert re.findall(r'<button type="button" class="(\w*)"', examples_html(examples)) == ["", "tall", "wide"]


def test_unusable_examples_are_named(tmp_path):
    with pytest.raises(InputError, match=r"none: there is no such folder"):
        read_examples(tmp_path / "none")
    write(tmp_path, "broken.png", b"broken")
    with pytest.raises(InputError, match=r"broken\.png: the file is not a readable image"):
        read_examples(tmp_path)
