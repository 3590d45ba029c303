"""Frozen features of a dataset: pooled for the classifier, and cells for the saliency head, as Arrow columns."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Features, List, Value
from safetensors.torch import load_file, save_file
from transformers import BaseImageProcessor

from ..data.images import load_pixel_values, to_pixel_values, without_decoding
from ..data.processes import share_from_main_process
from ..data.schema import digest_rows, image_digests
from ..data.storage import run_on_main_process
from ..heads_kgl import pool_maps
from ..knowledge.cells import FITTED_IMAGES, fit_projection
from ..knowledge.saliency_priors import model_digest
from ..knowledge.sharded_map import Columns, sharded_map
from ..modeling_kgl import KGLForImageClassification
from ..saliency.activations import eval_mode


CELL_IMAGES = 1000  # of each kind, good and defective, whose cells are kept; of more, the pooled features alone
CELLS_FILE = "cells.safetensors"  # the cell projection, in the cache
_TITLE = "Frozen features"
_COLUMNS = Features(
    {
        "digest": Value("string"),
        "pooled": List(Value("float32")),
        "flipped": List(Value("float32")),
        "cells": Value("binary"),
        "grid": List(Value("int32")),
    }
)


@dataclass(frozen=True)
class FrozenFeatures:
    """
    Features of N training images.

    Attributes:
        pooled: average and maximum of every stage, `(N, P)` float32.
        flipped: the same of the mirrored images, `(N, P)` float32.
        cells: projected cells of M of the images, `(M, D, h, w)` float16.
        cell_rows: their row numbers, `(M,)`.
    """

    pooled: np.ndarray
    flipped: np.ndarray
    cells: np.ndarray
    cell_rows: np.ndarray


def fit_cells(
    model: KGLForImageClassification,
    train: Dataset,
    image_processor: BaseImageProcessor,
    batch_size: int,
    seed: int,
    path: Path,
) -> None:
    """
    Fit the cell projection to defect-free images, or to all where there are none.

    It is kept in a file, since its last digits depend on the number of threads, and tables of another are refused:
    every process, and a resumed run, uses the same.

    Args:
        model: with the head `stages`.
        train: columns `image` and `label`.
        image_processor: the model's.
        batch_size: images per forward pass.
        seed: of the choice of images and cells.
        path: of the file; its folder is made where it is missing.
    """

    def fit() -> None:
        path.parent.mkdir(exist_ok=True)
        _fit_cells(model, train, image_processor, batch_size, seed)
        unfinished = path.with_suffix(".unfinished")
        save_file(model.saliency_head.fusion.state_dict(), unfinished)
        unfinished.replace(path)

    run_on_main_process(lambda: path.exists() or fit())
    model.saliency_head.fusion.load_state_dict(share_from_main_process(lambda: load_file(path)))


def _fit_cells(
    model: KGLForImageClassification,
    train: Dataset,
    image_processor: BaseImageProcessor,
    batch_size: int,
    seed: int,
) -> None:
    labels = np.asarray(train["label"][:])
    good = np.flatnonzero(labels == model.config.defect_free_id) if model.config.defect_free_id is not None else []
    rows = good if len(good) else np.arange(len(labels))
    rows = np.random.default_rng(seed).permutation(rows)[:FITTED_IMAGES]
    images = train.select(rows).select_columns("image")
    with torch.no_grad(), eval_mode(model):
        batches = (to_pixel_values(batch["image"], image_processor) for batch in images.iter(batch_size))
        fit_projection(model, (model.features(one.to(model.device))[0] for one in batches), len(rows), seed)


def write_frozen_features(
    train: Dataset,
    model: KGLForImageClassification,
    image_processor: BaseImageProcessor,
    folder: Path,
    batch_size: int,
    seed: int,
) -> FrozenFeatures:
    """
    Compute the features of the training images into an Arrow table; processes share the work, and it resumes.

    Args:
        train: columns `image` and `label`.
        model: with the head `stages` and a fitted cell projection.
        image_processor: the model's.
        folder: of the table.
        batch_size: images per forward pass.
        seed: chooses the images whose cells are kept, where there are more than `CELL_IMAGES` of a kind.

    Raises:
        InputError: as [`~kgl.knowledge.sharded_map.sharded_map`].
    """
    names = train.features["label"].names
    kept = _images_with_cells(np.asarray(train["label"][:]), model.config.defect_free_id, seed)
    rows = train.select_columns(["image", "label", *(["digest"] if "digest" in train.column_names else [])])
    rows = rows.add_column("keeps_cells", kept.tolist())
    settings = json.dumps([image_processor.to_dict(), model_digest(model)], sort_keys=True, default=str)

    def identify(rows: Columns) -> str:
        content = f"{settings} {digest_rows(rows, names)} {rows['keeps_cells']}"
        return hashlib.sha1(content.encode()).hexdigest()

    @torch.no_grad()
    def compute(rows: Columns, loaded: list[torch.Tensor]) -> Columns:
        pixel_values = torch.cat(loaded).to(model.device)
        with eval_mode(model):
            maps, _ = model.features(pixel_values)
            mirrored, _ = model.features(pixel_values.flip(3))
            cells = model.saliency_head.cells(maps[: model.config.saliency_stages]).half().cpu().numpy()
        return {
            "digest": image_digests(rows),
            "pooled": list(pool_maps(maps).float().cpu().numpy()),
            "flipped": list(pool_maps(mirrored).float().cpu().numpy()),
            "cells": [one.tobytes() if keeps else b"" for one, keeps in zip(cells, rows["keeps_cells"], strict=True)],
            "grid": [list(cells.shape[1:])] * len(pixel_values),
        }

    load = partial(load_pixel_values, image_processor=image_processor)
    table = sharded_map(
        without_decoding(rows), load, compute, identify, folder, features=_COLUMNS, batch_size=batch_size,
        title=_TITLE,
    )  # fmt: skip
    return _read(table, kept)


def _read(table: Dataset, kept: np.ndarray) -> FrozenFeatures:
    """Return the features of a table, `kept (N,)` bool being the images with cells."""
    table = table.with_format("numpy", columns=["pooled", "flipped"], output_all_columns=True)
    shape = tuple(table[0]["grid"])
    of_images = table.select(np.flatnonzero(kept)).with_format("arrow")["cells"]
    cells = np.stack([np.frombuffer(one.as_py(), dtype=np.float16).reshape(shape) for one in of_images])
    return FrozenFeatures(np.asarray(table["pooled"][:]), np.asarray(table["flipped"][:]), cells, np.flatnonzero(kept))


def _images_with_cells(labels: np.ndarray, defect_free_id: int | None, seed: int) -> np.ndarray:
    """Return which images keep their cells, `(N,)` bool: at most `CELL_IMAGES` good and as many defective ones."""
    kept, generator = np.zeros(len(labels), dtype=bool), np.random.default_rng(seed)
    good = labels == defect_free_id if defect_free_id is not None else np.zeros(len(labels), dtype=bool)
    for kind in (good, ~good):
        kept[generator.permutation(np.flatnonzero(kind))[:CELL_IMAGES]] = True
    return kept


__all__ = ["CELLS_FILE", "CELL_IMAGES", "FrozenFeatures", "fit_cells", "write_frozen_features"]
