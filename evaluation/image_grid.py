"""Grids of images under their maps, laid out by the images' aspect ratio."""

from __future__ import annotations

import math
import textwrap
import unicodedata
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure

from ..data.masks import mask_to_array
from .fonts import font_families, legible_names
from .maps import upsample_maps
from .overlay import COLOURMAP, overlay_heat_map


_DPI = 110
_WIDE, _TALL = 2.5, 0.4  # width / height from which on, and up to which, images are strips
_POINTS = 8  # font size of captions
_NUMBERED = " (classes by their number in config.json: no installed font has the letters of all names)"


@dataclass(frozen=True)
class _Layout:
    """
    Arrangement of tiles: each image has a block of tiles, stacked where images are wide strips, else side by side.

    Attributes:
        rows, columns: of the tiles in a block.
        blocks: side by side.
        width, height: of a tile in inches.
        stretch: whether images fill their tile in place of keeping their aspect ratio: they would be lines.
    """

    rows: int
    columns: int
    blocks: int
    width: float
    height: float
    stretch: bool = False

    @classmethod
    def of(cls, tiles: int, size: tuple[int, int]) -> _Layout:
        """Choose the layout of blocks of some tiles of `size = (height, width)`."""
        aspect = size[1] / size[0]
        if aspect >= _WIDE:
            return cls(tiles, 1, 2, 5.6, max(5.6 / aspect, 0.35), stretch=5.6 / aspect < 0.35)
        if aspect <= _TALL:
            return cls(1, tiles, 2 if aspect < 0.25 else 1, max(4 * aspect, 1.2), 4.0)
        return cls(1, tiles, 1, 1.9, 1.9 / aspect)

    def axes_of(self, axes: np.ndarray, image: int) -> list[Axes]:
        """Return the axes of an image's tiles among all `axes (rows, columns)`."""
        row, column = divmod(image, self.blocks)
        block = axes[row * self.rows : (row + 1) * self.rows, column * self.columns : (column + 1) * self.columns]
        return list(block.flat)


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
        size: height and width of the tiles in pixels.
        title: title of the figure.
        scale: label of the colour bar.
        captions: heading (`image` or one of `maps`) to the captions of its tiles.
        thresholds: heading to a value of each of its maps, below which nothing is drawn; other maps have none.
    """
    height, width = size
    names = dataset.features["label"].names
    shown = legible_names(names)
    masks = [mask_to_array(mask, size) for mask in dataset["mask"]]
    headings = ["image", *maps, *(["true mask"] if any(mask is not None for mask in masks) else [])]
    upsampled = {heading: upsample_maps(of_column, size) for heading, of_column in maps.items()}
    layout = _Layout.of(len(headings), size)
    with rc_context({"font.family": font_families(names), "text.parse_math": False}):
        figure, axes, bar = _new_figure(layout, len(dataset))
        for index, row in enumerate(dataset):
            image = np.asarray(row["image"].convert("L").resize((width, height)))
            for axis, heading in zip(layout.axes_of(axes, index), headings, strict=True):
                axis.set_axis_on()
                if heading in maps:
                    lowest = thresholds[heading][index] if heading in thresholds else None
                    axis.imshow(overlay_heat_map(image, upsampled[heading][index], lowest))
                elif heading == "image":
                    axis.imshow(image, cmap="gray", vmin=0, vmax=255)
                elif masks[index] is not None:
                    axis.imshow(masks[index], cmap="gray", vmin=0, vmax=1)
                axis.set_aspect("auto" if layout.stretch else "equal")
                caption = captions[heading][index] if heading in captions else ""
                _label(axis, layout, index, heading, shown[row["label"]], caption)
        title = title if shown == names else title + _NUMBERED
        figure.suptitle(_wrap(title, 0.75 * figure.get_figwidth()), fontsize=10)
        colours = ScalarMappable(cmap=COLOURMAP)
        colours.set_clim(0, 1)
        figure.colorbar(colours, cax=bar, orientation="horizontal", label=scale)
        figure.draw_without_rendering()  # the layout takes a second pass where captions have several lines
        figure.savefig(path)


def _new_figure(layout: _Layout, images: int) -> tuple[Figure, np.ndarray, Axes]:
    """Return a figure with room for captions, the axes of its tiles, all switched off, and those of its colour bar."""
    rows = math.ceil(images / layout.blocks) * layout.rows
    columns = min(layout.blocks, images) * layout.columns
    figsize = (max((layout.width + 0.15) * columns + 0.4, 6.5), (layout.height + 0.25) * rows + 1.2)
    figure = Figure(figsize=figsize, dpi=_DPI, layout="constrained")
    grid = figure.add_gridspec(rows + 1, columns, height_ratios=[*[layout.height] * rows, 0.12])
    axes = np.array([[figure.add_subplot(grid[row, column]) for column in range(columns)] for row in range(rows)])
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        axis.set_axis_off()
    return figure, axes, figure.add_subplot(grid[-1, :])


def _label(axis: Axes, layout: _Layout, image: int, heading: str, name: str, caption: str) -> None:
    """Label a tile with its heading, the class of the image and its caption, wrapped to the tile."""
    if layout.rows > 1:
        is_first = heading == "image"
        parts = [f"{heading} of class {name}" if is_first else heading, caption]
        title = _wrap("  ·  ".join(filter(None, parts)), layout.width)
        axis.set_title(title, loc="left", fontsize=_POINTS, pad=2, fontweight="bold" if is_first else "normal")
        return
    if image < layout.blocks:
        axis.set_title(_wrap(heading, layout.width), fontsize=_POINTS + 1)
    axis.set_xlabel(_wrap(caption, layout.width), fontsize=_POINTS)
    if heading == "image":
        axis.set_ylabel(_wrap(name, layout.height), fontsize=_POINTS + 1)


def _wrap(text: str, inches: float) -> str:
    """Break a text into lines that fit a width at the font size of captions; three at most."""
    letters = int(72 * inches / (0.6 * _POINTS))
    if any(unicodedata.east_asian_width(letter) in "WF" for letter in text):
        letters //= 2
    return textwrap.fill(text, max(letters, 8), max_lines=3, placeholder=" …")


__all__ = ["draw_image_grid"]
