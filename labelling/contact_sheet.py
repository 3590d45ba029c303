"""Contact sheet of chosen images, each beside its heat map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image as PILImage

from ..configuration_kgl import KGLConfig
from ..evaluation.fonts import font_families
from ..evaluation.maps import upsample_maps
from ..evaluation.overlay import overlay_heat_map, shown_from


_IMAGES = 3  # per row
_WIDTH = 1.7  # of a tile in inches
_SIDE = 240  # pixels of the longer side of a tile
_MAX_NAME = 34  # letters


def draw_contact_sheet(
    path: Path,
    images: Dataset,
    heat_maps: list[np.ndarray],
    columns: dict[str, list[Any]],
    config: KGLConfig,
) -> None:
    """
    Write a PNG with each image beside its heat map, and rank, name and score below.

    Args:
        path: the PNG to write.
        images: column `image`, in the order of their ranks.
        heat_maps: of them, each `(h, w)` in 0..1.
        columns: `rank`, `file` and, where a class is defect-free, `defect_score`.
        config: of the classifier.
    """
    rows, shown = -(-len(images) // _IMAGES), [_resize(image) for image in images["image"]]
    tile = min(_WIDTH * max(one.shape[0] / one.shape[1] for one in shown), 4 * _WIDTH)
    names = [*map(str, columns["file"]), *config.label2id]
    with rc_context({"font.family": font_families(names), "text.parse_math": False}):
        figure = Figure(figsize=(2 * _IMAGES * _WIDTH + 0.3, rows * (tile + 0.45)), dpi=110, layout="constrained")
        axes = figure.subplots(rows, 2 * _IMAGES, squeeze=False)
        for axis in axes.flat:
            axis.set_axis_off()
        for index, (grey, heat) in enumerate(zip(shown, heat_maps, strict=True)):
            lowest = shown_from(heat, config.heat_threshold, None, config.top_cells)
            overlay = overlay_heat_map(grey, upsample_maps(heat[None], grey.shape)[0], lowest)
            left, right = axes.reshape(-1, 2)[index]
            left.imshow(grey, cmap="gray", vmin=0, vmax=255)
            right.imshow(overlay)
            left.set_title(f"{columns['rank'][index]}  {_shorten(columns['file'][index])}", fontsize=7, loc="left")
            score = f"P(defect) {columns['defect_score'][index]:.2f}" if "defect_score" in columns else ""
            right.set_title(score or columns["predicted_label"][index], fontsize=7, loc="right")
        figure.savefig(path)


def _resize(image: PILImage.Image) -> np.ndarray:
    """Return an image in grey with its own aspect ratio, `_SIDE` pixels long."""
    grey = image.convert("L")
    scale = _SIDE / max(grey.size)
    return np.asarray(grey.resize((max(1, round(grey.width * scale)), max(1, round(grey.height * scale)))))


def _shorten(name: str) -> str:
    return name if len(name) <= _MAX_NAME else f"…{name[1 - _MAX_NAME :]}"


__all__ = ["draw_contact_sheet"]
