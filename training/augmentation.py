"""Augmentation of images together with their priors."""

from __future__ import annotations

import kornia.augmentation as K
import torch
from kornia.constants import DataKey, Resample
from torch.nn import functional as F


class PairedAugmentation:
    """
    Flips, small rotations, shifts and zooms of images and priors alike; brightness and contrast of images alone.

    Random numbers come from torch's global generator, the same ones with and without priors: runs with and without
    guidance see the same images under one seed.
    """

    def __init__(self) -> None:
        self._geometric = K.AugmentationSequential(
            K.RandomHorizontalFlip(p=0.5),
            K.RandomVerticalFlip(p=0.5),
            K.RandomAffine(degrees=10.0, translate=(0.05, 0.05), scale=(0.9, 1.1), padding_mode="reflection", p=0.5),
            data_keys=["input"],
            extra_args={DataKey.MASK: {"resample": Resample.BILINEAR, "align_corners": False}},
        )
        self._photometric = K.AugmentationSequential(
            K.RandomBrightness((0.9, 1.1), p=0.5), K.RandomContrast((0.8, 1.2), p=0.5), data_keys=["input"]
        )

    def __repr__(self) -> str:
        """Return the transforms with their settings, which identify a cache of augmented features."""
        return f"PairedAugmentation({self._geometric!r}, {self._photometric!r})"

    def __call__(
        self, images: torch.Tensor, priors: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Augment images and priors with the same geometric transforms.

        Args:
            images: `(B, C, H, W)` in 0..1.
            priors: `(B, M, h, w)` in 0..1, maps on a grid of their own, or None.

        Returns:
            Both, in the same shapes and ranges.
        """
        if priors is None:
            return self._photometric(self._geometric(images)), None
        # Transforms are in pixels, so priors are transformed in image size and averaged back over their cells.
        full_size = F.interpolate(priors, size=images.shape[-2:], mode="nearest")
        images, full_size = self._geometric(images, full_size, data_keys=["input", "mask"])
        return self._photometric(images), F.adaptive_avg_pool2d(full_size, priors.shape[-2:])


__all__ = ["PairedAugmentation"]
