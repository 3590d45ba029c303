"""Image grids and heat-map overlays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from datasets import Dataset
from matplotlib import colormaps
from matplotlib.figure import Figure

from ..data.masks import mask_to_array
from .maps import upsample_maps
from .predictions import Predictions


def select_grid_rows(dataset: Dataset, count: int, defect_free: str | None) -> list[int]:
    """Up to `count` indices, the classes taking turns, the defect-free one last."""
    names = dataset.features["label"].names
    of_class = {name: [] for name in sorted(names, key=lambda name: (name == defect_free, names.index(name)))}
    for index, label in enumerate(dataset["label"]):
        of_class[names[label]].append(index)
    turns = [
        index for turn in zip(*(_padded(of_class[name], count) for name in of_class), strict=True) for index in turn
    ]
    return [index for index in turns if index is not None][:count]


def draw_comparison_grid(
    path: Path,
    dataset: Dataset,
    predictions: dict[str, Predictions],
    size: tuple[int, int],
    title: str,
) -> None:
    """
    Write a PNG: a row an image; image, prior, the plain and the guided classifier's class maps, H, and the true mask.

    A class map is that of the likeliest class with a defect; what the classifier says stands below it.

    Args:
        path: the PNG to write.
        dataset: the images of the rows, with `saliency_prior` where they were trained on and `mask` where known.
        plain: the primary's predictions for `dataset`.
        guided: the final model's.
        size: `(H, W)` that everything is drawn at.
        title: what stands above it all.
    """
    plain, guided = predictions.values()
    maps = {}
    if "saliency_prior" in dataset.column_names:
        maps["prior"] = np.asarray(dataset["saliency_prior"]) / 255
    maps["plain: class map"] = plain.class_map
    maps["guided: class map"] = guided.class_map
    maps["guided: saliency H"] = guided.saliency
    names = dataset.features["label"].names
    captions = {
        f"{arm}: class map": [f"says {names[row.argmax()]} {row.max():.2f}" for row in predictions.probabilities]
        for arm, predictions in (("plain", plain), ("guided", guided))
    }
    scale = "prior and class maps: share of their own peak; H: 0 no defect, 1 defect"
    draw_image_grid(path, dataset, maps, size, title, scale, captions)


def draw_image_grid(
    path: Path,
    dataset: Dataset,
    maps: dict[str, np.ndarray],
    size: tuple[int, int],
    title: str,
    scale: str,
    captions: dict[str, list[str]],
) -> None:
    """
    Write a PNG: a row an image; the image, each of `maps` over it, and the true mask where one is known.

    Args:
        path: the PNG to write.
        dataset: `image`, `label` and `mask` of the rows.
        maps: heading to maps `(N, h, w)` in 0..1, enlarged bilinearly.
        size: `(H, W)` that everything is drawn at.
        title: what stands above it all.
        scale: what the colour bar says.
        captions: heading to what stands below each tile of that column; `image` is a heading too.
    """
    height, width = size
    names = dataset.features["label"].names
    masks = [mask_to_array(mask, size) for mask in dataset["mask"]]
    headings = ["image", *maps, *(["true mask"] if any(mask is not None for mask in masks) else [])]
    large = {heading: upsample_maps(of_images, size) for heading, of_images in maps.items()}

    tile = 1.9
    figure = Figure(
        figsize=(tile * len(headings) + 0.9, tile * 0.92 * height / width * len(dataset) + 0.9),
        dpi=110,
        layout="constrained",
    )
    axes = figure.subplots(len(dataset), len(headings), squeeze=False)
    heat = None
    for index, row in enumerate(dataset):
        image = np.asarray(row["image"].convert("L").resize((width, height)))
        for axis, heading in zip(axes[index], headings, strict=True):
            axis.set(xticks=[], yticks=[])
            if index == 0:
                axis.set_title(heading, fontsize=9)
            if heading != "true mask":
                axis.imshow(image, cmap="gray", vmin=0, vmax=255)
            elif masks[index] is not None:
                axis.imshow(masks[index], cmap="gray", vmin=0, vmax=1)
            if heading in captions:
                axis.set_xlabel(plain_text(captions[heading][index]), fontsize=8)
            if heading in maps:
                heat = axis.imshow(large[heading][index], cmap="inferno", vmin=0, vmax=1, alpha=0.55)
        axes[index][0].set_ylabel(plain_text(names[row["label"]]), fontsize=9)
    figure.suptitle(title, fontsize=10)
    figure.colorbar(heat, ax=axes, shrink=0.6, aspect=40, pad=0.02, label=scale)
    figure.savefig(path)


def plain_text(name: str) -> str:
    """A name as matplotlib shows it letter by letter: between two dollars it would read a formula."""
    return name.replace("$", r"\$")


def overlay_heat_map(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """
    A grey image `(H, W)` uint8 under a heat map `(H, W)` in 0..1: `(H, W, 3)` uint8.

    The hotter, the less of the image shows.
    """
    heat = np.clip(heat, 0, 1).astype(np.float32)
    colours = colormaps["inferno"](heat, bytes=True)[..., :3]
    share = np.float32(0.75) * heat[..., None]
    return ((1 - share) * image[..., None] + share * colours).astype(np.uint8)


def _padded(indices: list[int], count: int) -> list[int | None]:
    return [*indices[:count], *[None] * (count - len(indices))]


__all__ = ["draw_comparison_grid", "draw_image_grid", "overlay_heat_map", "plain_text", "select_grid_rows"]
