"""Image grids of both classifiers of a run."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from datasets import Dataset

from .fonts import legible_names
from .image_grid import draw_image_grid
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
    heat_threshold: float | None,
) -> None:
    """
    Write a PNG with tiles of each image: image, prior, class maps of both models, heat map, and true mask.

    A class map is that of the most probable defect class; the predicted class and its probability stand beside it.
    The heat map is drawn from its threshold on.

    Args:
        path: the PNG to write.
        dataset: the images, with `mask` and, for training images, `saliency_prior`.
        predictions: `primary` and `final` predictions of `dataset`.
        size: height and width of each tile in pixels.
        title: title of the figure.
        heat_threshold: of the final classifier's heat map; None where it has none.
    """
    maps, scale, thresholds = {}, "share of the map's own peak", {}
    if "saliency_prior" in dataset.column_names:
        maps["prior"] = np.asarray(dataset["saliency_prior"]) / 255
    names = legible_names(dataset.features["label"].names)
    captions = {}
    for model, predicted in predictions.items():
        maps[f"{model}: class map"] = predicted.class_map
        captions[f"{model}: class map"] = [
            f"predicted: {names[row.argmax()]} {row.max():.2f}" for row in predicted.probabilities
        ]
    if heat_threshold is not None:
        heading = f"final: heat map H from {heat_threshold:.3g}"
        maps[heading], thresholds[heading] = predictions["final"].saliency, heat_threshold
        scale = "prior and class maps: share of their own peak; H: 0.5 at its threshold, 1 at 1"
    draw_image_grid(path, dataset, maps, size, title, scale, captions, thresholds)


__all__ = ["draw_comparison_grid", "select_grid_rows"]
