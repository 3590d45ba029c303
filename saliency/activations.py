"""Activations of chosen layers and the gradients of a class score with respect to them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from weakref import WeakKeyDictionary

import torch
from torch import nn
from transformers.utils import ModelOutput

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
        activation = channels_first(outputs[name].detach(), model, name, pixel_values)
        grid = find_grid(activation.shape, pixel_values.shape)
        if grid is None:
            raise ValueError(
                f"Layer {name!r} returns shape {tuple(outputs[name].shape)}, which is not a spatial map of the image."
            )
        activation_maps.append(to_float(to_map(activation, grid)))
        gradient_maps.append(to_float(to_map(channels_first(gradient, model, name, pixel_values), grid)))
    return activation_maps, gradient_maps


# Per model, what probing found: the default layer of an input shape, and whether a layer's maps are channels-last.
_DEFAULT_LAYERS: WeakKeyDictionary[nn.Module, dict[torch.Size, str]] = WeakKeyDictionary()
_CHANNELS_LAST: WeakKeyDictionary[nn.Module, dict[tuple[str, torch.Size], bool]] = WeakKeyDictionary()


def default_layer(model: nn.Module, pixel_values: torch.Tensor) -> str:
    """
    Return the module whose output is the deepest hidden state that the score depends on, found once per input shape.

    In a vision transformer this is not the last one: behind the last attention only the class token counts.

    Args:
        model: a transformers classifier that returns `logits` and `hidden_states`, in eval mode.
        pixel_values: `(B, channels, H, W)`.

    Raises:
        ValueError: no hidden state is the output of a module and a spatial map.
    """
    found, shape = _DEFAULT_LAYERS.setdefault(model, {}), pixel_values.shape[1:]
    if shape not in found:
        found[shape] = _find_default_layer(model, pixel_values)
    return found[shape]


def _find_default_layer(model: nn.Module, pixel_values: torch.Tensor) -> str:
    names: dict[int, str] = {}  # by the id of a module's output; the innermost of several modules comes first

    def keep(name: str) -> Callable[[nn.Module, tuple, object], None]:
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            tensor = output[0] if isinstance(output, (tuple, ModelOutput)) else output
            if isinstance(tensor, torch.Tensor):
                outputs.append(tensor)  # keeps the id in use
                names.setdefault(id(tensor), name)

        return hook

    outputs: list[torch.Tensor] = []
    with ExitStack() as stack:
        stack.enter_context(torch.enable_grad())
        for name, module in model.named_modules():
            stack.callback(module.register_forward_hook(keep(name)).remove)
        # Noise: on a blank image gradients may vanish by chance, and the layer must not depend on the first image.
        noise = torch.rand(1, *pixel_values.shape[1:], generator=torch.Generator().manual_seed(0))
        noise = noise.to(pixel_values).requires_grad_()
        output = model(noise, output_hidden_states=True)
        states = [state for state in output.hidden_states if id(state) in names and state.requires_grad]
        score = (output.logits * torch.arange(1, output.logits.shape[1] + 1).to(output.logits)).sum()
        gradients = torch.autograd.grad(score, states, allow_unused=True) if states else []
    for state, gradient in list(zip(states, gradients, strict=True))[::-1]:
        if gradient is None or state.dim() not in (3, 4):
            continue
        name = names[id(state)]
        gradient = channels_first(gradient, model, name, pixel_values)
        grid = find_grid(gradient.shape, noise.shape)
        if grid is not None and (to_map(gradient, grid) != 0).any():
            return name
    raise ValueError(f"{type(model).__name__} has no hidden state that is a spatial map; name layers.")


def channels_first(tensor: torch.Tensor, model: nn.Module, name: str, pixel_values: torch.Tensor) -> torch.Tensor:
    """
    Move the channels of a layer's 4-D output, or of its gradient, to `(B, C, h, w)`; return other outputs unchanged.

    Args:
        tensor: `(B, C, h, w)` or `(B, h, w, C)`; sizes do not tell which, so the layer's type or a probe does.
        model: a classifier in eval mode.
        name: of the layer.
        pixel_values: `(B, channels, H, W)`.

    Raises:
        ValueError: the layer's output does not grow with the image in one of these two layouts.
    """
    if tensor.dim() != 4:
        return tensor
    module = model.get_submodule(name)
    if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
        return tensor
    if isinstance(module, nn.Linear):
        return tensor.permute(0, 3, 1, 2)
    known, key = _CHANNELS_LAST.setdefault(model, {}), (name, pixel_values.shape[1:])
    if key not in known:
        known[key] = _probe_channels_last(model, name, pixel_values)
    return tensor.permute(0, 3, 1, 2) if known[key] else tensor


@torch.no_grad()
def _probe_channels_last(model: nn.Module, name: str, pixel_values: torch.Tensor) -> bool:
    """Return which axis of a layer's output grows in an image of twice the height: the second, or else the third."""
    shapes: list[torch.Size] = []

    def keep(module: nn.Module, inputs: tuple, output: object) -> None:
        shapes.append(_first_tensor(output).shape)

    _, channels, height, width = pixel_values.shape
    handle = model.get_submodule(name).register_forward_hook(keep)
    try:
        model(pixel_values.new_zeros(1, channels, height, width))
        shape = shapes[-1]
        model(pixel_values.new_zeros(1, channels, 2 * height, width))
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"The axes of layer {name!r} are unknown, since the model takes images of one size only ({error}); name "
            "another layer, for example a convolution."
        ) from error
    finally:
        handle.remove()
    grown = [axis for axis in range(4) if shapes[-1][axis] != shape[axis]]
    if grown not in ([1], [2]):
        raise ValueError(f"Layer {name!r} returns shape {tuple(shape)}, which is not a spatial map of the image.")
    return grown == [1]


def spatial_layers(model: nn.Module, pixel_values: torch.Tensor) -> list[str]:
    """Return the names of the modules whose output has the shape of a spatial map, in order of execution."""
    names: list[str] = []

    def keep(name: str) -> Callable[[nn.Module, tuple, object], None]:
        def hook(module: nn.Module, inputs: tuple, output: object) -> None:
            tensor = output[0] if isinstance(output, tuple) else output
            if not isinstance(tensor, torch.Tensor):
                return
            forms = [tensor, tensor.permute(0, 3, 1, 2)] if tensor.dim() == 4 else [tensor]
            if any(find_grid(form.shape, pixel_values[:1].shape) is not None for form in forms):
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

    A map is `(B, C, h, w)` in the image's aspect ratio (within 20 %). Tokens `(B, N, C)` are `h * w` patches in the
    image's aspect ratio behind at most 8 class and register tokens.

    Args:
        shape: of the output.
        image_shape: `(B, channels, H, W)`.
    """
    batch, _, height, width = image_shape
    if shape[0] != batch or len(shape) not in (3, 4):
        return None
    if len(shape) == 4:
        rows, columns = shape[2:]
        same_aspect = min(rows, columns) > 1 and abs(rows / columns - height / width) < 0.2 * height / width
        return (rows, columns) if same_aspect else None
    for prefix in range(9):
        patches = shape[1] - prefix
        if patches < 2:
            break
        rows = round((patches * height / width) ** 0.5)
        if rows > 1 and patches % rows == 0 and abs(rows * rows * width / height - patches) < 0.2 * patches:
            return rows, patches // rows
    return None


def to_map(tensor: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Convert tokens `(B, N, C)` to `(B, C, h, w)`; return maps unchanged."""
    if tensor.dim() == 3:
        patches = tensor[:, tensor.shape[1] - grid[0] * grid[1] :]
        return patches.transpose(1, 2).unflatten(2, grid)
    return tensor


def _first_tensor(output: object) -> object:
    return output if isinstance(output, torch.Tensor) else output[0]


def _replace_first_tensor(output: object, tensor: torch.Tensor) -> object:
    if isinstance(output, torch.Tensor):
        return tensor
    if isinstance(output, tuple):
        return (tensor, *output[1:])
    output[next(iter(output))] = tensor  # a ModelOutput, by its first name
    return output


__all__ = [
    "channels_first",
    "default_layer",
    "eval_mode",
    "find_grid",
    "layer_activations",
    "spatial_layers",
    "to_map",
]
