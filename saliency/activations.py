"""Activations of chosen layers and the gradients of a class score with respect to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

import torch
from torch import nn

from .maps import target_score, to_float


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Switch the model to eval mode; restore every module's own mode on leaving, also after an error."""
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
    Return activations and gradients at named layers, two lists of `(B, C, h, w)`.

    Tokens `(B, N, C)` and channels-last maps `(B, h, w, C)` are converted. The graph is cut below the first layer.

    Args:
        model: a classifier that returns `logits`, in eval mode.
        pixel_values: `(B, channels, H, W)`.
        targets: class indices `(B,)`; None for the predicted classes.
        layers: names of modules.

    Raises:
        ValueError: a layer's output is not a spatial map, or the score does not depend on it.
    """
    outputs: dict[str, torch.Tensor] = {}

    def keep(name: str) -> Callable[[nn.Module, tuple, object], object]:
        def hook(module: nn.Module, inputs: tuple, output: object) -> object:
            tensor = _first_tensor(output)
            if not isinstance(tensor, torch.Tensor):
                raise ValueError(f"Layer {name!r} returns a {type(output).__name__}, which is not a spatial map.")
            if not outputs:  # nothing below the first layer has to be stored
                torch.set_grad_enabled(True)
                tensor = tensor.detach().requires_grad_()
            outputs[name] = tensor
            return _replace_first_tensor(output, tensor)

        return hook

    with ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        for name in layers:
            handle = model.get_submodule(name).register_forward_hook(keep(name))
            stack.callback(handle.remove)
        logits = model(pixel_values).logits
        gradients = torch.autograd.grad(
            target_score(logits, targets), [outputs[name] for name in layers], allow_unused=True
        )
    activation_maps, gradient_maps = [], []
    for name, gradient in zip(layers, gradients, strict=True):
        if gradient is None:
            raise ValueError(f"The class score does not depend on layer {name!r}; name an earlier one.")
        grid = find_grid(outputs[name].shape, pixel_values.shape)
        if grid is None:
            raise ValueError(
                f"Layer {name!r} returns shape {tuple(outputs[name].shape)}, which is not a spatial map of the image."
            )
        activation_maps.append(to_float(to_map(outputs[name].detach(), grid)))
        gradient_maps.append(to_float(to_map(gradient, grid)))
    return activation_maps, gradient_maps


def deepest_activations(
    model: nn.Module, pixel_values: torch.Tensor, targets: torch.Tensor | None
) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """
    Return the deepest hidden state that the score depends on and its gradient, two lists of one `(B, C, h, w)`.

    In a vision transformer this is not the last one: behind the last attention only the class token counts.

    Args:
        model: a transformers classifier that returns `logits` and `hidden_states`, in eval mode.
        pixel_values: `(B, channels, H, W)`.
        targets: class indices `(B,)`; None for the predicted classes.

    Raises:
        ValueError: no hidden state is a spatial map.
    """
    with torch.enable_grad():
        pixel_values = pixel_values.detach().requires_grad_()
        output = model(pixel_values, output_hidden_states=True)
        states = [state for state in output.hidden_states if find_grid(state.shape, pixel_values.shape) is not None]
        score = target_score(output.logits, targets)
        gradients = torch.autograd.grad(score, states, allow_unused=True) if states else []
    for state, gradient in list(zip(states, gradients, strict=True))[::-1]:
        grid = find_grid(state.shape, pixel_values.shape)
        if gradient is not None and (to_map(gradient, grid) != 0).any():
            return [to_float(to_map(state.detach(), grid))], [to_float(to_map(gradient, grid))]
    raise ValueError(f"{type(model).__name__} has no hidden state that is a spatial map; name layers.")


def spatial_layers(model: nn.Module, pixel_values: torch.Tensor) -> list[str]:
    """Return the names of the modules whose output is a spatial map, in order of execution."""
    names: list[str] = []

    def keep(name: str) -> Callable[[nn.Module, tuple, object], None]:
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if isinstance(tensor, torch.Tensor) and find_grid(tensor.shape, pixel_values[:1].shape) is not None:
                names.append(name)

        return hook

    with ExitStack() as stack, torch.no_grad(), eval_mode(model):
        for name, module in model.named_modules():
            stack.callback(module.register_forward_hook(keep(name)).remove)
        model(pixel_values[:1])
    return names


def find_grid(shape: torch.Size, image_shape: torch.Size) -> tuple[int, int] | None:
    """
    Return the grid `(h, w)` of a layer's output, or None where the output is not a spatial map.

    A map is `(B, C, h, w)`, or `(B, h, w, C)` where only that has the image's aspect ratio (within 20 %). Tokens
    `(B, N, C)` are `h * w` patches in the image's aspect ratio behind at most 8 class and register tokens.

    Args:
        shape: of the output.
        image_shape: `(B, channels, H, W)`.
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
    """Convert a layer's output, in any of the forms that [`find_grid`] knows, to `(B, C, h, w)`."""
    if tensor.dim() == 3:
        patches = tensor[:, tensor.shape[1] - grid[0] * grid[1] :]
        return patches.transpose(1, 2).unflatten(2, grid)
    return tensor if tuple(tensor.shape[2:]) == grid else tensor.permute(0, 3, 1, 2)


def _first_tensor(output: object) -> object:
    return output if isinstance(output, torch.Tensor) else output[0]


def _replace_first_tensor(output: object, tensor: torch.Tensor) -> object:
    if isinstance(output, torch.Tensor):
        return tensor
    if isinstance(output, tuple):
        return (tensor, *output[1:])
    output[0] = tensor
    return output


__all__ = ["deepest_activations", "eval_mode", "find_grid", "layer_activations", "spatial_layers", "to_map"]
