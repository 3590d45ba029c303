"""One function for every method, on our model and on any image classifier of transformers."""

from __future__ import annotations

import torch
from torch import nn

from ..modeling_kgl import KGLForImageClassification
from . import cam, gradient
from .activations import (
    deepest_activations,
    eval_mode,
    layer_activations,
    spatial_layers,
)
from .fullgrad import full_grad
from .maps import fuse
from .methods import METHODS


_CAM_METHODS = {
    "cam": cam.cam,
    "gradcam": cam.grad_cam,
    "gradcam++": cam.grad_cam_plus_plus,
    "hirescam": cam.hires_cam,
    "layercam": cam.layer_cam_of,
}


def compute_saliency(
    model: nn.Module,
    pixel_values: torch.Tensor,
    targets: torch.Tensor | None = None,
    method: str = "layercam",
    layers: list[str] | None = None,
) -> torch.Tensor:
    """
    Maps of what speaks for a class in each image. The model is left exactly as it was.

    Args:
        model: a [`KGLForImageClassification`] or any classifier of transformers that returns `logits`.
        pixel_values: `(B, channels, H, W)`, normalised.
        targets: class indices `(B,)`; the predicted classes by default.
        method: one of [`METHODS`].
        layers: for the CAM methods, names of the modules whose outputs are weighed, several of them fused. By default
            our model's pooled features, and other models' deepest hidden state whose cells the score depends on.
            Naming a layer costs less: nothing below it is stored.

    Returns:
        `(B, h, w)`, not negative: the layer's grid for the CAM methods, `(B, H, W)` for the others.

    Raises:
        ValueError: an unknown method or layer, a model without maps, a target that is no class.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}: choose one of {', '.join(METHODS)}.")
    if isinstance(layers, str):
        raise ValueError(f"layers={layers!r}: give a list of names.")
    if layers is not None and method not in _CAM_METHODS:
        raise ValueError(f"layers={layers}: {method} looks at the whole model; layers are for the CAM methods.")
    num_labels = model.config.num_labels
    # On an accelerator the check would wait for it; there, torch's own indexing reports.
    if targets is not None and targets.device.type == "cpu" and not ((targets >= 0) & (targets < num_labels)).all():
        raise ValueError(f"targets must lie in 0..{num_labels - 1}, got {targets.tolist()}.")

    with eval_mode(model):
        if method in _CAM_METHODS:
            return _class_activation_map(model, pixel_values, targets, method, layers)
        if method == "fullgrad":
            return full_grad(model, pixel_values, targets)
        if method == "inputgrad":
            return gradient.gradient_map(model, pixel_values, targets)
        if method == "smoothgrad":
            return gradient.smooth_grad(model, pixel_values, targets)
        return gradient.integrated_gradients(model, pixel_values, targets).sum(dim=1).abs()


def _class_activation_map(
    model: nn.Module, pixel_values: torch.Tensor, targets: torch.Tensor | None, method: str, layers: list[str] | None
) -> torch.Tensor:
    if layers is None and isinstance(model, KGLForImageClassification):
        with torch.no_grad():
            feature_map, _ = model.features(pixel_values)
            if method in ("cam", "layercam") and model.config.pooling == "avg_max":  # these have closed forms
                logits, saliency = model.classify(feature_map)
                of_head = cam.head_cam if method == "cam" else cam.layer_cam
                return of_head(model, feature_map, saliency, logits.argmax(dim=1) if targets is None else targets)
        activation, slope = cam.head_gradient(model, feature_map, targets)
        activations, gradients = [activation], [slope]
    elif layers is None:
        activations, gradients = deepest_activations(model, pixel_values, targets)
    else:
        known = {name for name, _ in model.named_modules()}
        unknown = [name for name in layers if name not in known]
        if unknown:
            there = ", ".join(spatial_layers(model, pixel_values))
            raise ValueError(f"there is no layer {', '.join(unknown)}; the layers with maps are {there}.")
        activations, gradients = layer_activations(model, pixel_values, targets, layers)
    with torch.no_grad():
        pairs = zip(activations, gradients, strict=True)
        return fuse([_CAM_METHODS[method](activation, slope) for activation, slope in pairs])
