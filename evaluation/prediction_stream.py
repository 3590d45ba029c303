"""Predict a stream of images: threads load them and draw what was predicted while the model computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from PIL import Image as PILImage

from ..data.in_order import Task, map_in_order
from ..pipeline_kgl import DefectDetectionPipeline
from .prediction_table import Stamp


Found = TypeVar("Found")
Result = TypeVar("Result")


@dataclass(frozen=True)
class UnusableImage:
    """An image file that could not be read, and why."""

    path: Path
    reason: str


class LoadedImage(NamedTuple):
    """An image, its name and the stamp that its file had before it was read."""

    name: str
    stamp: Stamp
    image: PILImage.Image


class _Prepared(NamedTuple):
    loaded: LoadedImage
    inputs: dict[str, Any]  # of the pipeline's forward pass


def predict_stream(
    pipeline: DefectDetectionPipeline,
    images: Iterator[Found],
    load: Callable[[Found], LoadedImage | UnusableImage],
    finish: Callable[[LoadedImage, dict[str, Any]], Result],
    batch_size: int,
    box_threshold: float,
) -> Iterator[list[Result | UnusableImage]]:
    """
    Yield, batch by batch in the order of the images, what `finish` makes of each image and its prediction.

    `load` and `finish` run in as many threads as torch uses, which decode, resize and encode without holding Python's
    lock; the forward pass runs in this one, which helps where it would wait. At most three batches of images are in
    memory: one that is loaded, one that is predicted, one that is finished.

    Args:
        pipeline: predicts.
        images: what `load` gets.
        load: returns an image, or why it cannot be used, which is yielded in its place.
        finish: gets an image and its dictionary of [`DefectDetectionPipeline`].
        batch_size: usable images per forward pass.
        box_threshold: see the pipeline.
    """

    def prepare(found: Found) -> _Prepared | UnusableImage:
        loaded = load(found)
        return loaded if isinstance(loaded, UnusableImage) else _Prepared(loaded, pipeline.preprocess(loaded.image))

    def complete(prepared: _Prepared, outputs: dict[str, Any]) -> Result:
        return finish(prepared.loaded, pipeline.postprocess(outputs, box_threshold))

    def start_completing(batch: list[_Prepared | UnusableImage]) -> list[Task[Result] | UnusableImage]:
        outputs = forward_batch(pipeline, [one.inputs for one in batch if isinstance(one, _Prepared)])
        return [one if isinstance(one, UnusableImage) else Task(pool, complete, one, next(outputs)) for one in batch]

    pool = ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="kgl predict")
    try:
        completing = None
        for batch in _batches(map_in_order(pool, prepare, images, ahead=batch_size), batch_size):
            before, completing = completing, start_completing(batch)
            if before is not None:
                yield _results(before)
        if completing is not None:
            yield _results(completing)
    finally:
        pool.shutdown(cancel_futures=True)


def _batches(
    prepared: Iterator[_Prepared | UnusableImage], batch_size: int
) -> Iterator[list[_Prepared | UnusableImage]]:
    """Yield batches of so many usable images, with the unusable ones between them."""
    batch, usable = [], 0
    for one in prepared:
        batch.append(one)
        usable += isinstance(one, _Prepared)
        if usable == batch_size:
            yield batch
            batch, usable = [], 0
    if batch:
        yield batch


def forward_batch(pipeline: DefectDetectionPipeline, inputs: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Return the outputs of a pipeline's forward pass, image by image, of what it made of each in `preprocess`."""
    if not inputs:
        return iter(())
    sizes = [one["size"] for one in inputs]
    pixel_values = torch.cat([one["pixel_values"] for one in inputs])
    outputs = pipeline.forward({"pixel_values": pixel_values, "size": sizes})
    tensors = {name: value for name, value in outputs.items() if name != "size"}
    return (
        {name: value[index : index + 1] for name, value in tensors.items()} | {"size": size}
        for index, size in enumerate(sizes)
    )


def _results(completing: list[Task[Result] | UnusableImage]) -> list[Result | UnusableImage]:
    tasks = [one for one in completing if isinstance(one, Task)]
    return [one.result(tasks) if isinstance(one, Task) else one for one in completing]


__all__ = ["LoadedImage", "UnusableImage", "forward_batch", "predict_stream"]
