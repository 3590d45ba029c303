"""The prior columns of a dataset: maps, thresholds and weights, and how they are joined with the images."""

from __future__ import annotations

from typing import Any

import numpy as np
from datasets import Array2D, Dataset, Value, concatenate_datasets

from ..data.images import decode_image, without_decoding
from ..data.masks import mask_to_array, mask_to_grid
from ..data.schema import image_digests
from ..errors import InputError
from .thresholds import otsu_threshold


PRIOR_COLUMNS = ("saliency_prior", "prior_threshold", "prior_weight")


def prior_features(grid: tuple[int, int]) -> dict[str, Any]:
    """Return the types of the prior columns on a grid `(h, w)`."""
    return dict(zip(PRIOR_COLUMNS, (Array2D(grid, "uint8"), Value("uint8"), Value("float32")), strict=True))


def load_mask(row: dict[str, Any], grid: tuple[int, int]) -> np.ndarray | None:
    """Return the `mask` of a row of [`without_decoding`] on a grid, `(h, w)` bool; None where there is none."""
    mask = decode_image(row.get("mask"))
    if mask is None:
        return None
    return mask_to_grid(mask_to_array(mask, (mask.height, mask.width))[None], grid)[0]


def prior_columns(
    maps: np.ndarray,
    weights: np.ndarray,
    good: np.ndarray,
    masks: list[np.ndarray | None],
    threshold: int | None = None,
) -> dict[str, list[Any]]:
    """
    Return the prior columns of a batch: blank priors of good images, masks in place of maps, thresholds and weights.

    Args:
        maps: `(B, h, w)` uint8.
        weights: how far each map is trusted, `(B,)` in 0..1.
        good: which images are defect-free, `(B,)` bool: their prior is blank, with weight 1.
        masks: of the images, `(h, w)` bool, None where there is none. A mask has weight 1.
        threshold: of all maps that are neither blank nor a mask; None for Otsu's, of each.
    """
    maps, weights, masked = maps.copy(), weights.copy(), np.array([mask is not None for mask in masks])
    maps[good], weights[good] = 0, 1
    for index in np.flatnonzero(masked):
        maps[index], weights[index] = masks[index] * np.uint8(255), 1
    # An empty map or mask of a defective image does not say that it has no defect.
    weights[~good & (maps.max(axis=(1, 2)) == 0)] = 0
    fixed = ~good & ~masked & (threshold is not None)
    thresholds = [threshold if one else otsu_threshold(prior) for one, prior in zip(fixed, maps, strict=True)]
    return {"saliency_prior": list(maps), "prior_threshold": thresholds, "prior_weight": weights.tolist()}


def with_priors(dataset: Dataset, priors: Dataset) -> Dataset:
    """
    Return the dataset with the prior columns of a table of priors, one row per image in the same order.

    Raises:
        InputError: the priors belong to other images.
    """
    images = "digest" if "digest" in dataset.column_names else "image"
    if image_digests(without_decoding(dataset.select_columns([images]))[:]) != priors["digest"][:]:
        raise InputError(
            "The priors belong to other images, or to these in another order; make them again for this dataset."
        )
    return concatenate_datasets([dataset, priors.select_columns(list(PRIOR_COLUMNS))], axis=1)


__all__ = ["PRIOR_COLUMNS", "load_mask", "prior_columns", "prior_features", "with_priors"]
