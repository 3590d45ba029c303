"""Predict image files into a CSV and heat-map overlays; resumable."""

from __future__ import annotations

import hashlib
import io
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from filelock import FileLock
from PIL import Image as PILImage
from PIL import ImageDraw

from ..data.images import find_images, load_image_file
from ..data.progress import progress_bar
from ..errors import InputError, format_names
from ..knowledge.saliency_priors import model_digest
from ..pipeline_kgl import DefectDetectionPipeline
from ..training.model_init import load_classifier
from ..training.run_dir import claim
from .overlay import grey_shown_from, overlay_grey_heat_map
from .prediction_stream import Found, LoadedImage, UnusableImage, predict_stream
from .prediction_table import PredictionTable, Stamp, file_stamp
from .unlike_images import UnlikeImages


_MAX_JPEG_SIDE, _QUALITY = 65_500, 90  # the first is the format's own limit
_MAX_NAMED = 10
_BOX_COLOUR = (0, 255, 127)


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
        look_again: images to be looked at again; None where the model has no such decision.
        unlike: images that look unlike the training ones; None where the model does not know what those look like.
    """

    images: int
    defective: int
    good: int
    unusable: list[UnusableImage]
    changed: list[str] = field(default_factory=list)
    look_again: int | None = None
    unlike: UnlikeImages | None = None


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
        output: a new folder, or that of an unfinished run with the same model, paths and thresholds.
        batch_size: images per forward pass.
        box_threshold: value of the heat map, in 0..1, from which a cell belongs to a box and the overlay shows it; the
            model's own by default.

    Raises:
        InputError: an argument cannot be used, or `output` holds something else or cannot be written to.
    """
    sources = ImageSources.of(paths, output)
    images = sources.find_all()
    unusable: list[UnusableImage] = []
    pipeline, threshold = load_pipeline(model, batch_size, box_threshold)
    with open_predictor(sources, pipeline, threshold, batch_size) as predictor:
        changed = predictor.table.changed(images)
        predictor.table.remove(changed)
        todo = [(name, path) for name, path in images.items() if name not in predictor.table.rows]
        with progress_bar(title="Images", total=len(images), initial=len(images) - len(todo)) as bar:

            def advance(done: str | UnusableImage) -> None:
                bar.update()
                if isinstance(done, UnusableImage):
                    unusable.append(done)

            predictor.predict(iter(todo), load_named, advance)
        return predictor.count(unusable, changed)


@dataclass(frozen=True)
class ImageSources:
    """
    The images and folders to predict, and the output folder, whose images are left out.

    Attributes:
        paths: as they were given.
        common: the deepest folder common to all of them; images are named by their path below it.
        output: as it was given.
    """

    paths: tuple[Path, ...]
    common: Path
    output: Path

    @classmethod
    def of(cls, paths: list[Path], output: Path) -> ImageSources:
        """
        Return the sources of the given paths.

        Raises:
            InputError: a path does not exist.
        """
        folders = []
        for path in paths:
            if not os.path.exists(path):  # Path.exists raises where a folder cannot be entered
                raise InputError(f"{path}: there is no such file or folder.")
            absolute = Path(os.path.abspath(path))
            folders.append(absolute if absolute.is_dir() else absolute.parent)
        return cls(tuple(paths), Path(os.path.commonpath(folders)), output)

    def find_all(self) -> dict[str, Path]:
        """
        Return the images of all paths by their unique names, in the order of their paths.

        Raises:
            InputError: a path has no image.
        """
        images = {}
        for path in self.paths:
            found = self.find(path)
            if not found:
                raise InputError(f"{path}: there is no image in it.")
            images |= found
        return dict(sorted(images.items(), key=lambda one: one[1]))

    def find(self, path: Path, unreadable: list[str] | None = None) -> dict[str, Path]:
        """
        Return the images of one of the paths by their unique names; nothing where it is not there.

        `unreadable` is that of [`~kgl.data.images.find_files`].
        """
        absolute, output = Path(os.path.abspath(path)), Path(os.path.abspath(self.output))
        if not os.path.isdir(absolute):  # Path.is_dir raises where a network drive is gone
            images = [absolute] if os.path.exists(absolute) else []
        else:
            images = [image for image in find_images(absolute, unreadable) if output not in image.parents]
        return {utf8_name(image.relative_to(self.common).as_posix()): image for image in images}


class _Drawn(NamedTuple):
    name: str
    stamp: Stamp
    prediction: dict[str, Any]


@dataclass(frozen=True)
class FolderPredictor:
    """
    A classifier that predicts images into an output folder.

    Attributes:
        pipeline: of the classifier.
        output: the folder.
        table: `predictions.csv` in it.
        batch_size: images per forward pass.
        box_threshold: value of the heat map from which a cell belongs to a box and the overlay shows it.
    """

    pipeline: DefectDetectionPipeline
    output: Path
    table: PredictionTable
    batch_size: int
    box_threshold: float

    def predict(
        self,
        images: Iterator[Found],
        load: Callable[[Found], LoadedImage | UnusableImage],
        done: Callable[[str | UnusableImage], None] | None = None,
    ) -> list[str]:
        """
        Predict images batch by batch; the row of an earlier file is replaced.

        `load` is called, and overlays are drawn, by threads while the model computes. Up to three batches of images
        are in memory.

        Args:
            images: in the order of the rows.
            load: makes an image of one of them, in a thread.
            done: called with the name of each image once its row is written, and with the unusable ones.

        Returns:
            The names of the images whose rows were replaced.
        """
        stream = predict_stream(self.pipeline, images, load, self._draw, self.batch_size, self.box_threshold)
        with closing(stream):  # stops its threads before the folder is given up
            return [name for batch in stream for name in self._write(batch, done)]

    def _write(
        self, batch: list[_Drawn | UnusableImage], done: Callable[[str | UnusableImage], None] | None
    ) -> list[str]:
        """Write the rows of a batch, and return the names whose rows were replaced."""
        drawn = [one for one in batch if isinstance(one, _Drawn)]
        replaced = [one.name for one in drawn if one.name in self.table.rows]
        self.table.remove(replaced)
        for one in batch:
            if isinstance(one, _Drawn):
                self.table.append(one.name, one.stamp, one.prediction)
            if done is not None:
                done(one.name if isinstance(one, _Drawn) else one)
        return replaced

    def _draw(self, loaded: LoadedImage, prediction: dict[str, Any]) -> _Drawn:
        path, top_cells = overlay_path(self.output / "overlays", loaded.name), self.pipeline.model.config.top_cells
        _write_overlay(path, loaded.image, prediction, self.box_threshold, top_cells)
        return _Drawn(loaded.name, loaded.stamp, prediction)

    def count(self, unusable: list[UnusableImage], changed: list[str]) -> FolderPredictions:
        """Return the counts of the table."""
        rows, config = self.table.rows.values(), self.pipeline.model.config
        decisions = Counter(row.decision for row in rows)
        has_band, known = config.look_again_threshold is not None, config.training_range is not None
        return FolderPredictions(
            len(self.table.rows),
            decisions["defective"],
            decisions["good"],
            unusable,
            changed,
            decisions["look again"] if has_band else None,
            UnlikeImages.of((row.unlike for row in rows), config.training_range) if known else None,
        )


@contextmanager
def open_predictor(
    sources: ImageSources, pipeline: DefectDetectionPipeline, threshold: float, batch_size: int
) -> Iterator[FolderPredictor]:
    """
    Lock the output folder while what [`load_pipeline`] returned predicts into it; see [`predict_folder`].

    Raises:
        InputError: the output folder holds something else or cannot be written to.
    """
    folder_lock, output = _claim_output(sources, pipeline, threshold), sources.output
    try:
        with PredictionTable(output / "predictions.csv", list(pipeline.model.config.label2id)) as table:
            yield FolderPredictor(pipeline, output, table, batch_size, threshold)
    except OSError as error:
        raise InputError(
            f"--output {output}: it cannot be written to. {error}. Finished rows are kept; run the same command again "
            "to continue."
        ) from error
    finally:
        folder_lock.release()


def load_pipeline(
    model: str, batch_size: int, box_threshold: float | None, device: torch.device | None = None
) -> tuple[DefectDetectionPipeline, float]:
    """
    Return a saved classifier's pipeline, and the value of the heat map from which a cell belongs to a box.

    Raises:
        InputError: an argument cannot be used.
    """
    if batch_size < 1:
        raise InputError(f"--batch_size {batch_size}: it must be at least 1.")
    if box_threshold is not None and not 0 <= box_threshold <= 1:
        raise InputError(f"--box_threshold {box_threshold}: it must lie in 0..1.")
    classifier, image_processor = load_classifier(model)
    threshold = classifier.config.heat_threshold if box_threshold is None else box_threshold
    return DefectDetectionPipeline(classifier, image_processor=image_processor, device=device), threshold


def _claim_output(sources: ImageSources, pipeline: DefectDetectionPipeline, box_threshold: float) -> FileLock:
    """Claim the output folder for these settings and lock it."""
    settings = {
        **prediction_settings(pipeline, box_threshold),
        "paths": sorted({os.path.abspath(path) for path in sources.paths}),
    }
    return claim(sources.output, {"predictions": settings}, flag="--output")


def prediction_settings(pipeline: DefectDetectionPipeline, box_threshold: float) -> dict[str, Any]:
    """Return what decides predictions, beside the images."""
    config = pipeline.model.config
    return {
        "model": model_digest(pipeline.model),
        "threshold": config.threshold,
        "look_again_threshold": config.look_again_threshold,
        "image_processor": pipeline.image_processor.to_dict(),
        "box_threshold": box_threshold,
    }


def load_named(named: tuple[str, Path]) -> LoadedImage | UnusableImage:
    """Return the image of a name and a path, or why it cannot be used."""
    name, path = named
    try:
        stamp = file_stamp(path)
        return LoadedImage(name, stamp, load_image_file(path))
    except (OSError, ValueError) as error:
        return UnusableImage(path, str(error))


def utf8_name(name: str) -> str:
    r"""
    Return a file name in which bytes that are not UTF-8, as Linux allows, are written `\xff`.

    Backslashes are doubled in names that would have `\x` then, so that no two files share a name.
    """
    encoded = os.fsencode(name)
    if "\\x" not in encoded.decode(errors="backslashreplace"):
        return name
    return encoded.replace(b"\\", b"\\\\").decode(errors="backslashreplace")


def changed_sentence(names: list[str]) -> str:
    """Return that images are predicted anew, with the first of their names."""
    return f"Predicted anew, because the file changed since its row was written: {format_names(names, _MAX_NAMED)}"


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


def _write_overlay(
    path: Path, image: PILImage.Image, prediction: dict[str, Any], threshold: float, share: float
) -> None:
    """Write the overlay of [`draw_overlay`]; into a file, Pillow encodes without holding Python's lock."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draw_overlay(image, prediction, threshold, share).save(path, format="JPEG", quality=_QUALITY)


def encode_overlay(image: PILImage.Image, prediction: dict[str, Any], threshold: float, share: float) -> bytes:
    """Return the overlay of [`draw_overlay`] as a JPEG."""
    jpeg = io.BytesIO()
    draw_overlay(image, prediction, threshold, share).save(jpeg, format="JPEG", quality=_QUALITY)
    return jpeg.getvalue()


def draw_overlay(image: PILImage.Image, prediction: dict[str, Any], threshold: float, share: float) -> PILImage.Image:
    """Return the image under its heat map, with boxes and its highest cells unless it is called good."""
    suspect = prediction["decision"] != "good"  # also where the model makes no decision
    lowest = grey_shown_from(prediction["heat_map"], threshold, suspect, share)
    overlay = overlay_grey_heat_map(image, prediction["heat_map"], lowest)
    pen = ImageDraw.Draw(overlay)
    for box in prediction["boxes"] if suspect else []:
        corners = (box["xmin"], box["ymin"], box["xmax"] - 1, box["ymax"] - 1)
        pen.rectangle(corners, outline=_BOX_COLOUR, width=1 + math.isqrt(overlay.width * overlay.height) // 500)
    overlay.thumbnail((_MAX_JPEG_SIDE, _MAX_JPEG_SIDE))
    return overlay


__all__ = [
    "FolderPredictions",
    "FolderPredictor",
    "ImageSources",
    "changed_sentence",
    "draw_overlay",
    "encode_overlay",
    "load_named",
    "load_pipeline",
    "open_predictor",
    "overlay_path",
    "predict_folder",
    "prediction_settings",
    "utf8_name",
]
