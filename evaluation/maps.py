"""Agreement of maps with true masks, and concentration of maps."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from datasets import Dataset
from sklearn.metrics import average_precision_score
from torch.nn import functional as F

from ..data.masks import mask_to_array, mask_to_grid


def evaluate_maps(maps: dict[str, np.ndarray], dataset: Dataset, size: tuple[int, int]) -> dict[str, float]:
    """
    Compare maps with true masks, over the images whose mask marks a defect; an empty result without such images.

    `NAME_ap` is the pixel AP at `size = (H, W)`, maps upsampled bilinearly and all images pooled, so that large
    defects count most; `NAME_image_ap` is the mean of the pixel AP per image, so that all images count alike.
    `NAME_cell_ap` (pooled), `NAME_cell_image_ap` (mean over images) and `NAME_pointing` (share of map peaks on the
    defect) are computed on the maps' own grid, where a cell is defect if any of its pixels is; `NAME_entropy` and
    `NAME_area90` are those of [`concentration`].

    Args:
        maps: name to maps `(N, h, w)`, one for every image.
        dataset: column `mask`.
        size: height and width of the pixel grid.
    """
    masks = [mask_to_array(mask, size) for mask in dataset["mask"]]
    marked = [index for index, mask in enumerate(masks) if mask is not None and mask.any()]
    results: dict[str, float] = {}
    if not marked:
        return results
    truth = np.stack([masks[index] for index in marked])
    for name, all_maps in maps.items():
        marked_maps = all_maps[marked]
        cells = list(mask_to_grid(truth, marked_maps.shape[1:]))
        upsampled = list(upsample_maps(marked_maps, size))
        results[f"{name}_ap"] = pixel_average_precision(upsampled, truth)
        results[f"{name}_image_ap"] = image_average_precision(upsampled, truth)
        results[f"{name}_cell_image_ap"] = image_average_precision(marked_maps, cells)
        results[f"{name}_cell_ap"] = pixel_average_precision(list(marked_maps), cells)
        results[f"{name}_pointing"] = pointing_game(list(marked_maps), cells)
        results |= {f"{name}_{measure}": value for measure, value in concentration(marked_maps).items()}
    return results


def upsample_maps(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return maps `(N, h, w)` at `size = (H, W)`, interpolated bilinearly."""
    tensor = torch.from_numpy(np.ascontiguousarray(maps, dtype=np.float32))
    return F.interpolate(tensor[:, None], size=size, mode="bilinear", align_corners=False)[:, 0].numpy()


def pixel_average_precision(maps: list[np.ndarray], masks: list[np.ndarray]) -> float:
    """Return the AP of all pixels of `maps` against `masks`, each pair `(H, W)`, pooled over the images."""
    truth = np.concatenate([mask.ravel() for mask in masks])
    return float(average_precision_score(truth, np.concatenate([one.ravel() for one in maps])))


def image_average_precision(maps: Sequence[np.ndarray], masks: Sequence[np.ndarray]) -> float:
    """Return the mean over images of the AP of the pixels or cells of an image, each pair `(H, W)`."""
    return float(np.mean([pixel_average_precision([one], [mask]) for one, mask in zip(maps, masks, strict=True)]))


def pointing_game(maps: list[np.ndarray], masks: list[np.ndarray]) -> float:
    """Return the share of images whose map peaks on the mask (Zhang et al. 2016), each pair `(H, W)`."""
    return float(np.mean([mask.flat[one.argmax()] for one, mask in zip(maps, masks, strict=True)]))


def concentration(maps: np.ndarray) -> dict[str, float]:
    """
    Return how concentrated non-negative maps `(N, h, w)` are: means over the images, all-zero maps left out.

    `entropy` is that of the map as a distribution over cells: 1 for a constant map, 0 for a single cell. `area90` is
    the smallest share of the cells that holds 90 % of the sum. Both are NaN where every map is zero.
    """
    flat = maps.reshape(len(maps), -1).astype(np.float64)
    flat = flat[flat.sum(axis=1) > 0]
    if len(flat) == 0:
        return {"entropy": float("nan"), "area90": float("nan")}
    shares = -np.sort(-flat / flat.sum(axis=1, keepdims=True), axis=1)
    logs = np.log(shares, out=np.zeros_like(shares), where=shares > 0)
    needed = (shares.cumsum(axis=1) < 0.9 - 1e-12).sum(axis=1) + 1
    return {
        "entropy": float(-(shares * logs).sum(axis=1).mean() / np.log(shares.shape[1])),
        "area90": float(needed.mean() / shares.shape[1]),
    }


def precision_and_recall(found: list[np.ndarray], masks: list[np.ndarray]) -> tuple[float, float]:
    """Return precision and recall of bool arrays against masks of the same shapes, all cells pooled; 0 of nothing."""
    predicted, truth = (np.concatenate([one.ravel() for one in arrays]) for arrays in (found, masks))
    hits = np.count_nonzero(predicted & truth)
    return hits / max(np.count_nonzero(predicted), 1), hits / max(np.count_nonzero(truth), 1)


__all__ = [
    "concentration",
    "evaluate_maps",
    "image_average_precision",
    "pixel_average_precision",
    "pointing_game",
    "precision_and_recall",
    "upsample_maps",
]
