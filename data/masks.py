"""Defect masks as arrays and on feature grids."""

from __future__ import annotations

import numpy as np
import torch
from datasets import Dataset, Image
from PIL import Image as PILImage
from torch.nn import functional as F

from .images import without_decoding
from .storage import no_library_progress_bars


_MAX_NUMBERED = 15  # a grey mask without higher values holds class numbers
_MIN_MARKED = 128  # of other grey masks, which compression may blur


def drop_masks(images: Dataset) -> Dataset:
    """Return the dataset without masks; the column `mask` stays."""
    with no_library_progress_bars():
        unmarked = images.remove_columns("mask").add_column("mask", [None] * len(images), feature=Image())
    return unmarked.select_columns(images.column_names)


def count_masks(images: Dataset) -> int:
    """Return how many images have a mask."""
    return sum(mask is not None for mask in without_decoding(images)["mask"][:])


def mask_to_array(mask: PILImage.Image | None, size: tuple[int, int]) -> np.ndarray | None:
    """
    Return a mask as `(H, W)` bool at `size = (H, W)`, None for None.

    A pixel of a grey mask is defect from half of the range up, as JPEG compression needs it. In masks with a palette
    or with small numbers only (0 and 1, or a class number per pixel) it is defect where it is not 0.
    """
    if mask is None:
        return None
    height, width = size
    values = np.asarray(mask if mask.mode in ("1", "L", "P") else mask.convert("L"))
    is_numbered = mask.mode in ("1", "P") or values.max(initial=0) <= _MAX_NUMBERED
    marked = PILImage.fromarray((values >= (1 if is_numbered else _MIN_MARKED)).astype(np.uint8) * 255)
    return np.asarray(marked.resize((width, height), PILImage.Resampling.BOX)) > 127


def mask_to_grid(masks: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Reduce masks `(N, H, W)` bool to a grid, `(N, h, w)` bool: a cell is defect where any of its pixels is."""
    pixels = torch.from_numpy(masks).float().unsqueeze(1)
    return F.adaptive_max_pool2d(pixels, tuple(grid))[:, 0].numpy() > 0


__all__ = ["count_masks", "drop_masks", "mask_to_array", "mask_to_grid"]
