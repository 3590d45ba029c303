"""Defect masks as arrays and on feature grids."""

from __future__ import annotations

import numpy as np
import torch
from datasets import Dataset, Image
from PIL import Image as PILImage
from scipy import ndimage
from torch.nn import functional as F

from .images import without_decoding
from .storage import no_library_progress_bars


_MAX_NUMBERED = 15  # a mask without larger differences holds class numbers
_MAX_VALUES = 5  # so does one with this many values: compressed and smoothed edges have more
_LEAST_PEAK = 1 / 8  # of the largest difference, for a part of other masks
_LEAST_AREA = 64  # pixels of a part below half of it, a block of JPEG: around sharp edges, compression leaves less
_BACKGROUND_SHARE = 2 / 3  # of the border, for a background that is not black
_SINGLE_CHANNEL = ("1", "L", "P", "I", "I;16", "I;16L", "I;16B", "I;16N", "F")


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

    A pixel is defect where it differs from the background: the most frequent value of the border, which has to cover
    two thirds of it unless it is black. Colours differ as much as their channel that differs most, and alpha is a
    channel as well. In masks with a palette, with at most 5 values or with small differences only (0 and 1, or a class
    number per pixel) any difference counts. Elsewhere edges may be soft or compressed: each connected part counts as
    far as half of its own peak, if that is an eighth of the largest at least, and half of it for parts of less than
    64 pixels. A mask of a single value is defect unless that is black.
    """
    if mask is None:
        return None
    height, width = size
    channels, is_numbered = _mask_channels(mask)
    difference = np.abs(channels - _background(channels)).max(axis=-1)
    largest = difference.max(initial=0)
    if is_numbered or largest <= _MAX_NUMBERED or _has_few_values(channels):
        defect = difference > 0
    else:
        parts, count = ndimage.label(difference >= _LEAST_PEAK * largest)
        peaks = np.concatenate([[np.inf], ndimage.maximum(difference, parts, np.arange(1, count + 1))])
        peaks[(peaks < largest / 2) & (np.bincount(parts.ravel(), minlength=count + 1) < _LEAST_AREA)] = np.inf
        defect = difference >= peaks[parts] / 2
    marked = PILImage.fromarray(defect.astype(np.uint8) * 255)
    return np.asarray(marked.resize((width, height), PILImage.Resampling.BOX)) > 127


def _mask_channels(mask: PILImage.Image) -> tuple[np.ndarray, bool]:
    """Return `(H, W, channels)` float32, and whether the values are numbers of a palette."""
    if mask.has_transparency_data:
        channels = np.asarray(mask.convert("RGBA"), dtype=np.float32)
        alpha = channels[..., 3:]
        if alpha.size and alpha.min() < alpha.max():
            return np.concatenate([channels[..., :3] * alpha / 255, alpha], axis=-1), False
        mask = mask if mask.mode == "P" else mask.convert("RGB")
    values = np.asarray(mask if mask.mode in _SINGLE_CHANNEL else mask.convert("RGB"), dtype=np.float32)
    return values.reshape(mask.height, mask.width, -1), mask.mode in ("1", "P")


def _background(channels: np.ndarray) -> np.ndarray:
    """Return the value of the background `(channels,)`."""
    black = np.zeros(channels.shape[-1], dtype=channels.dtype)
    border = np.concatenate([channels[0], channels[-1], channels[:, 0], channels[:, -1]])
    values, counts = np.unique(border, axis=0, return_counts=True)
    candidate = values[counts.argmax()]
    difference = np.abs(border - candidate).max(axis=-1)
    share = (difference <= difference.max() / 2).mean()  # compression blurs the background as well
    has_black = (border == black).all(axis=-1).any()
    if (share < _BACKGROUND_SHARE and has_black) or (channels == channels[0, 0]).all():
        return black
    return candidate


def _has_few_values(channels: np.ndarray) -> bool:
    weights = 1000.0 ** np.arange(channels.shape[-1])  # one number per colour: rows are slow to sort
    return len(np.unique(channels @ weights)) <= _MAX_VALUES


def mask_to_grid(masks: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Reduce masks `(N, H, W)` bool to a grid, `(N, h, w)` bool: a cell is defect where any of its pixels is."""
    pixels = torch.from_numpy(masks).float().unsqueeze(1)
    return F.adaptive_max_pool2d(pixels, tuple(grid))[:, 0].numpy() > 0


__all__ = ["count_masks", "drop_masks", "mask_to_array", "mask_to_grid"]
