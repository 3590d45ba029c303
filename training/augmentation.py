"""Image and saliency prior augmented together."""

from __future__ import annotations

import kornia.augmentation as K
import torch
from kornia.constants import DataKey, Resample
from torch.nn import functional as F


class PairedAugmentation:
    """
    Flips, small rotations, shifts and zooms of images and priors alike; brightness and contrast of images alone.

    Draws from torch's global generator, whether there are priors or not, so that runs with and without them see the
    same images under one seed.
    """

    def __init__(self) -> None:
        self._moves = K.AugmentationSequential(
            K.RandomHorizontalFlip(p=0.5),
            K.RandomVerticalFlip(p=0.5),
            K.RandomAffine(degrees=10.0, translate=(0.05, 0.05), scale=(0.9, 1.1), padding_mode="reflection", p=0.5),
            data_keys=["input"],
            extra_args={DataKey.MASK: {"resample": Resample.BILINEAR, "align_corners": False}},
        )
        self._light = K.AugmentationSequential(
            K.RandomBrightness((0.9, 1.1), p=0.5), K.RandomContrast((0.8, 1.2), p=0.5), data_keys=["input"]
        )

    def __repr__(self) -> str:
        """What it draws from: features made with another one are others."""
        return f"PairedAugmentation({self._moves!r}, {self._light!r})"

    def __call__(
        self, images: torch.Tensor, priors: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """
        Args:
            images: `(B, C, H, W)` in 0..1.
            priors: `(B, M, h, w)` in 0..1, maps on a grid of their own, or None.

        Returns:
            Both, of the same shapes and ranges.
        """
        if priors is None:
            return self._light(self._moves(images)), None
        # The moves are in image pixels: the prior takes part at that size, and its cells average what came to them.
        full_size = F.interpolate(priors, size=images.shape[-2:], mode="nearest")
        images, full_size = self._moves(images, full_size, data_keys=["input", "mask"])
        return self._light(images), F.adaptive_avg_pool2d(full_size, priors.shape[-2:])


__all__ = ["PairedAugmentation"]
