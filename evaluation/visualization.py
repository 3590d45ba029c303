"""Image grids and heat-map overlays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from datasets import Dataset
from matplotlib import colormaps
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from ..data.masks import mask_to_array
from .maps import upsample_maps
from .predictions import Predictions


_COLOURMAP = "inferno"


def overlay_heat_map(image: np.ndarray, heat: np.ndarray, threshold: float = 0.0) -> np.ndarray:
    """
    Return a grey image under a coloured heat map, `(H, W, 3)` uint8.

    Args:
        image: `(H, W)` uint8.
        heat: `(H, W)` in 0..1; from 0, which leaves the image as it is, to 1, which covers three quarters of it.
        threshold: value of the heat below which the image is left as it is, too.
    """
    heat = np.clip(heat, 0, 1).astype(np.float32)
    heat = np.where(heat >= threshold, heat, np.float32(0))
    colours = colormaps[_COLOURMAP](heat, bytes=True)[..., :3]
    opacity = np.float32(0.75) * heat[..., None]
    return ((1 - opacity) * image[..., None] + opacity * colours).astype(np.uint8)


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
    Write a PNG with one row per image: image, prior, class maps of both models, heat map, and true mask.

    A class map is that of the most probable defect class; the predicted class and its probability stand below it.
    The heat map is shown from its threshold on.

    Args:
        path: the PNG to write.
        dataset: the images of the rows, with `mask` and, for training images, `saliency_prior`.
        predictions: `primary` and `final` predictions of `dataset`.
        size: height and width of each tile in pixels.
        title: title of the figure.
        heat_threshold: of the final classifier's heat map; None where it has none.
    """
    maps, scale = {}, "share of the map's own peak"
    if "saliency_prior" in dataset.column_names:
        maps["prior"] = np.asarray(dataset["saliency_prior"]) / 255
    names = dataset.features["label"].names
    captions = {}
    for model, predicted in predictions.items():
        maps[f"{model}: class map"] = predicted.class_map
        captions[f"{model}: class map"] = [
            f"predicted: {names[row.argmax()]} {row.max():.2f}" for row in predicted.probabilities
        ]
    thresholds = {}
    if heat_threshold is not None:
        heading = f"final: heat map H\nfrom {heat_threshold:.3g}"
        maps[heading], thresholds[heading] = predictions["final"].saliency, heat_threshold
        scale = "prior and class maps: share of their own peak; H: 0 no defect, 1 defect"
    draw_image_grid(path, dataset, maps, size, title, scale, captions, thresholds)


def draw_image_grid(
    path: Path,
    dataset: Dataset,
    maps: dict[str, np.ndarray],
    size: tuple[int, int],
    title: str,
    scale: str,
    captions: dict[str, list[str]],
    thresholds: dict[str, float],
) -> None:
    """
    Write a PNG with one row per image: the image, each of `maps` over it, and the true masks where there are any.

    Args:
        path: the PNG to write.
        dataset: columns `image`, `label` and `mask` of the rows.
        maps: column heading to maps `(N, h, w)` in 0..1, upsampled bilinearly.
        size: height and width of each tile in pixels.
        title: title of the figure.
        scale: label of the colour bar.
        captions: column heading (`image` or one of `maps`) to the captions below its tiles.
        thresholds: column heading to the value below which nothing of its maps is drawn; 0 for the others.
    """
    height, width = size
    names = dataset.features["label"].names
    masks = [mask_to_array(mask, size) for mask in dataset["mask"]]
    headings = ["image", *maps, *(["true mask"] if any(mask is not None for mask in masks) else [])]
    upsampled = {heading: upsample_maps(of_column, size) for heading, of_column in maps.items()}

    tile = 1.9
    figure = Figure(
        figsize=(tile * len(headings) + 0.9, tile * 0.92 * height / width * len(dataset) + 0.9),
        dpi=110,
        layout="constrained",
    )
    axes = figure.subplots(len(dataset), len(headings), squeeze=False)
    for index, row in enumerate(dataset):
        image = np.asarray(row["image"].convert("L").resize((width, height)))
        for axis, heading in zip(axes[index], headings, strict=True):
            axis.set(xticks=[], yticks=[])
            if index == 0:
                axis.set_title(heading, fontsize=9)
            if heading in maps:
                axis.imshow(overlay_heat_map(image, upsampled[heading][index], thresholds.get(heading, 0.0)))
            elif heading == "image":
                axis.imshow(image, cmap="gray", vmin=0, vmax=255)
            elif masks[index] is not None:
                axis.imshow(masks[index], cmap="gray", vmin=0, vmax=1)
            if heading in captions:
                axis.set_xlabel(captions[heading][index], fontsize=8, parse_math=False)
        # Names of classes are data: between two dollars, matplotlib would typeset a formula.
        axes[index][0].set_ylabel(names[row["label"]], fontsize=9, parse_math=False)
    figure.suptitle(title, fontsize=10)
    colours = ScalarMappable(cmap=_COLOURMAP)
    colours.set_clim(0, 1)
    figure.colorbar(colours, ax=axes, shrink=0.6, aspect=40, pad=0.02, label=scale)
    figure.savefig(path)


__all__ = ["draw_comparison_grid", "draw_image_grid", "overlay_heat_map", "select_grid_rows"]
