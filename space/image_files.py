"""Image files: decode uploads within limits, and read the folder of examples."""

import io
import warnings
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

import quotas
from input_error import InputError


FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP")
SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
THUMBNAIL_SIDES = (96, 288)  # pixels of the shorter side, and of the longer side at most


@dataclass(frozen=True)
class Example:
    """An image that the page offers to classify."""

    path: Path
    thumbnail: Image.Image


def read_image(raw: bytes) -> Image.Image:
    """
    Decode an image file, upright and in RGB.

    Raises:
        InputError: the file is no image, damaged, too large or too small, or has more than 8 bits per channel.
    """
    if len(raw) > quotas.MAX_FILE_BYTES:
        raise InputError(f"the file is larger than {quotas.MAX_FILE_BYTES // 1_000_000} MB. Compress or crop it.")
    with _open(raw) as image:
        if image.width * image.height > quotas.MAX_IMAGE_PIXELS:
            raise InputError(_too_many_pixels())
        if min(image.size) < quotas.MIN_IMAGE_SIDE:
            raise InputError(f"the image is less than {quotas.MIN_IMAGE_SIDE} pixels wide or high. Use a larger one.")
        if image.mode.startswith(("I", "F")) or any(";16" in str(tile) for tile in image.tile):
            raise InputError("the image has more than 8 bits per channel. Convert it to 8 bits.")
        try:
            return ImageOps.exif_transpose(image).convert("RGB")
        except Exception as error:  # Pillow's decoders raise many types on damaged files
            raise InputError("the file is damaged. Save it again.") from error


def _open(raw: bytes) -> Image.Image:
    """Read an image's header."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # MAX_IMAGE_PIXELS is the limit here
            return Image.open(io.BytesIO(raw), formats=FORMATS)
    except Image.DecompressionBombError as error:
        raise InputError(_too_many_pixels()) from error
    except Exception as error:  # Pillow's decoders raise many types on unknown files
        raise InputError(f"the file is not a readable image. Use one of {', '.join(FORMATS)}.") from error


def _too_many_pixels() -> str:
    return f"the image has more than {quotas.MAX_IMAGE_PIXELS // 1_000_000} million pixels. Resize or crop it."


def shrink(image: Image.Image, side: int) -> Image.Image:
    """Resize an image so that its longer side has at most `side` pixels."""
    scale = min(1, side / max(image.size))
    return image.resize([max(1, round(scale * length)) for length in image.size])


def _thumbnail(image: Image.Image) -> Image.Image:
    shorter, longer = THUMBNAIL_SIDES
    return shrink(image, min(round(shorter * max(image.size) / min(image.size)), longer))


def read_examples(folder: Path) -> list[Example]:
    """
    Read the first images of a folder, by name.

    Raises:
        InputError: there is no such folder, or one of its images cannot be used.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder.")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())
    examples = []
    for path in paths[: quotas.MAX_EXAMPLES]:
        try:
            examples.append(Example(path, _thumbnail(read_image(path.read_bytes()))))
        except InputError as error:
            raise InputError(f"{path}: {error}") from error
    return examples
