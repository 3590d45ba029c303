"""Cache of decoded and resized images in Arrow."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Value
from transformers import BaseImageProcessor
from transformers.image_utils import load_image

from ..errors import InputError
from .images import decode_image, without_decoding


FOLDER = "pixels"


def cache_resized_images(dataset: Dataset, image_processor: BaseImageProcessor, folder: Path) -> Dataset:
    """
    One column `pixels`, each image of the dataset as `3 H W` bytes in the image processor's size.

    Args:
        dataset: has an `image` column.
        image_processor: resizes; [`cached_to_tensor`] gives what it gives before normalisation.
        folder: gets a folder `pixels`; an Arrow file that is in it is used.

    Raises:
        InputError: there is no room for it.
    """
    file = folder / FOLDER / "images.arrow"
    height, width = image_processor.size["height"], image_processor.size["width"]
    if not file.exists():
        needed, free = len(dataset) * 3 * height * width, shutil.disk_usage(folder).free
        if needed > free:
            raise InputError(
                f"{folder}: the resized images take {needed / 2**30:.1f} GiB and there are {free / 2**30:.1f}; make "
                "room, or decode them in every epoch by --decode_once false."
            )

    file.parent.mkdir(exist_ok=True)

    def resize(rows: dict[str, list[Any]]) -> dict[str, list[bytes]]:
        images = [load_image(decode_image(image)) for image in rows["image"]]
        arrays = image_processor(images=images, do_rescale=False, do_normalize=False)["pixel_values"]
        return {"pixels": [np.ascontiguousarray(array, dtype=np.uint8).tobytes() for array in arrays]}

    return without_decoding(dataset.select_columns(["image"])).map(
        resize,
        batched=True,
        batch_size=64,
        remove_columns=["image"],
        features=Features(pixels=Value("binary")),
        cache_file_name=str(file),
        desc="Resizing every image once",
    )


def cached_to_tensor(pixels: list[bytes], image_processor: BaseImageProcessor) -> torch.Tensor:
    """Stored images as `(B, 3, H, W)` in 0..1, the very values that the image processor gives."""
    shape = (len(pixels), 3, image_processor.size["height"], image_processor.size["width"])
    stored = np.frombuffer(b"".join(pixels), dtype=np.uint8).reshape(shape)
    # The image processor multiplies in double precision; 256 values need no more than a table.
    values = (np.arange(256) * image_processor.rescale_factor).astype(np.float32)
    return torch.from_numpy(values[stored])


__all__ = ["FOLDER", "cache_resized_images", "cached_to_tensor"]
