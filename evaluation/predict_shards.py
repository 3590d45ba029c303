"""Predict the images in parquet or WebDataset shards into a CSV; resumable, and shared by several processes."""

from __future__ import annotations

import hashlib
import json
from functools import partial
from pathlib import Path
from typing import Any

from datasets import Dataset, Features, Value

from ..data.images import decode_usable, find_files, has_image_suffix, image_bytes, without_decoding
from ..data.processes import (
    check_equal,
    join_processes,
    leave_process_group,
    run_on_all_processes,
    share_from_main_process,
)
from ..data.readers.shards import SUFFIXES, load_shard_images
from ..data.shard_files import check_complete
from ..data.storage import full_disk_as_input_error, run_on_main_process
from ..errors import InputError
from ..knowledge.sharded_map import Columns, Row, sharded_map
from ..pipeline_kgl import DefectDetectionPipeline
from ..training.run_dir import claim
from .predict_folder import FolderPredictions, FolderPredictor, load_pipeline, prediction_settings
from .prediction_stream import UnusableImage, forward_batch
from .prediction_table import PredictionTable, Stamp, file_stamp


_COLUMNS = Features(file_name=Value("string"), prediction=Value("string"), problem=Value("string"))


def find_shards(paths: list[Path]) -> list[Path]:
    """
    Return the shards among files, and those in folders without image files at any depth; none where there are none.

    Raises:
        InputError: some of the paths hold shards and others do not, or a folder lacks one of them.
    """
    found = {}
    for path in paths:
        files = find_files(path) if path.is_dir() else [path]
        shards = [file for file in files if file.suffix.lower() in SUFFIXES]
        # Beside images, such a file is something else: a list of them, or a backup.
        found[path] = [] if any(has_image_suffix(file.name) for file in files) else shards
        if path.is_dir():
            check_complete(found[path])
    without = [path for path, shards in found.items() if not shards]
    if without and len(without) < len(paths):
        raise InputError(f"{without[0]}: it holds no shards, and other paths do; predict images and shards apart.")
    return sorted({shard for shards in found.values() for shard in shards})


def predict_shards(
    shards: list[Path], model: str, output: Path, batch_size: int = 16, box_threshold: float | None = None
) -> FolderPredictions | None:
    """
    Write `output/predictions.csv`, one row per image in the order of the shards, without overlays.

    Two batches of images as the model sees them, and a whole one per thread of torch, are held in memory beside the
    row groups. Called by every process of `accelerate launch`, the processes share the work, whatever the number of
    shards. A stopped call resumes, a finished one computes nothing.

    Args:
        shards: parquet and WebDataset files.
        model: a classifier saved by kgl train, a folder or a Hub id.
        output: a new folder, or that of an unfinished call with the same arguments.
        batch_size: images per forward pass.
        box_threshold: value of the heat map, in 0..1, from which a cell belongs to a box; the model's own by default.

    Returns:
        The counts; None in other processes than the main one, whose group ends with the pass.

    Raises:
        InputError: an argument cannot be used, or `output` holds something else or cannot be written to.
    """
    state = join_processes("kgl predict")
    pipeline, threshold = run_on_all_processes(lambda: load_pipeline(model, batch_size, box_threshold, state.device))
    images = run_on_all_processes(lambda: load_shard_images(shards))
    stamps = {str(shard.absolute()): file_stamp(shard) for shard in shards}
    decides = prediction_settings(pipeline, threshold)
    check_equal({"predictions": {**decides, "images": _digest(images, stamps)}})
    settings = share_from_main_process(
        lambda: {**decides, "shards": {shard: list(stamp) for shard, stamp in stamps.items()}}
    )
    key = json.dumps(settings, sort_keys=True, default=str)

    def identify(rows: Columns) -> str:
        return hashlib.sha1(f"{key} {rows['file_name']}".encode()).hexdigest()

    held = run_on_main_process(lambda: claim(output, {"predictions": settings}, flag="--output"))
    with full_disk_as_input_error(output):
        table = sharded_map(
            without_decoding(images), partial(_load, pipeline), partial(_predict, pipeline, threshold), identify,
            output / "predictions", features=_COLUMNS, batch_size=batch_size, title="Images",
        )  # fmt: skip
        leave_process_group()
        if not state.is_main_process:
            return None
        classes = list(pipeline.model.config.label2id)
        with _new_table(output / "predictions.csv", classes) as rows:
            unusable = _write_rows(table, images, stamps, rows)
            counts = FolderPredictor(pipeline, output, rows, batch_size, threshold).count(unusable, [])
    held.release()
    return counts


def _digest(images: Dataset, stamps: dict[str, Stamp]) -> str:
    """Return a digest of the images' names and the shards' sizes; times differ between copies."""
    described = [images["file_name"][:], [size for size, _ in stamps.values()]]
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def _load(pipeline: DefectDetectionPipeline, row: Row) -> dict[str, Any] | str:
    """Return the pipeline's inputs of an undecoded row, or why its image cannot be used."""
    try:
        if row["image"] is None:
            raise ValueError("no image in its row of the shard")
        return pipeline.preprocess(decode_usable(image_bytes(row["image"])))
    except ValueError as error:
        return str(error)


def _predict(
    pipeline: DefectDetectionPipeline, threshold: float, rows: Columns, loaded: list[dict[str, Any] | str]
) -> Columns:
    """Return the predictions of images as JSON, or why an image cannot be used."""
    outputs = forward_batch(pipeline, [one for one in loaded if not isinstance(one, str)])
    predictions = [{} if isinstance(one, str) else pipeline.postprocess(next(outputs), threshold) for one in loaded]
    for prediction in predictions:
        prediction.pop("heat_map", None)
    return {
        "file_name": rows["file_name"],
        "prediction": [json.dumps(one) for one in predictions],
        "problem": [one if isinstance(one, str) else None for one in loaded],
    }


def _new_table(path: Path, classes: list[str]) -> PredictionTable:
    path.unlink(missing_ok=True)  # of an earlier call, killed while it wrote the rows
    return PredictionTable(path, classes)


def _write_rows(
    table: Dataset, images: Dataset, stamps: dict[str, Stamp], rows: PredictionTable
) -> list[UnusableImage]:
    """Write the rows of usable images, and return the others."""
    unusable = []
    for row, image in zip(table, without_decoding(images), strict=True):
        shard = image["image"]["path"].rpartition("::")[2] if image["image"] else ""
        if row["problem"] is None:
            rows.append(row["file_name"], stamps[shard], json.loads(row["prediction"]))
        else:
            unusable.append(UnusableImage(Path(row["file_name"]), row["problem"]))
    return unusable


__all__ = ["find_shards", "predict_shards"]
