"""Image grids of both classifiers of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from datasets import Dataset

from ..configuration_kgl import KGLConfig
from .fonts import legible_names
from .image_grid import draw_image_grid
from .metrics import defect_scores
from .overlay import shown_from
from .predictions import Predictions


def select_grid_rows(dataset: Dataset, count: int, defect_free: str | None) -> list[int]:
    """Return up to `count` row numbers, one per class in turn, the defect-free class last."""
    names = dataset.features["label"].names
    rows: dict[str, list[int]] = {name: [] for name in sorted(names, key=lambda name: name == defect_free)}
    for index, label in enumerate(dataset["label"]):
        rows[names[label]].append(index)
    turns = [of_class[turn] for turn in range(count) for of_class in rows.values() if turn < len(of_class)]
    return turns[:count]


def draw_comparison_grid(
    path: Path,
    dataset: Dataset,
    predictions: dict[str, Predictions],
    size: tuple[int, int],
    title: str,
    config: KGLConfig,
) -> None:
    """
    Write a PNG with tiles of each image: image, prior, class maps of both models, heat map, and true mask.

    A class map is that of the most probable defect class; the predicted class and its probability stand beside it.
    The heat map is drawn from its threshold on, and in images called defective the highest cells at least.

    Args:
        path: the PNG to write.
        dataset: the images, with `mask` and, for training images, `saliency_prior`.
        predictions: `primary` and `final` predictions of `dataset`.
        size: height and width of the model's images, whose aspect ratio the tiles have.
        title: title of the figure.
        config: the final classifier's.
    """
    maps = {}
    if "saliency_prior" in dataset.column_names:
        maps["prior"] = np.asarray(dataset["saliency_prior"]) / 255
    names = legible_names(dataset.features["label"].names)
    captions = {}
    for model, predicted in predictions.items():
        maps[f"{model}: class map"] = predicted.class_map
        captions[f"{model}: class map"] = [
            f"predicted: {names[row.argmax()]} {row.max():.2f}" for row in predicted.probabilities
        ]
    maps["final: heat map H"] = predictions["final"].saliency
    thresholds = {"final: heat map H": heat_thresholds(predictions["final"], config)}
    heat_scale = f"H: drawn from its threshold, {config.heat_threshold:.3g} (here 0.5), up"
    scale = f"prior, class maps: share of own peak; {heat_scale}"
    draw_image_grid(path, dataset, maps, size, title, scale, captions, thresholds)


def heat_thresholds(predictions: Predictions, config: KGLConfig) -> list[float]:
    """Return the value from which each image's heat map is drawn, see [`~kgl.evaluation.overlay.shown_from`]."""
    decisions: list[bool | None] = [None] * len(predictions.probabilities)
    if config.defect_free_id is not None:
        decisions = (defect_scores(predictions.probabilities, config.defect_free_id) >= config.good_below).tolist()
    return [
        shown_from(heat, config.heat_threshold, defective, config.top_cells)
        for heat, defective in zip(predictions.saliency, decisions, strict=True)
    ]


__all__ = ["draw_comparison_grid", "heat_thresholds", "select_grid_rows"]
