"""Rows of a data set to the tensors a model trains on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BaseImageProcessor
from transformers.image_utils import load_image

from .augmentation import PairedAugmentation
from .losses import pseudo_mask
from .resized import raw_pictures


def to_pixel_values(images: list[Image.Image], image_processor: BaseImageProcessor, **overrides: Any) -> torch.Tensor:
    """Pictures to `(B, 3, H, W)`, the very tensors that `pipeline("image-classification")` makes of them."""
    # load_image turns a picture upright and into RGB, as the pipeline does.
    images = [load_image(image) for image in images]
    return image_processor(images=images, return_tensors="pt", **overrides)["pixel_values"]


@dataclass
class DefectCollator:
    """
    Collates rows of the data contract, a picture as `image` or as [`~kgl.resized`]'s `pixels`; augments where it is
    given an augmentation.

    Returns `pixel_values (B, 3, H, W)`, `labels (B,)` and, for rows with a prior, `saliency_prior (B, 1, h, w)` in
    0..1, `pseudo_mask (B, 1, h, w)` bool (the prior above Otsu's threshold), `known (B, 1, h, w)` bool (the cells that
    are not in the `ignore_band`, see [`~kgl.losses.pseudo_mask`]) and `prior_weight (B,)`.
    """

    image_processor: BaseImageProcessor
    augmentation: PairedAugmentation | None = None
    ignore_band: float = 0.0

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        batch = {"labels": torch.tensor([row["label"] for row in rows])}
        maps = None
        if "saliency_prior" in rows[0]:
            maps = torch.stack([prior_channels(row["saliency_prior"], self.ignore_band) for row in rows])
            batch["prior_weight"] = torch.tensor([row["prior_weight"] for row in rows])
        if "pixels" in rows[0]:
            raw = raw_pictures([row["pixels"] for row in rows], self.image_processor)
        else:
            raw = to_pixel_values([row["image"] for row in rows], self.image_processor, do_normalize=False)
        if self.augmentation is not None:
            raw, maps = self.augmentation(raw, maps)
        batch["pixel_values"] = normalised(raw, self.image_processor)
        return batch if maps is None else batch | split_channels(maps)

    def unaugmented(self) -> DefectCollator:
        """The same for pictures as they are."""
        return replace(self, augmentation=None)


def normalised(images: torch.Tensor, image_processor: BaseImageProcessor) -> torch.Tensor:
    """Pictures `(B, 3, H, W)` in 0..1, augmented ones for instance, as the model wants them."""
    mean, std = (
        torch.tensor(values).view(-1, 1, 1) for values in (image_processor.image_mean, image_processor.image_std)
    )
    return (images - mean) / std


def prior_channels(stored: Any, ignore_band: float) -> torch.Tensor:
    """
    A stored prior `(h, w)` as `(3, h, w)` in 0..1: itself, its mask, and the cells known well enough to learn from.

    Parted before anything is moved: interpolation makes values that Otsu's threshold does not part.
    """
    prior = np.asarray(stored, dtype=np.uint8)
    mask, known = pseudo_mask(prior, ignore_band)
    return torch.from_numpy(np.stack([prior / np.float32(255), mask.astype(np.float32), known.astype(np.float32)]))


def split_channels(maps: torch.Tensor) -> dict[str, torch.Tensor]:
    """What [`prior_channels`] made, moved by an augmentation, `(B, 3, h, w)`, by the names the Trainer knows."""
    return {"saliency_prior": maps[:, :1], "pseudo_mask": maps[:, 1:2] > 0.5, "known": maps[:, 2:] > 0.5}


__all__ = ["DefectCollator", "normalised", "prior_channels", "split_channels", "to_pixel_values"]
