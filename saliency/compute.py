"""Saliency maps by any method, of kgl models and of any transformers image classifier."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from ..modeling_kgl import KGLForImageClassification
from . import cam
from .activations import default_layer, eval_mode, layer_activations, spatial_layers
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
    targets: int | Sequence[int] | np.ndarray | torch.Tensor | None = None,
    method: str = "layercam",
    layers: list[str] | None = None,
) -> torch.Tensor:
    """
    Compute saliency maps of a class in each image; the model's modes, hooks and gradients are left unchanged.

    Args:
        model: a [`KGLForImageClassification`] or any transformers classifier that returns `logits`.
        pixel_values: `(B, channels, H, W)`, normalised.
        targets: class indices, one per image or one for all; the predicted classes by default.
        method: one of [`METHODS`].
        layers: for the CAM methods, names of the modules whose outputs are weighted; several are fused. The default is
            the pooled features of a kgl model, and the deepest hidden state that the score depends on of other
            models. Nothing below the layer is stored.

    Returns:
        Non-negative maps, `(B, h, w)` on the layer's grid for the CAM methods, `(B, H, W)` for the others.

    Raises:
        ValueError: an unknown method or layer, no spatial maps, targets out of range or not one per image.
    """
    if method not in METHODS:
        raise ValueError(f"method={method!r}: choose one of {', '.join(METHODS)}.")
    if isinstance(layers, str):
        raise ValueError(f"layers={layers!r}: give a list of module names.")
    if layers is not None and method not in CAM_METHODS:
        raise ValueError(f"layers={layers}: {method} uses the whole model; layers are for the CAM methods.")
    if targets is not None:
        targets = class_indices(targets, len(pixel_values), model.config.num_labels).to(pixel_values.device)

    with torch.inference_mode(False), eval_mode(model):  # gradients are needed, whatever surrounds the call
        if pixel_values.is_inference():
            pixel_values = pixel_values.clone()
        if targets is not None and targets.is_inference():
            targets = targets.clone()
        if method in CAM_METHODS:
            return _class_activation_map(model, pixel_values, targets, method, layers)
        if method == "fullgrad":
            return full_grad(model, pixel_values, targets)
        if method == "inputgrad":
            return gradient_map(model, pixel_values, targets)
        if method == "smoothgrad":
            return smooth_grad(model, pixel_values, targets)
        return integrated_gradients(model, pixel_values, targets).sum(dim=1).abs()


def class_indices(
    targets: int | Sequence[int] | np.ndarray | torch.Tensor, batch_size: int, num_labels: int
) -> torch.Tensor:
    """
    Return class indices `(B,)` int64 from one index for all images or one per image, `(B,)` or `(B, 1)`.

    Raises:
        ValueError: another shape, values that are not whole numbers, or out of range.
    """
    try:
        given = torch.as_tensor(targets)
        if given.dtype in (torch.uint16, torch.uint32, torch.uint64):  # torch compares these with nothing
            given = given.long()
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"targets must be class indices, which are whole numbers, got {targets!r}.") from error
    indices = given.reshape(-1)
    if given.dim() == 0:
        indices = indices.expand(batch_size)
    elif tuple(given.shape) not in ((batch_size,), (batch_size, 1)):
        raise ValueError(
            f"targets of shape {tuple(given.shape)} for {batch_size} images: give one class index for all or one per "
            "image."
        )
    # Only on the CPU: on an accelerator the checks would synchronise, and indexing reports the error.
    if indices.device.type == "cpu":
        if indices.is_complex() or not (indices == indices.long()).all():
            raise ValueError(f"targets must be class indices, which are whole numbers, got {given.tolist()}.")
        if not ((indices >= 0) & (indices < num_labels)).all():
            raise ValueError(f"targets must lie in 0..{num_labels - 1}, got {given.tolist()}.")
    return indices.long()


def _class_activation_map(
    model: nn.Module, pixel_values: torch.Tensor, targets: torch.Tensor | None, method: str, layers: list[str] | None
) -> torch.Tensor:
    if layers is None and isinstance(model, KGLForImageClassification):
        with torch.no_grad():
            feature_maps, _ = model.features(pixel_values)
            if method in ("cam", "layercam"):
                logits, saliency = model.classify(feature_maps)
                of_head = cam.head_cam if method == "cam" else cam.layer_cam
                return of_head(model, feature_maps, saliency, logits.argmax(dim=1) if targets is None else targets)
        activations, gradients = cam.head_gradient(model, feature_maps, targets)
    elif layers is None:
        layer = default_layer(model, pixel_values)
        activations, gradients = layer_activations(model, pixel_values, targets, [layer])
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


__all__ = ["class_indices", "compute_saliency"]
