"""The export job: load a classifier, write its ONNX graph, compare it with PyTorch, and quantize it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..data.images import find_images, load_image_file
from ..errors import InputError
from ..training.model_init import load_classifier
from .arguments import CALIBRATION_IMAGES
from .onnx import max_difference, require_extra, write_onnx


if TYPE_CHECKING:
    from .quantization import QuantizationLoss


TOLERANCE = 1e-4  # between PyTorch's and the graph's probabilities and heat maps
_NOISE_SIZES = ((40, 48), (333, 127), (64, 500))  # height and width: smaller, taller and wider than most inputs
_COMPARED_CALIBRATION_IMAGES = 8


@dataclass(frozen=True)
class ExportResult:
    """
    Files of an export and how far they are from PyTorch.

    Args:
        path: the ONNX graph.
        max_difference: the largest difference from PyTorch's probabilities and heat maps.
        compared_images: how many images the graph and PyTorch were compared on.
        int8_path: the 8-bit graph, where one was asked for.
        int8_loss: the 8-bit graph's differences from the float graph.
    """

    path: Path
    max_difference: float
    compared_images: int
    int8_path: Path | None = None
    int8_loss: QuantizationLoss | None = None


def export_onnx(model: str, output: Path, int8_folder: Path | None = None) -> ExportResult:
    """
    Write a classifier as an ONNX graph and optionally as an 8-bit graph beside it, `<output>_int8.onnx`.

    Nothing is written unless the graph agrees with PyTorch to [`TOLERANCE`]. A file that exists stays where its
    content differs.

    Args:
        model: a classifier saved by kgl train: a folder or a Hub id.
        output: the `.onnx` file.
        int8_folder: images like those of the later use, which calibrate the 8-bit graph.

    Raises:
        InputError: a package or the model is missing, the model cannot be exported, the graph disagrees with PyTorch,
            an image cannot be used, or another file is in the way.
    """
    require_extra()
    from .quantization import quantize  # imports the extra

    classifier, image_processor = load_classifier(model)
    classifier.eval()
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in _NOISE_SIZES]
    calibration = [] if int8_folder is None else load_sample_images(int8_folder, CALIBRATION_IMAGES)
    images += calibration[:_COMPARED_CALIBRATION_IMAGES]
    with _new_file(output) as unfinished:
        write_onnx(classifier, image_processor, unfinished)
        difference = max_difference(unfinished, classifier, image_processor, images)
        if not difference <= TOLERANCE:
            raise InputError(
                f"The graph's outputs differ from PyTorch's by {difference:.1e}, more than {TOLERANCE:.0e}; nothing "
                "is written. Try other versions of torch and onnxruntime."
            )
    if int8_folder is None:
        return ExportResult(output, difference, len(images))
    int8_path = output.with_name(f"{output.stem}_int8.onnx")
    with _new_file(int8_path) as unfinished:
        loss = quantize(output, calibration, unfinished)
    return ExportResult(output, difference, len(images), int8_path, loss)


def load_sample_images(folder: Path, count: int) -> list[np.ndarray]:
    """
    Load up to `count` of the images below a folder, evenly spaced in their sorted names, each `(H, W, 3)` uint8.

    Raises:
        InputError: the folder has no images, or one cannot be read.
    """
    found = find_images(folder)
    if not found:
        raise InputError(f"{folder}: there are no images below it; name another folder.")
    chosen = sorted({round(index) for index in np.linspace(0, len(found) - 1, count)})
    images = []
    for path in (found[index] for index in chosen):
        try:
            images.append(np.array(load_image_file(path)))
        except ValueError as error:
            raise InputError(f"{path} cannot be used: {error}; remove or replace it.") from error
    return images


@contextmanager
def _new_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name to write to, renamed to `path` at the end unless other content is there already."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        yield unfinished
        if path.exists() and path.read_bytes() != unfinished.read_bytes():
            raise InputError(
                f"{path} exists already and holds another graph (of another model, kgl or Pillow version, see its "
                "metadata); move it away or choose another --output."
            )
        unfinished.replace(path)
    except OSError as error:
        raise InputError(f"{path} cannot be written: {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


__all__ = ["TOLERANCE", "ExportResult", "export_onnx", "load_sample_images"]
