"""Grids of images under their maps, laid out by the images' aspect ratio."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from datasets import Dataset
from matplotlib import rc_context
from matplotlib.axes import Axes

from ..data.masks import mask_to_array
from .fonts import font_families, legible_names
from .maps import upsample_maps
from .overlay import overlay_heat_map
from .tiles import POINTS, Layout, add_titles, enlarge, new_figure, wrap


_NUMBERED = " (classes by their number in config.json: no installed font has the letters of all names)"


def draw_image_grid(
    path: Path,
    dataset: Dataset,
    maps: dict[str, np.ndarray],
    size: tuple[int, int],
    title: str,
    scale: str,
    captions: dict[str, list[str]],
    thresholds: dict[str, list[float]],
) -> None:
    """
    Write a PNG with a block of tiles per image: the image, each of `maps` over it, and the true mask if there are any.

    Args:
        path: the PNG to write.
        dataset: columns `image`, `label` and `mask` of the images.
        maps: heading to maps `(N, h, w)` in 0..1, upsampled bilinearly.
        size: height and width of the model's images, whose aspect ratio the tiles have.
        title: title of the figure.
        scale: label of the colour bar.
        captions: heading (`image` or one of `maps`) to the captions of its tiles.
        thresholds: heading to a value of each of its maps, below which nothing is drawn; other maps have none.
    """
    size = enlarge(size)
    height, width = size
    names = dataset.features["label"].names
    shown = legible_names(names)
    masks = [mask_to_array(mask, size) for mask in dataset["mask"]]
    headings = ["image", *maps, *(["true mask"] if any(mask is not None for mask in masks) else [])]
    upsampled = {heading: upsample_maps(of_column, size) for heading, of_column in maps.items()}
    layout = Layout.of(len(headings), width / height)
    with rc_context({"font.family": font_families(names), "text.parse_math": False}):
        figure, axes, bar = new_figure(layout, len(dataset))
        for index, row in enumerate(dataset):
            image = np.asarray(row["image"].convert("RGB").resize((width, height)))
            for axis, heading in zip(layout.axes_of(axes, index), headings, strict=True):
                axis.set_axis_on()
                if heading in maps:
                    lowest = thresholds[heading][index] if heading in thresholds else None
                    axis.imshow(overlay_heat_map(image, upsampled[heading][index], lowest))
                elif heading == "image":
                    axis.imshow(image)
                elif masks[index] is not None:
                    axis.imshow(masks[index], cmap="gray", vmin=0, vmax=1)
                axis.set_aspect(layout.stretch)
                caption = captions[heading][index] if heading in captions else ""
                _label(axis, layout, index, heading, shown[row["label"]], caption)
        add_titles(figure, bar, title if shown == names else title + _NUMBERED, scale)
        figure.savefig(path)


def _label(axis: Axes, layout: Layout, image: int, heading: str, name: str, caption: str) -> None:
    """Label a tile with its heading, the class of the image and its caption, wrapped to the tile."""
    if layout.rows > 1:
        is_first = heading == "image"
        parts = [f"{heading}: {name}" if is_first else heading, caption]
        title = wrap("  ·  ".join(filter(None, parts)), layout.width)
        axis.set_title(title, loc="left", fontsize=POINTS, pad=2, fontweight="bold" if is_first else "normal")
        return
    if image < layout.blocks:
        axis.set_title(wrap(heading, layout.width), fontsize=POINTS + 1)
    axis.set_xlabel(wrap(caption, layout.width), fontsize=POINTS)
    if heading == "image":
        axis.set_ylabel(wrap(name, layout.height), fontsize=POINTS + 1)


__all__ = ["draw_image_grid"]
