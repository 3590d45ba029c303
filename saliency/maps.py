"""The class score behind a saliency map, and scaling, fusing, resizing and storing of maps."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from ..errors import InputError


def to_float(tensor: torch.Tensor) -> torch.Tensor:
    """Convert half precision, which autocast returns, to float32; leave wider types unchanged."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def target_score(logits: torch.Tensor, targets: torch.Tensor | None) -> torch.Tensor:
    """
    Return the sum over the batch of the target classes' logits, a scalar.

    Its gradient with respect to an image is that of the image's own logit: the images of a batch are independent.

    Args:
        logits: `(B, K)`.
        targets: class indices `(B,)`; None for the predicted classes.
    """
    if targets is None:
        targets = logits.argmax(dim=1)
    return logits.gather(1, targets[:, None]).sum()


def to_peak_one(maps: torch.Tensor) -> torch.Tensor:
    """Divide each of the non-negative maps `(B, h, w)` by its own peak; an all-zero map stays zero."""
    peaks = maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(peaks > 0, maps / peaks, torch.zeros_like(maps))


def fuse(maps: list[torch.Tensor]) -> torch.Tensor:
    """
    Fuse maps of several layers, `(B, h_i, w_i)`, into one on the finest grid.

    Each map is scaled to peak 1 and enlarged; the result is their element-wise maximum (LayerCAM, Jiang et al. 2021,
    section III-C). A single map is returned unchanged.
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
    """Resize maps `(B, H, W)` to a grid `(h, w)`: average over cells where it is coarser, else bilinear."""
    if tuple(maps.shape[-2:]) == grid:
        return maps
    if maps.shape[1] >= grid[0] and maps.shape[2] >= grid[1]:
        return F.adaptive_avg_pool2d(maps[:, None], grid)[:, 0]
    return F.interpolate(maps[:, None], size=grid, mode="bilinear", align_corners=False)[:, 0]


def to_uint8(maps: torch.Tensor, names: list[str] | None = None) -> np.ndarray:
    """
    Quantize maps `(B, h, w)` for storage: each scaled by its own peak to uint8 0..255.

    Args:
        maps: non-negative.
        names: the images' names for the error message; their index in the batch by default.

    Raises:
        InputError: a map holds NaN or infinity.
    """
    stored = (to_peak_one(maps) * 255).round().to(torch.uint8).cpu().numpy()
    broken = (~maps.isfinite().all(dim=(1, 2))).nonzero().flatten().tolist()
    if broken:
        images = ", ".join(names[index] if names else f"number {index} of the batch" for index in broken)
        raise InputError(
            f"The saliency maps of these images hold NaN or infinity: {images}. Check the model's weights, or choose "
            "another --prior_method."
        )
    return stored


__all__ = ["fuse", "target_score", "to_float", "to_grid", "to_peak_one", "to_uint8"]
