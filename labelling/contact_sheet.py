"""Contact sheet of chosen images, each beside its heat map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from matplotlib import rc_context
from matplotlib.figure import Figure

from ..configuration_kgl import KGLConfig
from ..evaluation.fonts import font_families
from ..evaluation.maps import upsample_maps
from ..evaluation.overlay import overlay_heat_map, shown_from


_IMAGES = 3  # per row
_WIDTH = 1.7  # of a tile in inches
_MAX_NAME = 34  # letters


def draw_contact_sheet(
    path: Path,
    images: Dataset,
    heat_maps: list[np.ndarray],
    columns: dict[str, list[Any]],
    config: KGLConfig,
    size: dict[str, int],
) -> None:
    """
    Write a PNG with each image beside its heat map, and rank, name and score below.

    Args:
        path: the PNG to write.
        images: column `image`, in the order of their ranks.
        heat_maps: of them, each `(h, w)` in 0..1.
        columns: `rank`, `file` and, where a class is defect-free, `defect_score`.
        config: of the classifier.
        size: `height` and `width` of the tiles in pixels.
    """
    height, width = size["height"], size["width"]
    rows = -(-len(images) // _IMAGES)
    tile = min(_WIDTH * height / width, 4 * _WIDTH)
    names = [*map(str, columns["file"]), *config.label2id]
    with rc_context({"font.family": font_families(names), "text.parse_math": False}):
        figure = Figure(figsize=(2 * _IMAGES * _WIDTH + 0.3, rows * (tile + 0.45)), dpi=110, layout="constrained")
        axes = figure.subplots(rows, 2 * _IMAGES, squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for index, row in enumerate(images):
            grey = np.asarray(row["image"].convert("L").resize((width, height)))
            heat = heat_maps[index]
            lowest = shown_from(heat, config.heat_threshold, None, config.top_cells)
            overlay = overlay_heat_map(grey, upsample_maps(heat[None], (height, width))[0], lowest)
            left, right = axes.reshape(-1, 2)[index]
            left.imshow(grey, cmap="gray", vmin=0, vmax=255, aspect="auto")
            right.imshow(overlay, aspect="auto")
            left.set_title(f"{columns['rank'][index]}  {_shorten(columns['file'][index])}", fontsize=7, loc="left")
            score = f"P(defect) {columns['defect_score'][index]:.2f}" if "defect_score" in columns else ""
            right.set_title(score or columns["predicted_label"][index], fontsize=7, loc="right")
        figure.savefig(path)


def _shorten(name: str) -> str:
    return name if len(name) <= _MAX_NAME else f"…{name[1 - _MAX_NAME :]}"


__all__ = ["draw_contact_sheet"]
