"""
Class activation maps from activations `A (B, C, h, w)` and the score's gradient `g` with respect to them.

Every method weighs the activations in its own way; what has a positive sum speaks for the class.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ..modeling_kgl import KGLForImageClassification
from .maps import scores_of, to_float


def cam(activations: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """
    CAM (Zhou et al. 2016): the weights of a linear classifier on averaged features.

    There the gradient is those weights over the number of cells, the same in every cell.

    Raises:
        ValueError: the gradient differs from cell to cell, so the layer is not averaged into a linear classifier.
    """
    mean = gradient.mean(dim=(2, 3), keepdim=True)
    if not torch.allclose(gradient, mean.expand_as(gradient), rtol=1e-3, atol=1e-6 * float(mean.abs().max())):
        raise ValueError("CAM needs a layer that is averaged into a linear classifier; take gradcam here.")
    return F.relu((mean * activations).sum(dim=1)) * gradient.shape[2] * gradient.shape[3]


def grad_cam(activations: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Grad-CAM (Selvaraju et al. 2017): channels weighed by their mean gradient."""
    return F.relu((gradient.mean(dim=(2, 3), keepdim=True) * activations).sum(dim=1))


def grad_cam_plus_plus(activations: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Grad-CAM++ (Chattopadhyay et al. 2018), equations 10 and 19, for the exponential of the score."""
    squared, cubed = gradient**2, gradient**3
    denominator = 2 * squared + activations.sum(dim=(2, 3), keepdim=True) * cubed
    alpha = torch.where(denominator != 0, squared / denominator, torch.zeros_like(gradient))
    weights = (alpha * F.relu(gradient)).sum(dim=(2, 3), keepdim=True)
    return F.relu((weights * activations).sum(dim=1))


def hires_cam(activations: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """HiResCAM (Draelos and Carin 2020): every cell weighed by its own gradient."""
    return F.relu((gradient * activations).sum(dim=1))


def layer_cam_of(activations: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """LayerCAM (Jiang et al. 2021), equations 3 and 4: every cell weighed by its own positive gradient."""
    return F.relu((F.relu(gradient) * activations).sum(dim=1))


def layer_cam(
    model: KGLForImageClassification,
    feature_map: torch.Tensor,
    saliency: torch.Tensor,
    targets: torch.Tensor,
) -> torch.Tensor:
    """
    LayerCAM (Jiang et al. 2021) of our head in closed form: no backward pass, and differentiable itself.

    Heads of another pooling than `avg_max` have no closed form: theirs goes through the head backwards, and is not
    differentiable.

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
    if model.config.pooling != "avg_max":
        return layer_cam_of(*head_gradient(model, feature_map, targets))
    with torch.autocast(feature_map.device.type, enabled=False):  # products of half-precision numbers add up badly
        return _layer_cam(model, to_float(feature_map), to_float(saliency), targets)


def _layer_cam(
    model: KGLForImageClassification, feature_map: torch.Tensor, saliency: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    batch, channels, height, width = feature_map.shape
    features = feature_map.flatten(2)
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


def head_gradient(
    model: KGLForImageClassification, feature_map: torch.Tensor, targets: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """The pooled features and the gradient of the targets' logits with respect to them; no graph is left."""
    with torch.enable_grad():
        features = feature_map.detach().requires_grad_()
        logits, _ = model.classify(features)
        (gradient,) = torch.autograd.grad(scores_of(logits, targets), features)
    return to_float(features.detach()), to_float(gradient)


def head_cam(
    model: KGLForImageClassification, feature_map: torch.Tensor, saliency: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    """CAM of our head: the weights of its averaged features, `H`'s among them. Max-pooled ones have no part in CAM."""
    channels = feature_map.shape[1]
    with torch.autocast(feature_map.device.type, enabled=False):
        pooled = torch.cat([to_float(feature_map), to_float(saliency)], dim=1)
        weight = model.classifier.weight[targets, : channels + 1].to(pooled.dtype)
        return F.relu(torch.einsum("bc,bchw->bhw", weight, pooled))
