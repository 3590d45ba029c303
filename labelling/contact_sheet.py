"""Contact sheet of chosen images, each beside its heat map."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from matplotlib import rc_context

from ..configuration_kgl import KGLConfig
from ..evaluation.fonts import are_legible, font_families, legible_names
from ..evaluation.maps import upsample_maps
from ..evaluation.overlay import overlay_heat_map, shown_from
from ..evaluation.tiles import POINTS, Layout, add_titles, new_figure, tile_size, wrap


_MAX_IMAGES = 200
_MAX_NAME = 34  # letters


def draw_contact_sheet(
    path: Path,
    images: Dataset,
    heat_maps: list[np.ndarray],
    columns: dict[str, list[Any]],
    config: KGLConfig,
) -> None:
    """
    Write a PNG with the first images, each beside its heat map, or above it where images are wide strips.

    Rank, name and score stand above them. Names whose letters no installed font has are left out.

    Args:
        path: the PNG to write.
        images: column `image`, in the order of their ranks.
        heat_maps: of them, each `(h, w)` in 0..1.
        columns: `rank`, `file` and `predicted_label` and, where a class is defect-free, `defect_score`.
        config: of the classifier.
    """
    count = min(len(images), _MAX_IMAGES)
    shown = [image.convert("RGB").resize(tile_size(image)) for image in images.select(range(count))["image"]]
    layout = Layout.of(2, float(np.median([image.width / image.height for image in shown])))
    names, files = list(config.label2id), columns["file"][:count]
    with rc_context({"font.family": font_families([*files, *names]), "text.parse_math": False}):
        figure, axes, bar = new_figure(layout, count)
        place = "left" if layout.rows > 1 else "center"
        titles = zip(_image_titles(columns, count), _heat_titles(columns, names, count), strict=True)
        for index, (image, heat, texts) in enumerate(zip(shown, heat_maps[:count], titles, strict=True)):
            photo = np.asarray(image)
            lowest = shown_from(heat, config.heat_threshold, None, config.top_cells)
            overlay = overlay_heat_map(photo, upsample_maps(heat[None], photo.shape[:2])[0], lowest)
            tiles = zip(layout.axes_of(axes, index), (photo, overlay), texts, ("bold", "normal"), strict=True)
            for axis, pixels, text, weight in tiles:
                axis.imshow(pixels, aspect=layout.stretch)
                axis.set_title(wrap(text, layout.width), loc=place, fontsize=POINTS, pad=2, fontweight=weight)
        scale = f"heat map: drawn from its threshold, {config.heat_threshold:.3g} (here 0.5), up"
        add_titles(figure, bar, _title(columns, names, count), scale)
        figure.savefig(path)


def _image_titles(columns: dict[str, list[Any]], count: int) -> list[str]:
    """Return rank and name of each image, the rank alone where fonts lack letters of the name."""
    ranks, files = columns["rank"][:count], columns["file"][:count]
    rows = zip(ranks, files, are_legible(files), strict=True)
    return [f"{rank}  {_shorten(name)}" if legible else str(rank) for rank, name, legible in rows]


def _heat_titles(columns: dict[str, list[Any]], names: list[str], count: int) -> list[str]:
    """Return the score of each image, or the predicted class where no class is defect-free."""
    if "defect_score" in columns:
        return [f"P(defect) {score:.2f}" for score in columns["defect_score"][:count]]
    legible = dict(zip(names, legible_names(names), strict=True))
    return [legible[label] for label in columns["predicted_label"][:count]]


def _title(columns: dict[str, list[Any]], names: list[str], count: int) -> str:
    """Return the title, with what stands in place of names whose letters no font has."""
    total, files = len(columns["file"]), columns["file"][:count]
    title = f"The first {count} of {total} images to label" if count < total else "Images to label next"
    notes = [] if all(are_legible(files)) else ["files by their rank in next.csv"]
    if "defect_score" not in columns and legible_names(names) != names:
        notes.append("classes by their number in config.json")
    return f"{title} ({', '.join(notes)}: no installed font has the letters of all names)" if notes else title


def _shorten(name: str) -> str:
    return name if len(name) <= _MAX_NAME else f"…{name[1 - _MAX_NAME :]}"


__all__ = ["draw_contact_sheet"]
