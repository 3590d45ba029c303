"""Maps at the image's own resolution, from gradients with respect to its pixels."""

from __future__ import annotations

import torch
from torch import nn
from torch.func import functional_call

from .maps import scores_of


def logits_of(model: nn.Module, pixel_values: torch.Tensor) -> torch.Tensor:
    """The logits with the parameters taken as constants: nothing is stored for gradients that nobody wants."""
    constants = {name: parameter.detach() for name, parameter in model.named_parameters()}
    return functional_call(model, constants, (pixel_values,)).logits


def input_gradient(model: nn.Module, pixel_values: torch.Tensor, targets: torch.Tensor | None) -> torch.Tensor:
    """The gradient of the score with respect to the pixels, of `pixel_values`' own shape."""
    with torch.enable_grad():
        pixel_values = pixel_values.detach().requires_grad_()
        return torch.autograd.grad(scores_of(logits_of(model, pixel_values), targets), pixel_values)[0]


def gradient_map(model: nn.Module, pixel_values: torch.Tensor, targets: torch.Tensor | None) -> torch.Tensor:
    """The largest gradient over the channels, in magnitude (Simonyan et al. 2014), `(B, H, W)`."""
    return input_gradient(model, pixel_values, targets).abs().amax(dim=1)


def smooth_grad(
    model: nn.Module, pixel_values: torch.Tensor, targets: torch.Tensor | None, samples: int = 16, noise: float = 0.15
) -> torch.Tensor:
    """
    SmoothGrad (Smilkov et al. 2017): gradient maps averaged over noisy copies, `(B, H, W)`.

    The noise's deviation is `noise` times each image's range; it is drawn from a generator of its own, so that the
    map of an image is the same every time.
    """
    generator = torch.Generator(pixel_values.device).manual_seed(0)
    spread = noise * (pixel_values.amax(dim=(1, 2, 3)) - pixel_values.amin(dim=(1, 2, 3)))
    total = torch.zeros_like(pixel_values[:, 0])
    for _ in range(samples):
        shape = pixel_values.shape[1:]  # one draw for all images: an image's map does not depend on its batch
        drawn = torch.randn(shape, generator=generator, device=pixel_values.device, dtype=pixel_values.dtype)
        total += gradient_map(model, pixel_values + spread.view(-1, 1, 1, 1) * drawn, targets)
    return total / samples


def integrated_gradients(
    model: nn.Module, pixel_values: torch.Tensor, targets: torch.Tensor | None, steps: int = 32
) -> torch.Tensor:
    """
    Integrated gradients (Sundararajan et al. 2017) from the mean colour, `(B, channels, H, W)`.

    Summed over an image they are its score less the mean colour's; the integral is a midpoint sum.
    """
    total = torch.zeros_like(pixel_values)
    for step in range(steps):
        total += input_gradient(model, pixel_values * ((step + 0.5) / steps), targets)
    return total / steps * pixel_values
