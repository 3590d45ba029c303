"""FullGrad (Srinivas and Fleuret 2019): the shares of the input and of every bias in the score, summed as maps."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack

import torch
from torch import nn
from torch.nn import functional as F

from .activations import find_grid, to_map
from .gradient import logits_without_parameter_gradients
from .maps import target_score


def full_gradients(
    model: nn.Module,
    pixel_values: torch.Tensor,
    targets: torch.Tensor | None,
    receive: Callable[[torch.Tensor, torch.Tensor], None],
) -> None:
    """
    Call `receive(gradient, factor)` for each term of the full gradient during the backward pass; nothing is kept.

    The terms are the gradient at the input, `(B, channels, H, W)`, with the input as factor, and the gradient at each
    layer with a bias, `(B, C, h, w)` with the bias `(C, 1, 1)`, or `(B, N, C)` and `(B, C)` with `(C,)`. For a network
    of convolutions, batch norms in eval mode, linear layers, ReLUs and poolings, the products summed over everything
    but the batch are the score (proposition 1).
    """

    def attach(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        if not output.requires_grad:  # independent of the image: the position biases of SwinV2
            return
        bias = _bias(module)
        if output.dim() != 4:
            output.register_hook(lambda gradient: receive(gradient, bias))
        elif isinstance(module, nn.Linear):  # a linear layer's channels come last, whatever the sizes
            output.register_hook(lambda gradient: receive(gradient.permute(0, 3, 1, 2), bias.view(-1, 1, 1)))
        else:
            output.register_hook(lambda gradient: receive(gradient, bias.view(-1, 1, 1)))

    with ExitStack() as stack, torch.enable_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) or (
                isinstance(module, (nn.Conv2d, nn.Linear)) and module.bias is not None
            ):
                stack.callback(module.register_forward_hook(attach).remove)
        pixel_values = pixel_values.detach().requires_grad_()
        score = target_score(logits_without_parameter_gradients(model, pixel_values), targets)
        (gradient,) = torch.autograd.grad(score, pixel_values)
        receive(gradient, pixel_values.detach())


def full_grad(model: nn.Module, pixel_values: torch.Tensor, targets: torch.Tensor | None) -> torch.Tensor:
    """
    Compute the FullGrad map, `(B, H, W)`: each term's magnitude scaled to 0..1 per image, enlarged, and summed.

    Scaling is affine and enlarging is linear, so a term's channels are summed first and one map per layer is enlarged.
    A bias is constant over the cells, so that sum is a product of a vector and the gradient's magnitude. Terms that
    are not spatial maps, such as a classifier's bias, are left out, as in the paper.
    """
    total = torch.zeros_like(pixel_values[:, 0], dtype=torch.promote_types(pixel_values.dtype, torch.float32))

    def add(gradient: torch.Tensor, factor: torch.Tensor) -> None:
        grid = find_grid(gradient.shape, pixel_values.shape)
        if grid is None:
            return
        if factor.shape == gradient.shape:
            gradient, factor = gradient * factor, factor.new_ones(gradient.shape[1])
        magnitude = to_map(gradient, grid).abs().to(total.dtype).flatten(2)  # (B, C, h w)
        factor = factor.flatten().abs().to(total.dtype)
        low = (magnitude.amin(dim=2) * factor).amin(dim=1)
        high = (magnitude.amax(dim=2) * factor).amax(dim=1)
        with torch.autocast(total.device.type, enabled=False):  # autocast would round the product to half precision
            summed = torch.matmul(factor, magnitude) - len(factor) * low[:, None]
        summed = (summed / ((high - low)[:, None] + 1e-6)).unflatten(1, grid)
        enlarged = F.interpolate(summed[:, None], size=total.shape[1:], mode="bilinear", align_corners=True)
        total.add_(enlarged[:, 0])

    full_gradients(model, pixel_values, targets, add)
    return total


def _bias(module: nn.Module) -> torch.Tensor:
    """Return a layer's bias `(C,)`; of batch norm in eval mode, the shift of its affine form."""
    if isinstance(module, nn.BatchNorm2d):
        scale = module.weight / (module.running_var + module.eps).sqrt()
        return (module.bias - module.running_mean * scale).detach()
    return module.bias.detach()


__all__ = ["full_grad", "full_gradients"]
