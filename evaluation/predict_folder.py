"""Predict image files into a CSV and heat-map overlays; resumable."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timezone
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock
from PIL import Image as PILImage
from PIL import ImageDraw
from transformers import BaseImageProcessor

from ..data.images import find_images, load_image_file
from ..data.progress import progress_bar
from ..errors import InputError
from ..knowledge.saliency_priors import model_digest
from ..modeling_kgl import KGLForImageClassification
from ..pipeline_kgl import DefectDetectionPipeline
from ..training.model_init import load_classifier
from ..training.run_dir import claim
from .overlay import overlay_heat_map, shown_from


_STAMP = ("file_size", "file_modified")
_COLUMNS = ("file_name", "predicted_label", "score", "defect_score", "defective", "boxes", *_STAMP)
_MAX_JPEG_SIDE = 65_500  # the format's own limit
_BOX_COLOUR = (0, 255, 127)


@dataclass(frozen=True)
class UnusableImage:
    """An image file that could not be read, and why."""

    path: Path
    reason: str


@dataclass(frozen=True)
class FolderPredictions:
    """
    Counts of a finished [`predict_folder`], earlier attempts in the same output folder included.

    Args:
        images: rows of the table.
        defective: images called defective; 0 where the model has no defect-free class.
        good: images called good; 0 where the model has no defect-free class.
        unusable: images that could not be read.
        changed: names of the images that had a row of an earlier attempt and whose files changed since.
    """

    images: int
    defective: int
    good: int
    unusable: list[UnusableImage]
    changed: list[str] = field(default_factory=list)


def predict_folder(
    paths: list[Path], model: str, output: Path, batch_size: int = 16, box_threshold: float | None = None
) -> FolderPredictions:
    """
    Write `output/predictions.csv`, one row per image, and the images under their heat maps to `output/overlays`.

    Each batch of predictions of [`DefectDetectionPipeline`] is written as soon as it is made. Started again with the
    same settings, images that have a row already are skipped, unless the size or the time of their file changed: they
    are predicted again, and their old rows removed.

    Args:
        paths: images, and folders that are searched at any depth; images inside `output` are left out.
        model: a classifier saved by kgl train, a folder or a Hub id.
        output: a new folder, or that of an unfinished run with the same model, paths and threshold.
        batch_size: images per forward pass.
        box_threshold: value of the heat map, in 0..1, from which a cell belongs to a box and the overlay shows it; the
            model's own by default.

    Raises:
        InputError: an argument cannot be used, or `output` holds something else or cannot be written to.
    """
    if batch_size < 1:
        raise InputError(f"--batch_size {batch_size}: it must be at least 1.")
    if box_threshold is not None and not 0 <= box_threshold <= 1:
        raise InputError(f"--box_threshold {box_threshold}: it must lie in 0..1.")
    images = _find_named_images(paths, output)
    classifier, image_processor = load_classifier(model)
    threshold = classifier.config.heat_threshold if box_threshold is None else box_threshold
    folder_lock = _claim_output(output, paths, classifier, image_processor, threshold)
    pipeline = DefectDetectionPipeline(classifier, image_processor=image_processor)
    unusable: list[UnusableImage] = []
    classes = list(classifier.config.label2id)
    try:
        changed = _remove_changed_rows(output / "predictions.csv", images, classes)
        with _Table(output / "predictions.csv", classes) as table:
            todo = [(name, path) for name, path in images.items() if name not in table.decisions]
            progress = progress_bar(todo, "Images", total=len(images), initial=len(images) - len(todo))
            usable = _load_images(progress, unusable)
            while batch := list(islice(usable, batch_size)):  # older pipelines would hold a whole stream in memory
                predictions = pipeline([image for *_, image in batch], batch_size=batch_size, box_threshold=threshold)
                for (name, stamp, image), prediction in zip(batch, predictions, strict=True):
                    overlay = overlay_path(output / "overlays", name)
                    _draw_overlay(overlay, image, prediction, threshold, classifier.config.top_cells)
                    table.append(name, stamp, prediction)
    except OSError as error:
        raise InputError(
            f"--output {output}: it cannot be written to. {error}. Finished rows are kept; run the same command again "
            "to continue."
        ) from error
    folder_lock.release()
    decisions = list(table.decisions.values())
    return FolderPredictions(len(decisions), decisions.count("True"), decisions.count("False"), unusable, changed)


def _claim_output(
    output: Path,
    paths: list[Path],
    classifier: KGLForImageClassification,
    image_processor: BaseImageProcessor,
    box_threshold: float,
) -> FileLock:
    """Claim the output folder for these settings and lock it."""
    settings = {
        "model": model_digest(classifier),
        "image_processor": image_processor.to_dict(),
        "box_threshold": box_threshold,
        "paths": sorted({os.path.abspath(path) for path in paths}),
    }
    # Through JSON, so that the settings compare equal to the stored ones.
    stored = json.loads(json.dumps({"predictions": settings}, default=str))
    return claim(output, stored, flag="--output")


def _find_named_images(paths: list[Path], output: Path) -> dict[str, Path]:
    """
    Return all images by their unique names, the paths below the deepest folder common to all `paths`.

    Raises:
        InputError: a path does not exist, or a folder has no images.
    """
    output = Path(os.path.abspath(output))
    images: list[Path] = []
    folders: list[Path] = []
    for path in paths:
        absolute = Path(os.path.abspath(path))
        if not absolute.exists():
            raise InputError(f"{path}: there is no such file or folder.")
        if not absolute.is_dir():
            images.append(absolute)
            folders.append(absolute.parent)
            continue
        in_folder = [image for image in find_images(absolute) if output not in image.parents]
        if not in_folder:
            raise InputError(f"{path}: there is no image in it.")
        images += in_folder
        folders.append(absolute)
    common = os.path.commonpath(folders)
    return {image.relative_to(common).as_posix(): image for image in sorted(images)}


def _load_images(
    images: Iterable[tuple[str, Path]], unusable: list[UnusableImage]
) -> Iterator[tuple[str, tuple[str, str], PILImage.Image]]:
    """Yield name, stamp and image of the files that can be read; append the others to `unusable`."""
    for name, path in images:
        try:
            stamp = _stamp(path)
            image = load_image_file(path)
        except (OSError, ValueError) as error:
            unusable.append(UnusableImage(path, str(error)))
        else:
            yield name, stamp, image


def _stamp(path: Path) -> tuple[str, str]:
    """Return size in bytes and time of the last change of a file, as the table has them."""
    stat = path.stat()
    return str(stat.st_size), datetime.fromtimestamp(stat.st_mtime, timezone.utc).isoformat(timespec="microseconds")


def _remove_changed_rows(path: Path, images: dict[str, Path], classes: list[str]) -> list[str]:
    """
    Remove the rows of files that changed since from a table, if it is there, and return their names.

    Raises:
        InputError: the table has other columns, so that rows cannot be added to it.
    """
    text = _complete_rows(path).decode("utf-8", errors="surrogateescape")
    if not text:
        return []
    header, *rows = csv.reader(io.StringIO(text, newline=""))
    if header != _header(classes):
        raise InputError(
            f"{path} has other columns than this version of kgl predict writes; it was edited, or written by another "
            "version. Choose another --output."
        )
    places = [header.index(column) for column in _STAMP]
    changed = [
        row[0]
        for row in rows
        if row[0] in images
        and images[row[0]].exists()
        and tuple(row[place] for place in places) != _stamp(images[row[0]])
    ]
    if changed:
        kept = io.StringIO(newline="")
        csv.writer(kept, lineterminator="\n").writerows([header, *(row for row in rows if row[0] not in set(changed))])
        unfinished = path.with_name(f"{path.name}.unfinished")
        unfinished.write_bytes(kept.getvalue().encode("utf-8", errors="surrogateescape"))
        unfinished.replace(path)
    return changed


def _complete_rows(path: Path) -> bytes:
    """Return the content of a table without a row that was cut short by a kill; nothing where there is no table."""
    content = path.read_bytes() if path.exists() else b""
    return content[: content.rfind(b"\n") + 1]


def _header(classes: list[str]) -> list[str]:
    return [*_COLUMNS, *(f"probability_{name}" for name in classes)]


class _Table:
    """
    A CSV that grows by one row at a time; a row cut short by a kill is removed.

    `decisions` maps the file names that have a row to their cell of the column `defective`.
    """

    def __init__(self, path: Path, classes: list[str]) -> None:
        complete = _complete_rows(path)
        # File names need not be valid UTF-8.
        self._file = path.open("a+", newline="", encoding="utf-8", errors="surrogateescape")
        self._file.truncate(len(complete))
        self._file.seek(0)
        column = _COLUMNS.index("defective")
        self.decisions = {row[0]: row[column] for row in list(csv.reader(self._file))[1:]}
        # csv, not pandas: rows are appended one by one.
        self._writer = csv.writer(self._file, lineterminator="\n")
        self._classes = classes
        if not complete:
            self._writer.writerow(_header(classes))

    def __enter__(self) -> _Table:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def append(self, name: str, stamp: tuple[str, str], prediction: dict[str, Any]) -> None:
        """Write the row of an image; it is on disk when this returns."""
        boxes = [box | {"score": round(box["score"], 4)} for box in prediction["boxes"]]
        cells = {
            "file_name": name,
            "predicted_label": prediction["label"],
            "score": f"{prediction['score']:.6g}",
            "defect_score": "" if prediction["defect_score"] is None else f"{prediction['defect_score']:.6g}",
            "defective": "" if prediction["defective"] is None else str(prediction["defective"]),
            "boxes": json.dumps(boxes),
            **dict(zip(_STAMP, stamp, strict=True)),
        }
        probabilities = (f"{prediction['scores'][label]:.6g}" for label in self._classes)
        self._writer.writerow([*(cells[column] for column in _COLUMNS), *probabilities])
        self._file.flush()
        self.decisions[name] = cells["defective"]


def overlay_path(folder: Path, name: str) -> Path:
    """
    Return the overlay's path of an image: `a.jpg` of `a.jpg`, and `a.png.jpg` of `a.png`.

    A name of more than 255 bytes, which is the limit, is shortened.
    """
    parent, _, last = name.rpartition("/")
    stem, suffix = os.path.splitext(last)
    inner = os.path.splitext(stem)[1].lower()
    if suffix.lower() not in (".jpg", ".jpeg") or inner in PILImage.registered_extensions():
        last = f"{last}.jpg"  # `a.png.jpg` becomes `a.png.jpg.jpg`: the overlay of `a.png` has its name
    encoded = os.fsencode(last)
    if len(encoded) > 255:
        last = f"{encoded[:180].decode(errors='ignore')}-{hashlib.sha256(encoded).hexdigest()[:16]}.jpg"
    return folder / parent / last


def _draw_overlay(
    path: Path, image: PILImage.Image, prediction: dict[str, Any], threshold: float, share: float
) -> None:
    """Write the image under its heat map as a JPEG, with boxes and its highest cells unless it is called good."""
    heat = np.asarray(prediction["heat_map"]) / 255
    lowest = shown_from(heat, threshold, prediction["defective"], share)
    overlay = PILImage.fromarray(overlay_heat_map(np.asarray(image.convert("L")), heat, lowest))
    pen = ImageDraw.Draw(overlay)
    for box in prediction["boxes"] if prediction["defective"] is not False else []:
        corners = (box["xmin"], box["ymin"], box["xmax"] - 1, box["ymax"] - 1)
        pen.rectangle(corners, outline=_BOX_COLOUR, width=1 + max(overlay.size) // 500)
    overlay.thumbnail((_MAX_JPEG_SIDE, _MAX_JPEG_SIDE))
    path.parent.mkdir(parents=True, exist_ok=True)
    overlay.save(path, format="JPEG", quality=90)


__all__ = ["FolderPredictions", "UnusableImage", "overlay_path", "predict_folder"]
