"""How well maps agree with true masks."""

from __future__ import annotations

import numpy as np
import torch
from datasets import Dataset
from sklearn.metrics import average_precision_score
from torch.nn import functional as F

from ..data.masks import mask_to_array, mask_to_grid


def evaluate_maps(maps: dict[str, np.ndarray], dataset: Dataset, size: tuple[int, int]) -> dict[str, float]:
    """
    How right maps are over the images with a defect in their mask; nothing where there is none.

    `NAME_ap` is that of the pixels at `size = (H, W)`, maps enlarged bilinearly, all images pooled, so that large
    defects count most; `NAME_image_ap` the mean of each image's own, so that all count alike. `NAME_cell_ap`
    (pooled) and `NAME_pointing` (the share of peaks that lie on the defect) are on the maps' own grid, where a cell is
    defect if any of its pixels is; `NAME_entropy` and `NAME_area90` those of [`concentration`].

    Args:
        maps: by name, `(N, h, w)`, one map for every image.
        dataset: column `mask`.
        size: of the pixels.
    """
    masks = [mask_to_array(mask, size) for mask in dataset["mask"]]
    marked = [index for index, mask in enumerate(masks) if mask is not None and mask.any()]
    results: dict[str, float] = {}
    if marked:
        truth = np.stack([masks[index] for index in marked])
        for name, of_all in maps.items():
            of_marked = of_all[marked]
            cells = list(mask_to_grid(truth, of_marked.shape[1:]))
            enlarged = list(upsample_maps(of_marked, size))
            results[f"{name}_ap"] = pixel_average_precision(enlarged, truth)
            each = [pixel_average_precision([one], [mask]) for one, mask in zip(enlarged, truth, strict=True)]
            results[f"{name}_image_ap"] = float(np.mean(each))
            results[f"{name}_cell_ap"] = pixel_average_precision(list(of_marked), cells)
            results[f"{name}_pointing"] = pointing_game(list(of_marked), cells)
            results |= {f"{name}_{measure}": value for measure, value in concentration(of_marked).items()}
    return results


def upsample_maps(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Maps `(N, h, w)` at `size = (H, W)`, bilinearly."""
    tensor = torch.from_numpy(np.ascontiguousarray(maps, dtype=np.float32))
    return F.interpolate(tensor[:, None], size=size, mode="bilinear", align_corners=False)[:, 0].numpy()


def pixel_average_precision(maps: list[np.ndarray], masks: list[np.ndarray]) -> float:
    """AP of all pixels of `maps` against `masks`, each pair `(H, W)`, pooled over the images."""
    truth = np.concatenate([mask.ravel() for mask in masks])
    return float(average_precision_score(truth, np.concatenate([one.ravel() for one in maps])))


def pointing_game(maps: list[np.ndarray], masks: list[np.ndarray]) -> float:
    """The share of images whose map has its peak on the mask (Zhang et al. 2016), each pair `(H, W)`."""
    return float(np.mean([mask.flat[one.argmax()] for one, mask in zip(maps, masks, strict=True)]))


def concentration(maps: np.ndarray) -> dict[str, float]:
    """
    How concentrated maps `(N, h, w)`, not negative, are: means over the images, those of an all-zero map left out.

    `entropy` is that of the map as a distribution over cells, 1 where all are alike and 0 where one has everything;
    `area90` the smallest share of the cells that holds 90 % of the sum.
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
    """Of bool arrays against masks of the same grids, all cells pooled; precision is 0 where nothing was found."""
    taken, truth = (np.concatenate([one.ravel() for one in arrays]) for arrays in (found, masks))
    hits = np.count_nonzero(taken & truth)
    return hits / max(np.count_nonzero(taken), 1), hits / max(np.count_nonzero(truth), 1)


__all__ = [
    "concentration",
    "evaluate_maps",
    "pixel_average_precision",
    "pointing_game",
    "precision_and_recall",
    "upsample_maps",
]
