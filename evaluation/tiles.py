"""Tiles of figures and pages: sizes and arrangement by the aspect ratio of images, so that strips are no lines."""

from __future__ import annotations

import math
import textwrap
import unicodedata
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.figure import Figure
from PIL import Image as PILImage

from .overlay import COLOURMAP


POINTS = 8  # font size of captions
_STRIP = 2.5  # ratio of its sides from which on an image is a strip
_SIDE = 320  # pixels of the longer side of a tile; those of a strip have as many pixels as a square
_STRIP_SIDES = (24, 900)  # pixels of its shorter side at least, and of its longer side at most
_DPI = 110
_INCHES = 2.4  # of an image's width in a figure
_MIN_INCHES = 0.35  # of a strip's shorter side in a figure
_MAX_INCHES = 13.5  # of upright strips side by side
_SQUARES = 6  # tiles in a row of a figure


def strip_shape(image: PILImage.Image) -> str:
    """Return whether an image is a `wide` or a `tall` strip, or neither, which is the empty string."""
    if image.width >= _STRIP * image.height:
        return "wide"
    return "tall" if image.height >= _STRIP * image.width else ""


def tile_size(image: PILImage.Image) -> tuple[int, int]:
    """Return width and height of an image's tiles in pixels."""
    if not strip_shape(image):
        scale = _SIDE / max(image.size)
        return max(1, round(image.width * scale)), max(1, round(image.height * scale))
    least, most = _STRIP_SIDES
    scale = min(_SIDE / (image.width * image.height) ** 0.5, most / max(image.size))
    return max(least, round(image.width * scale)), max(least, round(image.height * scale))


def enlarge(size: tuple[int, int]) -> tuple[int, int]:
    """Return a size whose longer side has the pixels of a tile at least, of the same aspect ratio."""
    scale = max(1, _SIDE / max(size))
    return round(size[0] * scale), round(size[1] * scale)


@dataclass(frozen=True)
class Layout:
    """
    Arrangement of a figure's tiles: each image has a block of them, stacked where images are wide strips, else side by
    side.

    Attributes:
        rows, columns: of the tiles in a block.
        blocks: side by side.
        width, height: of a tile in inches.
        stretch: height of a pixel over its width as drawn; not 1 where images would be lines.
    """

    rows: int
    columns: int
    blocks: int
    width: float
    height: float
    stretch: float = 1.0

    @classmethod
    def of(cls, tiles: int, aspect: float) -> Layout:
        """Choose the layout of blocks of some tiles whose images are `aspect = width / height`."""
        if aspect >= _STRIP:
            height = max(5.6 / aspect, _MIN_INCHES)
            return cls(tiles, 1, 2, 5.6, height, stretch=height * aspect / 5.6)
        if aspect <= 1 / _STRIP:
            width = max(4 * aspect, 1.2)  # room for captions
            blocks = max(1, int(_MAX_INCHES / (tiles * (width + 0.15))))
            return cls(1, tiles, blocks, width, 4.0, stretch=min(4 * aspect / _MIN_INCHES, 1))
        return cls(1, tiles, max(1, _SQUARES // tiles), _INCHES, _INCHES / aspect)

    def axes_of(self, axes: np.ndarray, image: int) -> list[Axes]:
        """Return the axes of an image's tiles among all `axes (rows, columns)`."""
        row, column = divmod(image, self.blocks)
        block = axes[row * self.rows : (row + 1) * self.rows, column * self.columns : (column + 1) * self.columns]
        return list(block.flat)


def new_figure(layout: Layout, images: int) -> tuple[Figure, np.ndarray, Axes]:
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


def add_titles(figure: Figure, bar: Axes, title: str, scale: str) -> None:
    """Write the title of a figure, and the colours of 0..1 with their label."""
    figure.suptitle(wrap(title, 0.75 * figure.get_figwidth()), fontsize=10)
    colours = ScalarMappable(cmap=COLOURMAP)
    colours.set_clim(0, 1)
    figure.colorbar(colours, cax=bar, orientation="horizontal", label=scale)
    figure.draw_without_rendering()  # the layout takes a second pass where captions have several lines


def wrap(text: str, inches: float) -> str:
    """Break a text into lines that fit a width at the font size of captions; three at most."""
    letters = int(72 * inches / (0.6 * POINTS))
    if any(unicodedata.east_asian_width(letter) in "WF" for letter in text):
        letters //= 2
    return textwrap.fill(text, max(letters, 8), max_lines=3, placeholder=" …")


__all__ = ["POINTS", "Layout", "add_titles", "enlarge", "new_figure", "strip_shape", "tile_size", "wrap"]
