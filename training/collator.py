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


@dataclass
class DefectCollator:
    """
    Collator of dataset rows, each image given as `image` or as the cached `pixels` of [`~kgl.data.image_cache`].

    Returns `pixel_values (B, 3, H, W)`, `labels (B,)` and, for rows with the columns of a prior, `prior_mask
    (B, 1, h, w)` bool (cells above `prior_threshold`) and `prior_weight (B,)`.
    """

    image_processor: BaseImageProcessor
    augmentation: PairedAugmentation | None = None

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
        masks = None
        if "saliency_prior" in rows[0]:
            masks = torch.stack([prior_mask(row) for row in rows])
            batch["prior_weight"] = torch.tensor([row["prior_weight"] for row in rows])
        if "pixels" in rows[0]:
            images = cached_to_tensor([row["pixels"] for row in rows], self.image_processor)
        else:
            images = to_pixel_values([row["image"] for row in rows], self.image_processor, do_normalize=False)
        if self.augmentation is not None:
            images, masks = self.augmentation(images, masks)
        batch["pixel_values"] = normalize(images, self.image_processor)
        return batch if masks is None else batch | {"prior_mask": masks > 0.5}

    def unaugmented(self) -> DefectCollator:
        """Return the same collator without augmentation, for evaluation."""
        return replace(self, augmentation=None)


def prior_mask(row: dict[str, Any]) -> torch.Tensor:
    """
    Return the mask of a row's prior, `(1, h, w)` of 0 and 1.

    The threshold is applied before augmentation: interpolation makes values that it was not chosen for.
    """
    mask = np.asarray(row["saliency_prior"], dtype=np.uint8) > row["prior_threshold"]
    return torch.from_numpy(mask[None].astype(np.float32))


__all__ = ["DefectCollator", "prior_mask"]
