"""Rows of a data set to the tensors a model trains on."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BaseImageProcessor
from transformers.image_utils import load_image

from .augmentation import PairedAugmentation
from .losses import otsu_threshold


def to_pixel_values(images: list[Image.Image], image_processor: BaseImageProcessor, **overrides: Any) -> torch.Tensor:
    """Pictures to `(B, 3, H, W)`, the very tensors that `pipeline("image-classification")` makes of them."""
    # load_image turns a picture upright and into RGB, as the pipeline does.
    images = [load_image(image) for image in images]
    return image_processor(images=images, return_tensors="pt", **overrides)["pixel_values"]


@dataclass
class DefectCollator:
    """
    Collates rows of the data contract; augments where it is given an augmentation.

    Returns `pixel_values (B, 3, H, W)`, `labels (B,)` and, for rows with a prior, `saliency_prior (B, 1, h, w)` in
    0..1, `pseudo_mask (B, 1, h, w)` bool (the prior above Otsu's threshold) and `prior_weight (B,)`.
    """

    image_processor: BaseImageProcessor
    augmentation: PairedAugmentation | None = None

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = {"labels": torch.tensor([row["label"] for row in rows])}
        maps = None
        if "saliency_prior" in rows[0]:
            stored = np.stack([np.asarray(row["saliency_prior"], dtype=np.uint8) for row in rows])
            # Parted before it is moved: interpolation makes values that Otsu's threshold does not part.
            masks = np.stack([prior > otsu_threshold(prior) for prior in stored])
            maps = torch.from_numpy(np.stack([stored / np.float32(255), masks.astype(np.float32)], axis=1))
            batch["prior_weight"] = torch.tensor([row["prior_weight"] for row in rows])
        images = [row["image"] for row in rows]
        if self.augmentation is None:
            batch["pixel_values"] = to_pixel_values(images, self.image_processor)
        else:
            raw = to_pixel_values(images, self.image_processor, do_normalize=False)
            raw, maps = self.augmentation(raw, maps)
            mean = torch.tensor(self.image_processor.image_mean).view(-1, 1, 1)
            std = torch.tensor(self.image_processor.image_std).view(-1, 1, 1)
            batch["pixel_values"] = (raw - mean) / std
        if maps is not None:
            batch["saliency_prior"], batch["pseudo_mask"] = maps[:, :1], maps[:, 1:] > 0.5
        return batch


__all__ = ["DefectCollator", "to_pixel_values"]
