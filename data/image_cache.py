"""Cache of decoded and resized images in an Arrow file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Features, Value
from datasets.arrow_writer import ArrowWriter
from transformers import BaseImageProcessor

from .images import to_pixel_values
from .progress import progress_bar
from .storage import check_disk_space


FOLDER = "pixels"
_BATCH = 64  # resized images in memory at once


def cache_resized_images(dataset: Dataset, image_processor: BaseImageProcessor, folder: Path) -> Dataset:
    """
    Return one column `pixels`: every image of the dataset as `3 * H * W` bytes in the image processor's size.

    Args:
        dataset: has a column `image`.
        image_processor: resizes; [`cached_to_tensor`] returns what it returns before normalization.
        folder: gets a folder `pixels` with an Arrow file; one that is already there is used.

    Raises:
        InputError: too little disk space.
    """
    file = folder / FOLDER / "images.arrow"
    if not file.exists():
        needed = len(dataset) * 3 * image_processor.size["height"] * image_processor.size["width"]
        check_disk_space(folder, needed, "the resized images", "decode them in every epoch with --decode_once false")
        file.parent.mkdir(exist_ok=True)
        unfinished = file.with_name(f"{file.name}.unfinished")
        features = Features(pixels=Value("binary"))
        with (
            ArrowWriter(path=str(unfinished), features=features, writer_batch_size=_BATCH) as writer,
            progress_bar(title="Resizing images", total=len(dataset)) as bar,
        ):
            for row in dataset.select_columns(["image"]):  # one at a time: an image may fill a gigabyte
                values = to_pixel_values([row["image"]], image_processor, do_rescale=False, do_normalize=False)
                writer.write({"pixels": values[0].to(torch.uint8).numpy().tobytes()})
                bar.update()
            writer.finalize()
        unfinished.replace(file)
    return Dataset.from_file(str(file))


def cached_to_tensor(pixels: list[bytes], image_processor: BaseImageProcessor) -> torch.Tensor:
    """Return cached images as `(B, 3, H, W)` in 0..1, equal to the image processor's before normalization."""
    shape = (len(pixels), 3, image_processor.size["height"], image_processor.size["width"])
    stored = np.frombuffer(b"".join(pixels), dtype=np.uint8).reshape(shape)
    # The image processor multiplies in double precision; a table of the 256 values does the same.
    values = (np.arange(256) * image_processor.rescale_factor).astype(np.float32)
    return torch.from_numpy(values[stored])


__all__ = ["FOLDER", "cache_resized_images", "cached_to_tensor"]
