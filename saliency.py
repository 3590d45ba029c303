"""Maps of what a classifier looks at."""

from __future__ import annotations

import numpy as np
import torch
from torch.nn import functional as F

from .modeling_kgl import KGLForImageClassification


def layer_cam(
    model: KGLForImageClassification,
    feature_map: torch.Tensor,
    saliency: torch.Tensor,
    targets: torch.Tensor,
) -> torch.Tensor:
    """
    LayerCAM (Jiang et al. 2021) of our head in closed form: no backward pass, and differentiable itself.

    LayerCAM is `relu(sum_c relu(g_c) * F_c)` with `g` the gradient of the target's logit with respect to `F`. Our
    head pools and is linear, so `g` is a constant per channel, plus the max-pooling weight at the channel's arg-max
    cell, plus the same two through the saliency logits `H = v F`.

    Args:
        model: the classifier whose head made the logits.
        feature_map: `F`, `(B, C, h, w)`.
        saliency: `H`, `(B, 1, h, w)`.
        targets: class indices, `(B,)`.

    Returns:
        `(B, h, w)`, not negative, in units of the logit.
    """
    batch, channels, height, width = feature_map.shape
    features = feature_map.flatten(2)
    features = features.to(torch.promote_types(features.dtype, torch.float32))  # autocast hands out half precision
    weight = model.classifier.weight.to(features.dtype)[targets]
    mean_weight, max_weight = weight[:, :channels], weight[:, channels + 1 : 2 * channels + 1]
    mean_weight_h, max_weight_h = weight[:, channels, None], weight[:, 2 * channels + 1, None]
    head = model.saliency_head.weight.to(features.dtype).view(1, channels)

    everywhere = (mean_weight + mean_weight_h * head) / (height * width)
    through_h = max_weight_h * head
    values, cells = features.max(dim=2)
    cell_h = saliency.flatten(1).argmax(dim=1, keepdim=True)
    meets_h = cells == cell_h

    maps = torch.einsum("bc,bcn->bn", F.relu(everywhere), features)
    # What the two kinds of arg-max cell add to the constant part: one cell a channel, and H's cell for all channels.
    at_max = F.relu(everywhere + max_weight + through_h * meets_h) - F.relu(everywhere)
    maps = maps.scatter_add(1, cells, at_max * values)
    features_h = features.gather(2, cell_h[:, None, :].expand(batch, channels, 1)).squeeze(2)
    at_h = (F.relu(everywhere + through_h) - F.relu(everywhere)) * features_h * ~meets_h
    maps = maps.scatter_add(1, cell_h, at_h.sum(dim=1, keepdim=True))
    return F.relu(maps).view(batch, height, width)


@torch.no_grad()
def compute_saliency(
    model: KGLForImageClassification, pixel_values: torch.Tensor, targets: torch.Tensor | None = None
) -> torch.Tensor:
    """
    LayerCAM maps of a batch, in one forward pass and in the model's current mode.

    Args:
        model: a [`KGLForImageClassification`].
        pixel_values: `(B, channels, H, W)`, normalised.
        targets: class indices `(B,)`; the predicted classes by default.

    Returns:
        `(B, h, w)`, not negative, in units of the logit.

    Raises:
        ValueError: a target is not one of the model's classes.
    """
    output = model(pixel_values)
    if targets is None:
        targets = output.logits.argmax(dim=1)
    elif targets.min() < 0 or targets.max() >= model.config.num_labels:
        raise ValueError(f"targets must lie in 0..{model.config.num_labels - 1}, got {targets.tolist()}.")
    return layer_cam(model, output.feature_map, output.saliency, targets)


def to_peak_one(maps: torch.Tensor) -> torch.Tensor:
    """Maps `(B, h, w)`, not negative, each divided by its own peak; an all-zero map stays zero."""
    peaks = maps.amax(dim=(1, 2), keepdim=True)
    return torch.where(peaks > 0, maps / peaks, torch.zeros_like(maps))


def to_uint8(maps: torch.Tensor) -> np.ndarray:
    """Maps `(B, h, w)` as they are stored: each scaled by its own peak to 0..255."""
    return (to_peak_one(maps) * 255).round().to(torch.uint8).cpu().numpy()


__all__ = ["compute_saliency", "layer_cam", "to_peak_one", "to_uint8"]
