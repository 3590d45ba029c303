"""Finding, opening and checking images."""

import struct
import zlib

import pytest
from PIL import Image
from tiny import save_noise

from kgl.data.images import find_images, load_image_file, open_upright


def save_16_bit_colours(path):
    """A PNG with 16 bits per channel, which Pillow cannot write."""
    rows = b"".join(b"\0" + bytes(range(16 * 6)) for _ in range(16))
    header = struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n"
    for part in (b"IHDR" + header, b"IDAT" + zlib.compress(rows), b"IEND"):
        content += struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part))
    path.write_bytes(content)


def test_images_are_found_at_any_depth(tmp_path):
    for name in ("b.png", "a.PNG", "deep/er/c.jpg", ".hidden.png"):
        save_noise(tmp_path / name, 0)
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "note.txt").touch()
    assert [str(path.relative_to(tmp_path)) for path in find_images(tmp_path)] == ["a.PNG", "b.png", "deep/er/c.jpg"]


def test_files_in_hidden_folders_are_left_out(tmp_path):
    folder = tmp_path / ".cache" / "images"  # hidden parts above the folder do not matter
    for name in (
        "a.png", ".ipynb_checkpoints/a.png", ".Trash-0/files/a.png", "@eaDir/a.png", "b/.thumbs/a.png", "b/c.png",
        "__MACOSX/a.png",
    ):  # fmt: skip
        save_noise(folder / name, 0)
    assert [path.relative_to(folder).as_posix() for path in find_images(folder)] == ["a.png", "b/c.png"]


def test_linked_folders_are_followed_once(tmp_path):
    for name in ("images/good/0.png", "images/bad/1.png", "store/2.png", "store/deep/3.png"):
        save_noise(tmp_path / name, 0)
    good = tmp_path / "images" / "good"
    (good / "linked").symlink_to(tmp_path / "store")
    (good / "twice").symlink_to(tmp_path / "store")
    (tmp_path / "store" / "circle").symlink_to(good)
    (good / "up").symlink_to(tmp_path / "images")
    found = [path.relative_to(tmp_path).as_posix() for path in find_images(good)]
    assert found == ["images/good/0.png", "images/good/linked/2.png", "images/good/linked/deep/3.png"]


def test_a_real_folder_comes_before_a_link_to_it(tmp_path):
    save_noise(tmp_path / "b" / "0.png", 0)
    (tmp_path / "a").symlink_to("b")
    assert find_images(tmp_path) == [tmp_path / "b" / "0.png"]


@pytest.mark.parametrize("orientation", [0, 1, 3, 6, 9])
def test_exif_orientation_is_applied(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("L", (20, 24)).save(tmp_path / "a.png", exif=exif)
    image, rotated = open_upright((tmp_path / "a.png").read_bytes())
    assert rotated == (orientation in (3, 6))
    assert image.size == ((24, 20) if orientation == 6 else (20, 24))


def test_loaded_images_are_rgb(tmp_path):
    Image.new("LA", (20, 24)).save(tmp_path / "a.png")
    assert load_image_file(tmp_path / "a.png").mode == "RGB"


def test_unusable_images_are_refused_with_a_reason(tmp_path):
    save_16_bit_colours(tmp_path / "deep.png")
    Image.new("I;16", (20, 20)).save(tmp_path / "deep_grey.png")
    Image.new("F", (20, 20)).save(tmp_path / "float.tif")
    Image.new("L", (20, 7)).save(tmp_path / "small.png")
    (tmp_path / "text.png").write_bytes(b"no image")
    (tmp_path / "empty.png").touch()
    Image.new("1", (20_000, 10_000)).save(tmp_path / "bomb.png")
    for name, message in {
        "deep": "more than 8 bits per channel; convert it to 8", "deep_grey": "more than 8 bits per channel",
        "small": "20 x 7 pixels; at least 8 x 8 are needed", "text": "not an image", "empty": "empty file",
        "bomb": r"200\.0 megapixels, more than the limit of 89\.5; .* give --max_image_megapixels 200",
        "gone": "No such file",
    }.items():  # fmt: skip
        with pytest.raises(ValueError, match=message):
            load_image_file(tmp_path / f"{name}.png")
    with pytest.raises(ValueError, match="more than 8 bits per channel; convert it to 8"):
        load_image_file(tmp_path / "float.tif")
