"""Activations of chosen layers and the gradients of a class score with respect to them, leaving no trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from .maps import scores_of, to_float


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Eval mode within; every module's own mode again afterwards, also when something raises."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def layer_activations(
    model: nn.Module, pixel_values: torch.Tensor, targets: torch.Tensor | None, layers: list[str]
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """
    Activations and gradients at named layers, each `(B, C, h, w)`, the graph cut below the first of them.

    Tokens `(B, N, C)` and channels-last maps `(B, h, w, C)` are brought into that form.

    Raises:
        ValueError: a layer's output is no map, or the score does not depend on it.
    """
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str):
        def hook(module: nn.Module, inputs: tuple, output: object) -> object:
            tensor = _first_tensor(output)
            if not isinstance(tensor, torch.Tensor):
                raise ValueError(f"Layer {name!r} gives a {type(output).__name__}, which is no map of the image.")
            if not outputs:  # nothing below the first layer need be stored
                torch.set_grad_enabled(True)
                tensor = tensor.detach().requires_grad_()
            outputs[name] = tensor
            return _with_first_tensor(output, tensor)

        return hook

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for name in layers:
            handle = model.get_submodule(name).register_forward_hook(keep(name))
            stack.callback(handle.remove)
        logits = model(pixel_values).logits
        gradients = torch.autograd.grad(
            scores_of(logits, targets), [outputs[name] for name in layers], allow_unused=True
        )
    maps, slopes = [], []
    for name, gradient in zip(layers, gradients, strict=True):
        if gradient is None:
            raise ValueError(f"The class score does not depend on layer {name!r}.")
        grid = grid_of(outputs[name].shape, pixel_values.shape)
        if grid is None:
            raise ValueError(f"Layer {name!r} gives {tuple(outputs[name].shape)}, which is no map of the image.")
        maps.append(to_float(to_map(outputs[name].detach(), grid)))
        slopes.append(to_float(to_map(gradient, grid)))
    return maps, slopes


def deepest_activations(
    model: nn.Module, pixel_values: torch.Tensor, targets: torch.Tensor | None
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """
    A transformers classifier's deepest hidden state whose cells the score depends on, and its gradient.

    Behind a transformer's last attention only the class token still matters, so the last hidden state is not it there.

    Raises:
        ValueError: no hidden state is a map of the image.
    """
    with torch.enable_grad():
        pixel_values = pixel_values.detach().requires_grad_()
        output = model(pixel_values, output_hidden_states=True)
        states = [state for state in output.hidden_states if grid_of(state.shape, pixel_values.shape) is not None]
        score = scores_of(output.logits, targets)
        slopes = torch.autograd.grad(score, states, allow_unused=True) if states else []
    for state, slope in list(zip(states, slopes, strict=True))[::-1]:
        grid = grid_of(state.shape, pixel_values.shape)
        if slope is not None and (to_map(slope, grid) != 0).any():
            return [to_float(to_map(state.detach(), grid))], [to_float(to_map(slope, grid))]
    raise ValueError(f"{type(model).__name__} has no hidden state that is a map of the image; name layers.")


def spatial_layers(model: nn.Module, pixel_values: torch.Tensor) -> list[str]:
    """Names of the modules whose output is a map of the image, in order of execution."""
    names: list[str] = []

    def keep(name: str):
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if isinstance(tensor, torch.Tensor) and grid_of(tensor.shape, pixel_values[:1].shape) is not None:
                names.append(name)

        return hook

    with ExitStack() as stack, torch.no_grad(), eval_mode(model):
        for name, module in model.named_modules():
            stack.callback(module.register_forward_hook(keep(name)).remove)
        model(pixel_values[:1])
    return names


def grid_of(shape: torch.Size, image_shape: torch.Size) -> tuple[int, int] | None:
    """
    `(h, w)` of a layer's output over images of `image_shape (B, channels, H, W)`, or None where it is no map.

    Maps are `(B, C, h, w)`, or `(B, h, w, C)` where only that has the image's proportions; tokens `(B, N, C)` are
    `h w` patches in the image's proportions behind at most 8 class and register tokens.
    """
    batch, _, height, width = image_shape
    if shape[0] != batch or len(shape) not in (3, 4):
        return None
    if len(shape) == 4:
        for candidate in (shape[2:], shape[1:3]):
            if min(candidate) > 1 and abs(candidate[0] / candidate[1] - height / width) < 0.2 * height / width:
                return tuple(candidate)
        return None
    for prefix in range(9):
        patches = shape[1] - prefix
        if patches < 2:
            break
        rows = round((patches * height / width) ** 0.5)
        if rows > 1 and patches % rows == 0 and abs(rows * rows * width / height - patches) < 0.2 * patches:
            return rows, patches // rows
    return None


def to_map(tensor: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """A layer's output in any of the three forms as `(B, C, h, w)`."""
    if tensor.dim() == 3:
        patches = tensor[:, tensor.shape[1] - grid[0] * grid[1] :]
        return patches.transpose(1, 2).unflatten(2, grid)
    return tensor if tuple(tensor.shape[2:]) == grid else tensor.permute(0, 3, 1, 2)


def _first_tensor(output: object) -> object:
    return output if isinstance(output, torch.Tensor) else output[0]


def _with_first_tensor(output: object, tensor: torch.Tensor) -> object:
    if isinstance(output, torch.Tensor):
        return tensor
    if isinstance(output, tuple):
        return (tensor, *output[1:])
    output[0] = tensor
    return output
