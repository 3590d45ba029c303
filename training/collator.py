"""Collate dataset rows into training batches."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from transformers import BaseImageProcessor

from ..data.image_cache import cached_to_tensor
from ..data.images import normalize, to_pixel_values
from .augmentation import PairedAugmentation
from .losses import pseudo_mask


@dataclass
class DefectCollator:
    """
    Collate dataset rows, each image given as `image` or as the cached `pixels` of [`~kgl.data.image_cache`].

    Returns `pixel_values (B, 3, H, W)`, `labels (B,)` and, for rows with a prior, `saliency_prior (B, 1, h, w)` in
    0..1, `pseudo_mask (B, 1, h, w)` bool (the prior above Otsu's threshold), `known (B, 1, h, w)` bool (the cells that
    are not in the `ignore_band`, see [`~kgl.training.losses.pseudo_mask`]) and `prior_weight (B,)`.
    """

    image_processor: BaseImageProcessor
    augmentation: PairedAugmentation | None = None
    ignore_band: float = 0.0

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = {"labels": torch.tensor([row["label"] for row in rows])}
        maps = None
        if "saliency_prior" in rows[0]:
            maps = torch.stack([prior_to_channels(row["saliency_prior"], self.ignore_band) for row in rows])
            batch["prior_weight"] = torch.tensor([row["prior_weight"] for row in rows])
        if "pixels" in rows[0]:
            raw = cached_to_tensor([row["pixels"] for row in rows], self.image_processor)
        else:
            raw = to_pixel_values([row["image"] for row in rows], self.image_processor, do_normalize=False)
        if self.augmentation is not None:
            raw, maps = self.augmentation(raw, maps)
        batch["pixel_values"] = normalize(raw, self.image_processor)
        return batch if maps is None else batch | split_channels(maps)

    def unaugmented(self) -> DefectCollator:
        """The same for images as they are."""
        return replace(self, augmentation=None)


def prior_to_channels(stored: Any, ignore_band: float) -> torch.Tensor:
    """
    A stored prior `(h, w)` as `(3, h, w)` in 0..1: itself, its mask, and the cells known well enough to learn from.

    Parted before anything is moved: interpolation makes values that Otsu's threshold does not part.
    """
    prior = np.asarray(stored, dtype=np.uint8)
    mask, known = pseudo_mask(prior, ignore_band)
    return torch.from_numpy(np.stack([prior / np.float32(255), mask.astype(np.float32), known.astype(np.float32)]))


def split_channels(maps: torch.Tensor) -> dict[str, torch.Tensor]:
    """What [`prior_to_channels`] made, moved by an augmentation, `(B, 3, h, w)`, by the names the Trainer knows."""
    return {"saliency_prior": maps[:, :1], "pseudo_mask": maps[:, 1:2] > 0.5, "known": maps[:, 2:] > 0.5}


__all__ = ["DefectCollator", "prior_to_channels", "split_channels"]
