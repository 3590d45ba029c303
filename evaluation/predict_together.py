"""Predict folders of images in several processes, of several hosts too; the main process writes."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..data.processes import (
    check_equal,
    join_processes,
    leave_process_group,
    run_on_all_processes,
    share_from_main_process,
)
from ..data.progress import progress_bar
from ..data.storage import run_on_main_process
from ..errors import InputError
from ..pipeline_kgl import DefectDetectionPipeline
from .predict_folder import (
    FolderPredictions,
    FolderPredictor,
    ImageSources,
    encode_overlay,
    load_named,
    load_pipeline,
    open_predictor,
    overlay_path,
    prediction_settings,
)
from .prediction_stream import LoadedImage, UnusableImage
from .prediction_table import Stamp, file_stamp


class _Batch(NamedTuple):
    """What a process sends to the main one: name, prediction and overlay of each image, and the unusable ones."""

    rows: list[tuple[str, dict[str, Any], bytes]]
    unusable: list[UnusableImage]


def predict_together(
    paths: list[Path], model: str, output: Path, batch_size: int = 16, box_threshold: float | None = None
) -> FolderPredictions | None:
    """
    Predict as [`~kgl.evaluation.predict_folder.predict_folder`] does, each process every n-th batch.

    All processes call it, and their group ends with it. The main process alone writes to `output`, batches in the
    order of one process; the others need the same model and the same images, at paths of their own. A stopped call
    resumes with any number of processes.

    Returns:
        The counts, None in other processes than the main one.

    Raises:
        InputError: as `predict_folder`, in all processes; or they have other images or another model.
    """
    state = join_processes("kgl predict")
    sources, images = run_on_all_processes(lambda: _find_images(paths, output))
    pipeline, threshold = run_on_all_processes(lambda: load_pipeline(model, batch_size, box_threshold, state.device))
    check_equal({"predictions": {**prediction_settings(pipeline, threshold), "images": _digest(images)}})
    with ExitStack() as opened:
        predictor = run_on_main_process(
            lambda: opened.enter_context(open_predictor(sources, pipeline, threshold, batch_size))
        )
        changed, todo = share_from_main_process(lambda: _to_do(predictor, images))
        unusable: list[UnusableImage] = []
        bar = progress_bar(
            title="Images", total=len(images), initial=len(images) - len(todo), disable=not state.is_main_process
        )
        with bar:
            for start in range(0, len(todo), batch_size * state.num_processes):
                names = todo[start : start + batch_size * state.num_processes]
                stamps = _stamps(names, images) if state.is_main_process else {}
                own = names[state.process_index * batch_size : (state.process_index + 1) * batch_size]
                batches: list[_Batch | None] = [None] * state.num_processes
                batch = _predict(pipeline, {name: images[name] for name in own}, batch_size, threshold)
                torch.distributed.gather_object(batch, batches if state.is_main_process else None)
                for done in batches if state.is_main_process else ():
                    _write(predictor, done, stamps)
                    unusable += done.unusable
                bar.update(len(names))
        leave_process_group()
        return predictor.count(unusable, changed) if state.is_main_process else None


def _find_images(paths: list[Path], output: Path) -> tuple[ImageSources, dict[str, Path]]:
    sources = ImageSources.of(paths, output)
    return sources, sources.find_all()


def _digest(images: dict[str, Path]) -> str:
    """Return a digest of names and sizes; times differ between copies."""
    stamps = _stamps(list(images), images)
    described = "\n".join(f"{name}\t{stamps[name][0] if name in stamps else 'unusable'}" for name in images)
    return hashlib.sha256(described.encode("utf-8", errors="surrogateescape")).hexdigest()


def _stamps(names: list[str], images: dict[str, Path]) -> dict[str, Stamp]:
    """Return the stamps of files; a link that leads nowhere, and a file that is gone by now, have none."""
    stamps = {}
    for name in names:
        with suppress(OSError):
            stamps[name] = file_stamp(images[name])
    return stamps


def _to_do(predictor: FolderPredictor, images: dict[str, Path]) -> tuple[list[str], list[str]]:
    """Return the names whose files changed since their row was written, and those without a row."""
    changed = predictor.table.changed(images)
    predictor.table.remove(changed)
    return changed, [name for name in images if name not in predictor.table.rows]


def _predict(pipeline: DefectDetectionPipeline, images: dict[str, Path], batch_size: int, threshold: float) -> _Batch:
    """Predict one batch; the maps stay here, drawn into overlays."""
    found = [load_named(named) for named in images.items()]
    unusable = [one for one in found if isinstance(one, UnusableImage)]
    loaded = [one for one in found if isinstance(one, LoadedImage)]
    if not loaded:  # the last batches may be fewer than the processes
        return _Batch([], unusable)
    predictions = pipeline([image for *_, image in loaded], batch_size=batch_size, box_threshold=threshold)
    rows, top_cells = [], pipeline.model.config.top_cells
    for (name, _, image), prediction in zip(loaded, predictions, strict=True):
        overlay = encode_overlay(image, prediction, threshold, top_cells)
        rows.append((name, {key: value for key, value in prediction.items() if key != "heat_map"}, overlay))
    return _Batch(rows, unusable)


def _write(predictor: FolderPredictor, batch: _Batch, stamps: dict[str, Stamp]) -> None:
    """Write rows and overlays; the stamps are those of the main process's files, which it compares when it resumes."""
    for name, prediction, overlay in batch.rows:
        if name not in stamps:
            raise InputError(f"{name}: the image was deleted while it was predicted; run the same command again.")
        path = overlay_path(predictor.output / "overlays", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(overlay)
        predictor.table.append(name, stamps[name], prediction)


__all__ = ["predict_together"]
