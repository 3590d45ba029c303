"""The steps of the job on a frozen backbone: features once, then each classifier's heads in seconds."""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from ..data.storage import run_on_main_process
from ..modeling_kgl import KGLForImageClassification
from .frozen_features import CELLS_FILE, FrozenFeatures, fit_cells, write_frozen_features
from .frozen_heads import FrozenHeads
from .run_dir import CACHE_FOLDER, RunState
from .tuned_stage import join_tuned_stage
from .two_phase import Priors, Recipe, TrainedPhase, has_priors


@dataclass(frozen=True)
class FrozenInputs:
    """
    What both classifiers are fitted to; where they and the priors are finished, neither features nor a model.

    Attributes:
        rows: the training images.
        features: of them.
        model: pretrained, with a fitted cell projection and new heads.
        seconds: that the features took.
    """

    rows: Dataset
    features: FrozenFeatures | None
    model: KGLForImageClassification | None
    seconds: float


def cache_features(train: Dataset, recipe: Recipe, state: RunState) -> FrozenInputs:
    """
    Fit the cell projection and compute the features of all training images.

    Args:
        train: the training images.
        recipe: of the run.
        state: of the run; records the seconds as `frozen_features`.

    Raises:
        InputError: the cache cannot be written.
    """
    if state.is_finished("primary", "final") and has_priors(recipe, state):
        return FrozenInputs(train, None, None, state.record("frozen_features")["seconds"])
    started, args = time.perf_counter(), recipe.args
    model = recipe.initial_model().to(args.device)
    folder = recipe.output_dir / CACHE_FOLDER
    batch_size = args.per_device_eval_batch_size
    fit_cells(model, train, recipe.image_processor, batch_size, args.seed, folder / CELLS_FILE)
    features = write_frozen_features(
        train, model, recipe.image_processor, folder / "frozen_features", batch_size, args.seed
    )
    record = state.record("frozen_features") or state.finish("frozen_features", seconds=time.perf_counter() - started)
    return FrozenInputs(train, features, model, record["seconds"])


def fit_phase(
    phase: str,
    title: str,
    inputs: FrozenInputs,
    recipe: Recipe,
    state: RunState,
    priors: Priors | None = None,
    tuned: TrainedPhase | None = None,
) -> TrainedPhase:
    """
    Fit one classifier's heads into the run's folder `phase`.

    Args:
        phase: `primary` or `final`; the last has the saliency head.
        title: what the terminal calls it.
        inputs: of both phases.
        recipe: of the run.
        state: of the run; records `seconds`, `steps`, `validation` and `fit` under the phase's name.
        priors: of the training images, for `final`.
        tuned: the fine-tuned stage to join to the heads.
    """
    folder, say = recipe.output_dir / phase, recipe.args.process_index == 0
    if state.record(phase) is None:
        started = time.perf_counter()
        fit, validation = run_on_main_process(lambda: _fit(folder, inputs, recipe, priors, tuned)) or (None, None)
        seconds = time.perf_counter() - started
        state.finish(phase, seconds=seconds, steps=0, validation=validation, fit=fit)
        if say:
            print(f"{title}: heads fitted to frozen features in {seconds:.1f} s.")
    elif say:
        print(f"{title}: finished before.")
    record = state.record(phase)
    return TrainedPhase(folder, record["seconds"], record["steps"], record["validation"])


def _fit(
    folder: Path, inputs: FrozenInputs, recipe: Recipe, priors: Priors | None, tuned: TrainedPhase | None
) -> tuple[dict[str, float], dict[str, Any] | None]:
    model, fit = fit_heads(inputs, recipe.args.seed, priors)
    if tuned is not None:
        model = join_tuned_stage(model, KGLForImageClassification.from_pretrained(tuned.folder).to(model.device))
    validation = recipe.calibrate(model)
    model.save_pretrained(folder)
    recipe.image_processor.save_pretrained(folder)
    return fit, validation


def fit_heads(
    inputs: FrozenInputs, seed: int, priors: Priors | None
) -> tuple[KGLForImageClassification, dict[str, float]]:
    """
    Return a copy of the model with fitted heads, and how its scores were fused.

    Args:
        inputs: of both classifiers.
        seed: of cross-fitting and the saliency head.
        priors: of the training images; None for the primary, whose saliency head stays untrained.
    """
    model, rows = copy.deepcopy(inputs.model), inputs.rows
    masked = None if priors is None else _masked_cells(rows, priors.table, inputs.features)
    heads = FrozenHeads(model, inputs.features, np.asarray(rows["label"][:]), rows["group"][:], seed, masked)
    if priors is None:
        fit = heads.fit_primary()
    elif model.config.defect_free_id is None:
        fit = heads.fit_primary()
        table = priors.table.select(inputs.features.cell_rows)
        heads.fit_saliency_to_priors(
            np.asarray(table["saliency_prior"][:], dtype=np.uint8), np.asarray(table["prior_threshold"][:])
        )
    else:
        fit = heads.fit_final()
    model.config.has_heat_map = priors is not None
    return model, fit


def _masked_cells(rows: Dataset, priors: Dataset, features: FrozenFeatures) -> np.ndarray | None:
    """Return the cells that masks mark in the images with cells, `(M, h, w)` bool, None without masks."""
    has_mask = [mask is not None for mask in rows.select_columns("mask").with_format("arrow")["mask"].to_pylist()]
    has_mask = np.asarray(has_mask)[features.cell_rows]
    if not has_mask.any():
        return None
    maps = np.asarray(priors.select(features.cell_rows)["saliency_prior"][:], dtype=np.uint8) > 0
    return maps & has_mask[:, None, None]


__all__ = ["FrozenInputs", "cache_features", "fit_heads", "fit_phase"]
