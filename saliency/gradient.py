"""Saliency maps in the image's resolution from gradients with respect to the pixels."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call

from .maps import target_score


def logits_without_parameter_gradients(model: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    """Return the logits `(B, K)` with the parameters as constants, so that none of their gradients is prepared."""
    constants = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return functional_call(model, constants, (pixel_values,)).logits


def input_gradient(model: nn.Module, pixel_values: torch.Tensor, targets: torch.Tensor | None) -> torch.Tensor:
    """Return the gradient of the score with respect to the pixels, `(B, channels, H, W)`."""
    with torch.enable_grad():
        pixel_values = pixel_values.detach().requires_grad_()
        score = target_score(logits_without_parameter_gradients(model, pixel_values), targets)
        return torch.autograd.grad(score, pixel_values)[0]


def gradient_map(model: nn.Module, pixel_values: torch.Tensor, targets: torch.Tensor | None) -> torch.Tensor:
    """Compute the gradient's largest magnitude over the channels (Simonyan et al. 2014), `(B, H, W)`."""
    return input_gradient(model, pixel_values, targets).abs().amax(dim=1)


def smooth_grad(
    model: nn.Module, pixel_values: torch.Tensor, targets: torch.Tensor | None, samples: int = 16, noise: float = 0.15
) -> torch.Tensor:
    """
    Compute SmoothGrad (Smilkov et al. 2017): gradient maps averaged over `samples` noisy copies, `(B, H, W)`.

    The noise's standard deviation is `noise` times each image's range of values. A generator of its own draws it, so
    the map of an image is reproducible.
    """
    generator = torch.Generator(pixel_values.device).manual_seed(0)
    spread = noise * (pixel_values.amax(dim=(1, 2, 3)) - pixel_values.amin(dim=(1, 2, 3)))
    total = torch.zeros_like(pixel_values[:, 0])
    for _ in range(samples):
        shape = pixel_values.shape[1:]  # one draw for all images, so that a map does not depend on the batch
        drawn = torch.randn(shape, generator=generator, device=pixel_values.device, dtype=pixel_values.dtype)
        total += gradient_map(model, pixel_values + spread.view(-1, 1, 1, 1) * drawn, targets)
    return total / samples


def integrated_gradients(
    model: nn.Module, pixel_values: torch.Tensor, targets: torch.Tensor | None, steps: int = 32
) -> torch.Tensor:
    """
    Compute integrated gradients (Sundararajan et al. 2017) from the mean colour, `(B, channels, H, W)`.

    Their sum over an image is its score minus the score of the mean colour. The integral is a midpoint sum of `steps`.
    """
    total = torch.zeros_like(pixel_values)
    for step in range(steps):
        total += input_gradient(model, pixel_values * ((step + 0.5) / steps), targets)
    return total / steps * pixel_values


__all__ = [
    "gradient_map",
    "input_gradient",
    "integrated_gradients",
    "logits_without_parameter_gradients",
    "smooth_grad",
]
