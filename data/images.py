"""Find, open, check, orient and preprocess images."""

from __future__ import annotations

import io
import math
import os
import threading
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, Image, IterableDataset
from datasets.utils.file_utils import xopen
from PIL import Image as PILImage
from PIL import ImageOps, UnidentifiedImageError
from transformers import BaseImageProcessor

from ..errors import InputError
from ..pipeline_kgl import is_turned, resize_first, upright_rgb
from .shard_files import is_in_shard, read_from_shard


MIN_SIDE = 8  # pixels
_LIMIT = threading.Lock()  # threads read images, and Pillow's limit is one for all
_TOO_DEEP = "more than 8 bits per channel; convert it to 8"
# Of Synology's and QNAP's file servers, of archives made by macOS, and of drives.
_SYSTEM_FOLDERS = frozenset({
    "@eadir", "@tmp", "@recycle", "#recycle", "#snapshot", "__macosx", "$recycle.bin", "system volume information",
    "lost+found",
})  # fmt: skip


def is_hidden(name: str) -> bool:
    """Return whether a file or folder of this name is hidden, or made by a file server or an operating system."""
    return name.startswith(".") or name.casefold() in _SYSTEM_FOLDERS


def has_image_suffix(name: str) -> bool:
    """Return whether a file of this name has the suffix of an image format."""
    return os.path.splitext(name)[1].lower() in PILImage.registered_extensions()


def find_images(folder: Path, unreadable: list[str] | None = None) -> list[Path]:
    """Return all files of [`find_files`] with the suffix of an image format."""
    return [path for path in find_files(folder, unreadable) if has_image_suffix(path.name)]


def find_files(folder: Path, unreadable: list[str] | None = None) -> list[Path]:
    """
    Return all files at any depth, in order.

    Hidden files, and all files in hidden folders, are left out ([`is_hidden`]). Links to folders are followed once,
    unless they lead to `folder` or to a folder around it.

    Args:
        folder: to search.
        unreadable: takes a sentence per folder that cannot be read, which is then left out.

    Raises:
        InputError: a folder cannot be read, and there is no `unreadable`.
    """

    def leave_out(error: OSError) -> None:
        if not isinstance(error, PermissionError):  # a folder that is gone, or whose share is away, holds no files
            return
        sentence = unreadable_folder(error.filename, error)
        if unreadable is None:
            raise InputError(sentence)
        unreadable.append(sentence)

    top = Path(os.path.realpath(folder))
    seen, found, todo = {str(parent) for parent in top.parents}, [], [str(folder)]
    for start in todo:  # grows: links come after the folders that they may lead to
        for parent, folders, files in os.walk(start, onerror=leave_out):
            real = os.path.realpath(parent)
            folders[:] = [] if real in seen else sorted(name for name in folders if not is_hidden(name))
            if real in seen:
                continue
            seen.add(real)
            linked = (os.path.join(parent, name) for name in folders)
            todo += [path for path in linked if os.path.islink(path)]
            found += [Path(parent, name) for name in files if not is_hidden(name)]
    return sorted(found)


def unreadable_folder(folder: Path | str, error: PermissionError) -> str:
    """Return the sentence on a folder that cannot be read."""
    return f"{folder}: this folder cannot be read ({error.strerror}); change its permissions."


def load_image_file(path: Path) -> PILImage.Image:
    """
    Return a file's image, upright and in RGB.

    Raises:
        ValueError: it is unusable as in [`~kgl.data.validation.inspect_images`]; the message says why.
    """
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ValueError(decoder_message(error)) from error
    return decode_usable(raw)


def decode_usable(raw: bytes) -> PILImage.Image:
    """Return the image of a file's content as [`load_image_file`] does; it raises the same."""
    try:
        image, _ = open_upright(raw)
        check_usable(image)
        return upright_rgb(image).copy()  # without the decoder and the file, which some formats keep
    except Exception as error:  # Pillow's decoders raise many kinds of errors for damaged files
        raise ValueError(decoder_message(error)) from error


def set_max_megapixels(megapixels: int | None) -> None:
    """Set Pillow's limit, above which images are refused, for this process; None leaves it as it is."""
    if megapixels is not None:
        PILImage.MAX_IMAGE_PIXELS = megapixels * 1_000_000


def open_upright(raw: bytes) -> tuple[PILImage.Image, bool]:
    """
    Decode an image and rotate it as its EXIF tag says.

    Returns:
        The image, and whether it was rotated or mirrored.

    Raises:
        ValueError: no bytes, colours of 16 bits per channel, or more pixels than Pillow's limit.
        OSError, SyntaxError and others: Pillow cannot decode it.
    """
    if not raw:
        raise ValueError("empty file")
    image, limit = _open_any_size(raw)
    with image:
        pixels = image.width * image.height
        if limit is not None and pixels > limit:
            raise ValueError(
                f"{pixels / 1e6:.1f} megapixels, more than the limit of {limit / 1e6:.1f}; if you trust the file, "
                f"give --max_image_megapixels {math.ceil(pixels / 1e6)}"
            )
        # Of colours of 16 bits Pillow drops the lower bytes; grey ones are refused as images, not as masks.
        if not image.mode.startswith("I") and any(";16" in str(tile) for tile in image.tile):
            raise ValueError(_TOO_DEEP)
        image.load()
        if is_turned(image):
            return ImageOps.exif_transpose(image), True
        return image, False


def _open_any_size(raw: bytes) -> tuple[PILImage.Image, int | None]:
    """Read an image's header, and Pillow's limit; its own check of it names no size, and only warns up to twice it."""
    with _LIMIT:
        limit = PILImage.MAX_IMAGE_PIXELS
        PILImage.MAX_IMAGE_PIXELS = None
        try:
            return PILImage.open(io.BytesIO(raw)), limit
        finally:
            PILImage.MAX_IMAGE_PIXELS = limit


def check_usable(image: PILImage.Image) -> None:
    """
    Check an image's depth and size.

    Raises:
        ValueError: more than 8 bits per channel, or smaller than [`MIN_SIDE`].
    """
    if image.mode.startswith(("I", "F")):
        raise ValueError(_TOO_DEEP)
    if min(image.size) < MIN_SIDE:
        raise ValueError(f"{image.width} x {image.height} pixels; at least {MIN_SIDE} x {MIN_SIDE} are needed")


def decoder_message(error: Exception) -> str:
    """Return why an image could not be decoded, on one line."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return " ".join(str(error).split()) or type(error).__name__


def without_decoding(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """Return the dataset with images and masks as `{"bytes", "path"}`; [`decode_image`] decodes them."""
    for column in ("image", "mask"):
        if column in dataset.features:
            dataset = dataset.cast_column(column, Image(decode=False))
    return dataset


def decode_image(encoded: dict[str, Any] | None) -> PILImage.Image | None:
    """Decode a value of [`without_decoding`]."""
    if isinstance(encoded, dict) and not encoded["bytes"] and is_in_shard(encoded["path"]):
        encoded = {"bytes": read_from_shard(encoded["path"]), "path": None}  # faster than by its path
    return None if encoded is None else Image().decode_example(encoded)


def image_bytes(encoded: dict[str, Any]) -> bytes:
    """Return the file content of a value of [`without_decoding`]."""
    if encoded["bytes"]:
        return encoded["bytes"]
    if is_in_shard(encoded["path"]):
        return read_from_shard(encoded["path"])
    if os.path.isfile(encoded["path"]):  # xopen would split a name with ::
        return Path(encoded["path"]).read_bytes()
    with xopen(encoded["path"], "rb") as file:  # in an archive or on the Hub
        return file.read()


def to_pixel_values(
    images: list[PILImage.Image], image_processor: BaseImageProcessor, **overrides: Any
) -> torch.Tensor:
    """Preprocess images to `(B, 3, H, W)`, the same tensors as those of `pipeline("image-classification")`."""
    images = [resize_first(upright_rgb(image), image_processor) for image in images]
    return image_processor(images=images, return_tensors="pt", **overrides)["pixel_values"]


def load_pixel_values(row: dict[str, Any], image_processor: BaseImageProcessor) -> torch.Tensor:
    """Return `(1, 3, H, W)` of the `image` of a row of [`without_decoding`]."""
    return to_pixel_values([decode_image(row["image"])], image_processor)


def normalize(images: torch.Tensor, image_processor: BaseImageProcessor) -> torch.Tensor:
    """Normalize images `(B, 3, H, W)` in 0..1 as the image processor does."""
    mean, std = (
        torch.tensor(values).view(-1, 1, 1) for values in (image_processor.image_mean, image_processor.image_std)
    )
    return (images - mean) / std


__all__ = [
    "MIN_SIDE",
    "check_usable",
    "decode_image",
    "decode_usable",
    "decoder_message",
    "find_files",
    "find_images",
    "has_image_suffix",
    "image_bytes",
    "is_hidden",
    "load_image_file",
    "load_pixel_values",
    "normalize",
    "open_upright",
    "set_max_megapixels",
    "to_pixel_values",
    "unreadable_folder",
    "without_decoding",
]
