"""Self-contained HTML page of suspicious labels, each image beside its nearest ones of both classes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from datasets import Dataset
from PIL import Image as PILImage

from ..data.storage import write_text
from ..evaluation.page import jpeg_uri, render_template
from ..evaluation.tiles import strip_shape, tile_size
from .strategies import standardize


if TYPE_CHECKING:
    from .audit import Suspect

_NEAREST = 2  # of each class


def write_page(
    path: Path, images: Dataset, suspects: list[Suspect], table: pd.DataFrame, pooled: np.ndarray, name: str
) -> None:
    """
    Write the page.

    Args:
        path: the file to write.
        images: all audited images.
        suspects: to show, in order.
        table: a row per suspect, at least those to show, in the same order.
        pooled: features of all images, `(N, P)`, by which the nearest are found.
        name: of the images.
    """
    labels = np.asarray(images["label"][:])
    features, _ = standardize(pooled, pooled[:0])
    cases = []
    for one, (_, row) in zip(suspects, table.iterrows(), strict=False):
        tiles = [_tile(images, one.row, f"{row['label']}, the label in question")]
        for label, title in ((labels[one.row], row["label"]), (one.suggested, row["suggested_label"])):
            nearest = nearest_of_class(features, labels, one.row, label)
            tiles += [_tile(images, int(other), f"{title}: {images[int(other)]['file_name']}") for other in nearest]
        cases.append({"row": row, "tiles": tiles, "shape": strip_shape(images[one.row]["image"])})
    values = {"cases": cases, "total": len(table), "images": len(images), "name": name}
    write_text(path, render_template("kgl.labelling", "audit.html.jinja", **values))


def nearest_of_class(features: np.ndarray, labels: np.ndarray, row: int, label: int) -> np.ndarray:
    """Return the rows of a class whose features are nearest to those of an image, the image itself left out."""
    rows = np.flatnonzero((labels == label) & (np.arange(len(labels)) != row))
    distances = np.linalg.norm(features[rows] - features[row], axis=1)
    return rows[np.argsort(distances, kind="stable")[:_NEAREST]]


def _tile(images: Dataset, row: int, title: str) -> dict[str, Any]:
    image: PILImage.Image = images[row]["image"].convert("RGB")
    return {"title": title, "src": jpeg_uri(np.asarray(image.resize(tile_size(image))))}


__all__ = ["nearest_of_class", "write_page"]
