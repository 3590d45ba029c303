"""What a map is made of and what is done to finished ones: the score, scaling, fusing, storing."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from ..errors import InputError


def to_float(tensor: torch.Tensor) -> torch.Tensor:
    """Half precision, which autocast hands out, to float32; anything wider as it is."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def scores_of(logits: torch.Tensor, targets: torch.Tensor | None) -> torch.Tensor:
    """The sum over the batch of the targets' logits, or of the largest ones: images do not mix, so one sum does."""
    if targets is None:
        targets = logits.argmax(dim=1)
    return logits.gather(1, targets[:, None]).sum()


def to_peak_one(maps: torch.Tensor) -> torch.Tensor:
    """Maps `(B, h, w)`, not negative, each divided by its own peak; an all-zero map stays zero."""
    peaks = maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(peaks > 0, maps / peaks, torch.zeros_like(maps))


def fuse(maps: list[torch.Tensor]) -> torch.Tensor:
    """
    Maps of several layers, `(B, h_i, w_i)`, to one at the finest grid: each to peak 1, enlarged, the larger of them.

    Section III-C of Jiang et al. 2021 (LayerCAM) fuses by the element-wise maximum of scaled maps.
    """
    if len(maps) == 1:
        return maps[0]
    height, width = max((tuple(one.shape[-2:]) for one in maps), key=lambda shape: shape[0] * shape[1])
    scaled = [
        F.interpolate(to_peak_one(one)[:, None], size=(height, width), mode="bilinear", align_corners=False)
        for one in maps
    ]
    return torch.cat(scaled, dim=1).amax(dim=1)


def to_grid(maps: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Maps `(B, H, W)` on another grid `(h, w)`: a finer map's mean over each cell, a coarser one enlarged."""
    if tuple(maps.shape[-2:]) == grid:
        return maps
    if maps.shape[1] >= grid[0] and maps.shape[2] >= grid[1]:
        return F.adaptive_avg_pool2d(maps[:, None], grid)[:, 0]
    return F.interpolate(maps[:, None], size=grid, mode="bilinear", align_corners=False)[:, 0]


def to_uint8(maps: torch.Tensor, names: list[str] | None = None) -> np.ndarray:
    """
    Maps `(B, h, w)` as they are stored: each scaled by its own peak to 0..255.

    Raises:
        InputError: a map is not finite; the images are named by `names`, or by their place in the batch.
    """
    stored = (to_peak_one(maps) * 255).round().to(torch.uint8).cpu().numpy()
    broken = (~maps.isfinite().all(dim=(1, 2))).nonzero().flatten().tolist()
    if broken:
        told = ", ".join(names[index] if names else f"number {index} of the batch" for index in broken)
        raise InputError(f"The saliency maps of these images hold NaN or infinity: {told}.")
    return stored


__all__ = ["fuse", "scores_of", "to_float", "to_grid", "to_peak_one", "to_uint8"]
