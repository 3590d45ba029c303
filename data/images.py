"""Find, open, check, encode and decode images."""

from __future__ import annotations

import io
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Image, IterableDataset
from datasets.utils.file_utils import xopen
from PIL import Image as PILImage
from PIL import ImageOps, UnidentifiedImageError
from transformers import BaseImageProcessor
from transformers.image_utils import load_image


MIN_SIDE = 8
_EXIF_ORIENTATION = 0x0112


def to_pixel_values(
    images: list[PILImage.Image], image_processor: BaseImageProcessor, **overrides: Any
) -> torch.Tensor:
    """Images to `(B, 3, H, W)`, the very tensors that `pipeline("image-classification")` makes of them."""
    # load_image turns an image upright and into RGB, as the pipeline does.
    images = [load_image(image) for image in images]
    return image_processor(images=images, return_tensors="pt", **overrides)["pixel_values"]


def normalize(images: torch.Tensor, image_processor: BaseImageProcessor) -> torch.Tensor:
    """Images `(B, 3, H, W)` in 0..1, augmented ones for instance, as the model wants them."""
    mean, std = (
        torch.tensor(values).view(-1, 1, 1) for values in (image_processor.image_mean, image_processor.image_std)
    )
    return (images - mean) / std


def find_images(folder: Path) -> list[Path]:
    """All files at any depth that are called like an image, hidden ones left out."""
    suffixes = PILImage.registered_extensions()
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and not path.is_dir()
    ]


def load_image_file(path: Path) -> PILImage.Image:
    """
    A file's image, upright and in RGB.

    Raises:
        ValueError: there is none that could be used, as [`inspect_images`] has it; the message says why.
    """
    try:
        image, _ = open_upright(path.read_bytes())
        check_usable(image)
        return image.convert("RGB")
    except Exception as error:  # whatever Pillow's many decoders raise for a damaged file
        raise ValueError(decoder_message(error)) from error


def open_upright(raw: bytes) -> tuple[PILImage.Image, bool]:
    """An image, upright, and whether it had to be turned."""
    if not raw:
        raise ValueError("empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("error", PILImage.DecompressionBombWarning)
        try:
            with PILImage.open(io.BytesIO(raw)) as image:
                if any(";16" in str(tile) for tile in image.tile):  # colours, of which Pillow drops the lower half
                    raise ValueError("16 bits a channel: convert it to 8")
                image.load()
                if image.getexif().get(_EXIF_ORIENTATION, 1) in range(2, 9):
                    return ImageOps.exif_transpose(image), True
                return image, False
        except PILImage.DecompressionBombWarning as error:
            raise ValueError(str(error)) from error


def decoder_message(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not an image"
    return " ".join(str(error).split()) or type(error).__name__


def check_usable(image: PILImage.Image) -> None:
    if image.mode.startswith(("I", "F")):
        raise ValueError(f"mode {image.mode}: convert it to 8 bits a channel")
    if min(image.size) < MIN_SIDE:
        raise ValueError(f"{image.width} x {image.height} pixels: nothing to see below {MIN_SIDE}")


def without_decoding(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """The dataset with its images and masks as `{"bytes", "path"}`, to be decoded by [`decode_image`]."""
    for column in ("image", "mask"):
        if column in dataset.features:
            dataset = dataset.cast_column(column, Image(decode=False))
    return dataset


def decode_image(encoded: dict[str, Any] | None) -> PILImage.Image | None:
    """The image of an undecoded value."""
    return None if encoded is None else Image().decode_example(encoded)


def image_bytes(encoded: dict[str, Any]) -> bytes:
    """The bytes of an undecoded image."""
    if encoded["bytes"]:
        return encoded["bytes"]
    with xopen(encoded["path"], "rb") as file:  # in an archive or on the Hub too
        return file.read()


def encode_png(pixels: np.ndarray) -> dict[str, Any]:
    """Pixels `(H, W)` or `(H, W, 3)` uint8 as an undecoded image."""
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


__all__ = [
    "MIN_SIDE",
    "decode_image",
    "encode_png",
    "find_images",
    "image_bytes",
    "load_image_file",
    "normalize",
    "to_pixel_values",
    "without_decoding",
]
