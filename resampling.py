"""Pillow's bilinear `Image.resize` in torch operations, for graphs that have to do their own preprocessing."""

from __future__ import annotations

import PIL
import torch
from packaging.version import Version


# Pillow weighs 8-bit pixels by whole numbers of 2^-22.
_ONE = float(1 << 22)
# From here on, Pillow begins with the columns of pictures that lose far more rows than columns.
_PILLOW_CHOOSES = Version(PIL.__version__) >= Version("13")


def resize_as_pillow(pictures: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """
    What the installed Pillow's `Image.resize(..., Image.Resampling.BILINEAR)` gives, to the grey level.

    Along one side and then along the other, in Pillow's order, each pass rounded to 8 bits as Pillow does it. `H` and
    `W` may be dynamic.

    Args:
        pictures: `(B, C, H, W)` of whole numbers in 0..255, of any type.
        size: the height and the width wanted.

    Returns:
        `(B, C, *size)` of whole numbers in 0..255, in double precision: no sum of a pass takes more than 31 bits.
    """
    (height, width), (new_height, new_width) = pictures.shape[2:], size
    down = _weights(height, new_height, pictures.device)
    across = _weights(width, new_width, pictures.device).T.contiguous()
    operands = (pictures.double(), down, across)
    if not _PILLOW_CHOOSES:
        return _across_first(*operands)
    if torch.compiler.is_exporting():  # the order depends on the picture's size, which a graph knows when it runs
        rows_lost, columns_lost = _scalar(height - new_height, pictures), _scalar(width - new_width, pictures)
        down_first = rows_lost > (2 * columns_lost).clamp(min=0)
        return torch.cond(down_first, _down_first, _across_first, operands)
    down_first = height - new_height > max(2 * (width - new_width), 0)
    return _down_first(*operands) if down_first else _across_first(*operands)


def _across_first(pictures: torch.Tensor, down: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
    return _to_8_bits(down @ _to_8_bits(pictures @ across))


def _down_first(pictures: torch.Tensor, down: torch.Tensor, across: torch.Tensor) -> torch.Tensor:
    return _to_8_bits(_to_8_bits(down @ pictures) @ across)


def _weights(there: int, wanted: int, device: torch.device) -> torch.Tensor:
    """What every pixel of a line counts in each new one, in units of 2^-22, `(wanted, there)`."""
    positions = torch.arange(there, device=device).double()
    scale = torch.scalar_tensor(there, dtype=torch.double, device=device) / wanted
    reach = scale.clamp(min=1.0)  # a line that shrinks is smoothed, one that grows is interpolated
    centres = (torch.arange(wanted, device=device).double() + 0.5) * scale
    distances = (positions[None] - centres[:, None] + 0.5) * (1 / reach)
    triangle = (1 - distances.abs()).clamp(min=0.0)
    return (triangle / triangle.sum(dim=1, keepdim=True) * _ONE + 0.5).floor()


def _to_8_bits(sums: torch.Tensor) -> torch.Tensor:
    return (sums / _ONE + 0.5).floor().clamp(0, 255)


def _scalar(value: int, like: torch.Tensor) -> torch.Tensor:
    return torch.scalar_tensor(value, dtype=torch.double, device=like.device)


__all__ = ["resize_as_pillow"]
