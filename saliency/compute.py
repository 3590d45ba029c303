"""Saliency maps by any method, of kgl models and of any transformers image classifier."""

from __future__ import annotations

import torch
from torch import nn

from ..modeling_kgl import KGLForImageClassification
from . import cam
from .activations import deepest_activations, eval_mode, layer_activations, spatial_layers
from .fullgrad import full_grad
from .gradient import gradient_map, integrated_gradients, smooth_grad
from .maps import fuse
from .methods import CAM_METHODS, METHODS


_CAM_FUNCTIONS = {
    "cam": cam.cam,
    "gradcam": cam.grad_cam,
    "gradcam++": cam.grad_cam_plus_plus,
    "hirescam": cam.hires_cam,
    "layercam": cam.layer_cam_from_gradient,
}


def compute_saliency(
    model: nn.Module,
    pixel_values: torch.Tensor,
    targets: torch.Tensor | None = None,
    method: str = "layercam",
    layers: list[str] | None = None,
) -> torch.Tensor:
    """
    Compute saliency maps of a class in each image; the model's modes, hooks and gradients are left unchanged.

    Args:
        model: a [`KGLForImageClassification`] or any transformers classifier that returns `logits`.
        pixel_values: `(B, channels, H, W)`, normalised.
        targets: class indices `(B,)`; the predicted classes by default.
        method: one of [`METHODS`].
        layers: for the CAM methods, names of the modules whose outputs are weighted; several are fused. The default is
            the pooled features of a kgl model, and the deepest hidden state that the score depends on of other
            models. Naming a layer saves memory: nothing below it is stored.

    Returns:
        Non-negative maps, `(B, h, w)` on the layer's grid for the CAM methods, `(B, H, W)` for the others.

    Raises:
        ValueError: an unknown method or layer, a model without spatial maps, a target out of range.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}: choose one of {', '.join(METHODS)}.")
    if isinstance(layers, str):
        raise ValueError(f"layers={layers!r}: give a list of module names.")
    if layers is not None and method not in CAM_METHODS:
        raise ValueError(f"layers={layers}: {method} uses the whole model; layers are for the CAM methods.")
    num_labels = model.config.num_labels
    # Only on the CPU: on an accelerator the check would synchronise, and indexing reports the error.
    if targets is not None and targets.device.type == "cpu" and not ((targets >= 0) & (targets < num_labels)).all():
        raise ValueError(f"targets must lie in 0..{num_labels - 1}, got {targets.tolist()}.")

    with eval_mode(model):
        if method in CAM_METHODS:
            return _class_activation_map(model, pixel_values, targets, method, layers)
        if method == "fullgrad":
            return full_grad(model, pixel_values, targets)
        if method == "inputgrad":
            return gradient_map(model, pixel_values, targets)
        if method == "smoothgrad":
            return smooth_grad(model, pixel_values, targets)
        return integrated_gradients(model, pixel_values, targets).sum(dim=1).abs()


def _class_activation_map(
    model: nn.Module, pixel_values: torch.Tensor, targets: torch.Tensor | None, method: str, layers: list[str] | None
) -> torch.Tensor:
    if layers is None and isinstance(model, KGLForImageClassification):
        with torch.no_grad():
            feature_map, _ = model.features(pixel_values)
            if method in ("cam", "layercam") and model.config.pooling == "avg_max":  # closed forms
                logits, saliency = model.classify(feature_map)
                closed_form = cam.head_cam if method == "cam" else cam.layer_cam
                return closed_form(model, feature_map, saliency, logits.argmax(dim=1) if targets is None else targets)
        activation, gradient = cam.head_gradient(model, feature_map, targets)
        activations, gradients = [activation], [gradient]
    elif layers is None:
        activations, gradients = deepest_activations(model, pixel_values, targets)
    else:
        known = {name for name, _ in model.named_modules()}
        unknown = [name for name in layers if name not in known]
        if unknown:
            spatial = ", ".join(spatial_layers(model, pixel_values))
            raise ValueError(f"the model has no layer {', '.join(unknown)}; its layers with spatial maps: {spatial}.")
        activations, gradients = layer_activations(model, pixel_values, targets, layers)
    with torch.no_grad():
        pairs = zip(activations, gradients, strict=True)
        return fuse([_CAM_FUNCTIONS[method](activation, gradient) for activation, gradient in pairs])


__all__ = ["compute_saliency"]
