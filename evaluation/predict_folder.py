"""Predict image files into a CSV and heat-map overlays; resumable."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as PILImage
from PIL import ImageDraw
from tqdm.auto import tqdm

from ..data.images import find_images, load_image_file
from ..data.storage import lock
from ..errors import InputError
from ..knowledge.saliency_priors import model_digest
from ..pipeline_kgl import DefectDetectionPipeline
from ..training.model_init import load_classifier
from ..training.run_dir import claim
from .visualization import overlay_heat_map


_COLUMNS = ["file", "label", "score", "defect_score", "defective", "boxes"]
_JPEG_SIDE = 65_500  # JPEG has no longer side
_BOX_COLOUR = (0, 255, 127)


@dataclass(frozen=True)
class Problem:
    """An image that could not be looked at, and why."""

    path: Path
    why: str


def run(
    paths: list[Path], model: str, output: Path, batch_size: int = 16, box_threshold: float = 0.5
) -> list[Problem]:
    """
    Write `output/predictions.csv`, a row an image, and `output/overlays`.

    What [`DefectDetectionPipeline`] says goes into the table as soon as a batch is done. Run again, images that have
    a row, known by their names, are left out.

    Args:
        paths: images, and folders that are searched at any depth; images in `output` are none.
        model: a classifier saved by kgl-train, a folder or a Hub id.
        output: a new folder, or one of the same model, paths and threshold.
        batch_size: images a forward pass.
        box_threshold: from which value of the heat map in 0..1 a pixel belongs to a box.

    Returns:
        The images that could not be used.

    Raises:
        InputError: something given cannot be used, or `output` holds something else or cannot be written.
    """
    if batch_size < 1:
        raise InputError(f"--batch_size {batch_size}: it must be at least 1.")
    if not 0 <= box_threshold <= 1:
        raise InputError(f"--box_threshold {box_threshold}: it must lie in 0..1.")
    found = _found(paths, output)
    classifier, image_processor = load_classifier(model)
    settings = {
        "model": model_digest(classifier),
        "image_processor": image_processor.to_dict(),
        "box_threshold": box_threshold,
        "paths": sorted({os.path.abspath(path) for path in paths}),
    }
    # There and back, so that what is compared is what was stored.
    claim(output, json.loads(json.dumps({"predictions": settings}, default=str)), "--output")
    held = lock(output, "--output")
    pipeline = DefectDetectionPipeline(classifier, image_processor=image_processor)
    problems: list[Problem] = []
    try:
        with _Table(output / "predictions.csv", list(classifier.config.label2id)) as table:
            todo = [(name, path) for name, path in found.items() if name not in table.files]
            shown = tqdm(todo, "Images", len(found), initial=len(found) - len(todo))
            usable = _usable(shown, problems)
            while batch := list(islice(usable, batch_size)):  # older pipelines would hold a whole stream in memory
                images = [image for _, image in batch]
                answers = pipeline(images, batch_size=batch_size, box_threshold=box_threshold)
                for (name, image), said in zip(batch, answers, strict=True):
                    _draw(output / "overlays" / f"{name}.jpg", image, said)
                    table.add(name, said)
    except OSError as error:
        raise InputError(
            f"--output {output}: it cannot be written. {error}. What is there is kept; the same command goes on."
        ) from error
    held.release()
    return problems


def _found(paths: list[Path], output: Path) -> dict[str, Path]:
    """
    Every image by its place below what all paths have in common: no two have the same, and none lies outside.

    Raises:
        InputError: a path that is not there, or a folder without images.
    """
    written = Path(os.path.abspath(output))
    images: list[Path] = []
    tops: list[Path] = []
    for path in paths:
        whole = Path(os.path.abspath(path))
        if not whole.exists():
            raise InputError(f"{path}: there is no such file or folder.")
        if not whole.is_dir():
            images.append(whole)
            tops.append(whole.parent)
            continue
        below = [image for image in find_images(whole) if written not in image.parents]
        if not below:
            raise InputError(f"{path}: there is no image in it.")
        images += below
        tops.append(whole)
    common = os.path.commonpath(tops)
    return {image.relative_to(common).as_posix(): image for image in sorted(images)}


def _usable(found: Iterable[tuple[str, Path]], problems: list[Problem]) -> Iterator[tuple[str, PILImage.Image]]:
    """The images that can be used, with their names; the others join `problems`."""
    for name, path in found:
        try:
            image = load_image_file(path)
        except ValueError as error:
            problems.append(Problem(path, str(error)))
        else:
            yield name, image


class _Table:
    """A CSV that grows row by row; `files` are those that have one. A row torn by a kill is cut off."""

    def __init__(self, path: Path, classes: list[str]) -> None:
        there = path.read_bytes() if path.exists() else b""
        whole = there[: there.rfind(b"\n") + 1]
        # Names of files need not be text at all.
        self._file = path.open("a+", newline="", encoding="utf-8", errors="surrogateescape")
        self._file.truncate(len(whole))
        self._file.seek(0)
        self.files = {row[0] for row in list(csv.reader(self._file))[1:]}
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._classes = classes
        if not whole:
            self._writer.writerow([*_COLUMNS, *(f"probability: {name}" for name in classes)])

    def __enter__(self) -> _Table:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def add(self, name: str, said: dict[str, Any]) -> None:
        """A row of what the pipeline said of an image, on disk when this returns."""
        boxes = [box | {"score": round(box["score"], 4)} for box in said["boxes"]]
        defect_score = "" if said["defect_score"] is None else f"{said['defect_score']:.6g}"
        self._writer.writerow(
            [
                *(name, said["label"], f"{said['score']:.6g}", defect_score, said["defective"], json.dumps(boxes)),
                *(f"{said['scores'][label]:.6g}" for label in self._classes),
            ]
        )
        self._file.flush()
        self.files.add(name)


def _draw(path: Path, image: PILImage.Image, said: dict[str, Any]) -> None:
    """The image under its heat map, boxes around the hot regions of what is not passed as good."""
    drawn = PILImage.fromarray(overlay_heat_map(np.asarray(image.convert("L")), np.asarray(said["heat_map"]) / 255))
    pen = ImageDraw.Draw(drawn)
    for box in said["boxes"] if said["defective"] is not False else []:  # passed as good: there is nothing to point at
        corners = (box["xmin"], box["ymin"], box["xmax"] - 1, box["ymax"] - 1)
        pen.rectangle(corners, outline=_BOX_COLOUR, width=1 + max(drawn.size) // 500)
    drawn.thumbnail((_JPEG_SIDE, _JPEG_SIDE))
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.save(path, quality=90)


__all__ = ["Problem", "run"]
