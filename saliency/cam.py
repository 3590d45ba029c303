"""
Class activation maps from activations `A (B, C, h, w)` and the score's gradient `g` with respect to them.

Each method weights the activations in its own way and returns the positive part of their sum, `(B, h, w)`.
"""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ..modeling_kgl import KGLForImageClassification
from .maps import fuse, target_score, to_float


def cam(activations: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """
    Compute CAM (Zhou et al. 2016): channels weighted by a linear classifier on average-pooled features.

    With such a classifier, the gradient of a cell is the classifier's weights divided by the number of cells.

    Raises:
        ValueError: the gradient differs between cells, so the layer is not average-pooled into a linear classifier.
    """
    mean = gradient.mean(dim=(2, 3), keepdim=True)
    if not torch.allclose(gradient, mean.expand_as(gradient), rtol=1e-3, atol=1e-6 * float(mean.abs().max())):
        raise ValueError(
            "CAM needs a layer that is average-pooled into a linear classifier; choose gradcam for this one."
        )
    return F.relu((mean * activations).sum(dim=1)) * gradient.shape[2] * gradient.shape[3]


def grad_cam(activations: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Compute Grad-CAM (Selvaraju et al. 2017): channels weighted by their mean gradient."""
    return F.relu((gradient.mean(dim=(2, 3), keepdim=True) * activations).sum(dim=1))


def grad_cam_plus_plus(activations: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Compute Grad-CAM++ (Chattopadhyay et al. 2018, equations 10 and 19) for the exponential of the score."""
    squared, cubed = gradient**2, gradient**3
    denominator = 2 * squared + activations.sum(dim=(2, 3), keepdim=True) * cubed
    alpha = torch.where(denominator != 0, squared / denominator, torch.zeros_like(gradient))
    weights = (alpha * F.relu(gradient)).sum(dim=(2, 3), keepdim=True)
    return F.relu((weights * activations).sum(dim=1))


def hires_cam(activations: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Compute HiResCAM (Draelos and Carin 2020): every cell weighted by its own gradient."""
    return F.relu((gradient * activations).sum(dim=1))


def layer_cam_from_gradient(activations: torch.Tensor, gradient: torch.Tensor) -> torch.Tensor:
    """Compute LayerCAM (Jiang et al. 2021, equations 3 and 4): cells weighted by their own positive gradient."""
    return F.relu((F.relu(gradient) * activations).sum(dim=1))


def layer_cam(
    model: KGLForImageClassification,
    feature_maps: tuple[torch.Tensor, ...],
    saliency: torch.Tensor,
    targets: torch.Tensor,
) -> torch.Tensor:
    """
    Compute LayerCAM (Jiang et al. 2021) of a kgl model's head, the class map.

    With the head `avg_max` it has a closed form, which needs no backward pass. With the head `stages` it is computed
    by a backward pass through the head for each stage, fused by the maximum.

    LayerCAM is `relu(sum_c relu(g_c) * F_c)` with `g` the gradient of the target's logit with respect to `F`. The
    head `avg_max` pools and is linear, so `g` is a constant per channel, plus the max-pooling weight at the channel's
    arg-max cell, plus the same two through the saliency logits `H = v F`.

    Args:
        model: the classifier whose head made `saliency`.
        feature_maps: `F`, `(B, C_i, h_i, w_i)`, finest first.
        saliency: `H`, `(B, 1, h, w)`.
        targets: class indices, `(B,)`.

    Returns:
        `(B, h, w)`, non-negative: in units of the logit, or with peak 1 where several stages are fused.
    """
    if model.config.head == "stages":
        pairs = zip(*head_gradient(model, feature_maps, targets), strict=True)
        return fuse([layer_cam_from_gradient(features, gradient) for features, gradient in pairs])
    (feature_map,) = feature_maps
    with torch.autocast(feature_map.device.type, enabled=False):  # half precision would lose small terms of the sums
        return _closed_form_layer_cam(model, to_float(feature_map), to_float(saliency), targets)


def _closed_form_layer_cam(
    model: KGLForImageClassification, feature_map: torch.Tensor, saliency: torch.Tensor, targets: torch.Tensor
) -> torch.Tensor:
    batch, channels, height, width = feature_map.shape
    features = feature_map.flatten(2)
    weight = model.classifier.weight.to(features.dtype)[targets]
    mean_weight, max_weight = weight[:, :channels], weight[:, channels + 1 : 2 * channels + 1]
    mean_weight_h, max_weight_h = weight[:, channels, None], weight[:, 2 * channels + 1, None]
    head = model.saliency_head.weight.to(features.dtype).view(1, channels)

    constant = (mean_weight + mean_weight_h * head) / (height * width)
    through_h = max_weight_h * head
    values, cells = features.max(dim=2)
    cell_h = saliency.flatten(1).argmax(dim=1, keepdim=True)
    same_cell = cells == cell_h

    maps = torch.einsum("bc,bcn->bn", F.relu(constant), features)
    # Arg-max cells add to the constant part: each channel's own cell, and the arg-max cell of H in every channel.
    at_max = F.relu(constant + max_weight + through_h * same_cell) - F.relu(constant)
    maps = maps.scatter_add(1, cells, at_max * values)
    features_h = features.gather(2, cell_h[:, None, :].expand(batch, channels, 1)).squeeze(2)
    at_h = (F.relu(constant + through_h) - F.relu(constant)) * features_h * ~same_cell
    maps = maps.scatter_add(1, cell_h, at_h.sum(dim=1, keepdim=True))
    return F.relu(maps).view(batch, height, width)


def head_gradient(
    model: KGLForImageClassification, feature_maps: tuple[torch.Tensor, ...], targets: torch.Tensor | None
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Return the features and the gradients of the target's logit with respect to them, `(B, C_i, h_i, w_i)` each."""
    with torch.enable_grad():
        features = tuple(one.detach().requires_grad_() for one in feature_maps)
        logits, _ = model.classify(features)
        gradients = torch.autograd.grad(target_score(logits, targets), features)
    return [to_float(one.detach()) for one in features], [to_float(one) for one in gradients]


def head_cam(
    model: KGLForImageClassification,
    feature_maps: tuple[torch.Tensor, ...],
    saliency: torch.Tensor,
    targets: torch.Tensor,
) -> torch.Tensor:
    """
    Compute CAM of a kgl model's head, `(B, h, w)`: the weights of the averages.

    Stages, also a fine-tuned one with its own classifier, are fused by the maximum.
    """
    pooled = [(model.classifier, list(feature_maps))]
    if model.config.head == "avg_max":
        pooled = [(model.classifier, [torch.cat([feature_maps[0], saliency], dim=1)])]
    if model.tuned is not None:
        pooled.append((model.tuned.classifier, [torch.cat(model.tuned.features(feature_maps[0]), dim=1)]))
    with torch.autocast(saliency.device.type, enabled=False):
        return fuse([one for classifier, maps in pooled for one in _averages_cam(classifier.weight[targets], maps)])


def _averages_cam(weight: torch.Tensor, maps: list[torch.Tensor]) -> list[torch.Tensor]:
    """Return CAM `(B, h_i, w_i)` of maps that a classifier with these weights pools, average before maximum."""
    cams, start = [], 0
    for one in map(to_float, maps):
        mean_weight = weight[:, start : start + one.shape[1]].to(one.dtype)
        cams.append(F.relu(torch.einsum("bc,bchw->bhw", mean_weight, one)))
        start += 2 * one.shape[1]
    return cams


__all__ = [
    "cam",
    "grad_cam",
    "grad_cam_plus_plus",
    "head_cam",
    "head_gradient",
    "hires_cam",
    "layer_cam",
    "layer_cam_from_gradient",
]
