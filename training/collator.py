"""Collation of dataset rows into training batches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import BaseImageProcessor

from ..data.image_cache import cached_to_tensor
from ..data.images import normalize, to_pixel_values
from ..errors import InputError
from .augmentation import PairedAugmentation
from .losses import pseudo_mask


@dataclass
class DefectCollator:
    """
    Collator of dataset rows, each image given as `image` or as the cached `pixels` of [`~kgl.data.image_cache`].

    Returns `pixel_values (B, 3, H, W)`, `labels (B,)` and, for rows with the columns of a prior, `saliency_prior
    (B, 1, h, w)` in 0..1, `pseudo_mask (B, 1, h, w)` bool (cells above `prior_threshold`), `known (B, 1, h, w)` bool
    (cells outside the `ignore_band`, see [`~kgl.training.losses.pseudo_mask`]) and `prior_weight (B,)`.
    """

    image_processor: BaseImageProcessor
    augmentation: PairedAugmentation | None = None
    ignore_band: float = 0.0

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Collate rows.

        Raises:
            InputError: rows without images, which a Trainer removes by default.
        """
        if "image" not in rows[0] and "pixels" not in rows[0]:
            raise InputError(
                "The rows have no image. A plain Trainer removes it; give its TrainingArguments "
                "remove_unused_columns=False."
            )
        batch = {"labels": torch.tensor([row["label"] for row in rows])}
        maps = None
        if "saliency_prior" in rows[0]:
            maps = torch.stack([prior_to_channels(row, self.ignore_band) for row in rows])
            batch["prior_weight"] = torch.tensor([row["prior_weight"] for row in rows])
        if "pixels" in rows[0]:
            images = cached_to_tensor([row["pixels"] for row in rows], self.image_processor)
        else:
            images = to_pixel_values([row["image"] for row in rows], self.image_processor, do_normalize=False)
        if self.augmentation is not None:
            images, maps = self.augmentation(images, maps)
        batch["pixel_values"] = normalize(images, self.image_processor)
        return batch if maps is None else batch | split_channels(maps)

    def unaugmented(self) -> DefectCollator:
        """Return the same collator without augmentation, for evaluation."""
        return replace(self, augmentation=None)


def prior_to_channels(row: dict[str, Any], ignore_band: float) -> torch.Tensor:
    """
    Return a row's prior as `(3, h, w)` in 0..1: the prior, its mask, and the cells outside the ignored band.

    The threshold is applied before augmentation: interpolation makes values that it was not chosen for.
    """
    prior = np.asarray(row["saliency_prior"], dtype=np.uint8)
    mask, known = pseudo_mask(prior, row["prior_threshold"], ignore_band)
    return torch.from_numpy(np.stack([prior / np.float32(255), mask.astype(np.float32), known.astype(np.float32)]))


def split_channels(maps: torch.Tensor) -> dict[str, torch.Tensor]:
    """Split augmented `(B, 3, h, w)` of [`prior_to_channels`] into the batch's three maps, each `(B, 1, h, w)`."""
    return {"saliency_prior": maps[:, :1], "pseudo_mask": maps[:, 1:2] > 0.5, "known": maps[:, 2:] > 0.5}


__all__ = ["DefectCollator", "prior_to_channels", "split_channels"]
