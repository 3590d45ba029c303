"""Defect masks as arrays and on feature grids."""

from __future__ import annotations

import numpy as np
import torch
from datasets import Dataset, Image
from PIL import Image as PILImage
from torch.nn import functional as F

from .images import without_decoding


def drop_masks(images: Dataset) -> Dataset:
    """The same images, no mask known."""
    unmarked = images.remove_columns("mask").add_column("mask", [None] * len(images), feature=Image())
    return unmarked.select_columns(images.column_names)


def count_masks(images: Dataset) -> int:
    """How many of the images have a mask."""
    return sum(mask is not None for mask in without_decoding(images)["mask"][:])


def mask_to_array(mask: PILImage.Image | None, size: tuple[int, int]) -> np.ndarray | None:
    """
    A mask as `(H, W)` bool at `size = (H, W)`, or None.

    Grey masks count from half-way up, as JPEG's need; those of small numbers (0 and 1, or a class a number) and of a
    palette count where they are not 0.
    """
    if mask is None:
        return None
    height, width = size
    values = np.asarray(mask if mask.mode in ("1", "L", "P") else mask.convert("L"))
    numbered = mask.mode in ("1", "P") or values.max(initial=0) < 16
    marked = PILImage.fromarray((values > (0 if numbered else 127)).astype(np.uint8) * 255)
    return np.asarray(marked.resize((width, height), PILImage.Resampling.BOX)) > 127


def mask_to_grid(masks: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Masks `(N, H, W)` bool on a coarser grid, `(N, h, w)` bool: a cell is defect where any of its pixels is."""
    pixels = torch.from_numpy(masks).float().unsqueeze(1)
    return F.adaptive_max_pool2d(pixels, tuple(grid))[:, 0].numpy() > 0


__all__ = ["count_masks", "drop_masks", "mask_to_array", "mask_to_grid"]
