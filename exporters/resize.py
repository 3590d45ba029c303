"""Pillow's bilinear `Image.resize` as torch operations, for exported graphs."""

from __future__ import annotations

import PIL
import torch
from packaging.version import Version


# Pillow weighs 8-bit pixels by whole numbers of 2^-22.
_ONE = float(1 << 22)
# From here on, Pillow begins with the rows of images that lose far more rows than columns.
_PILLOW_CHOOSES = Version(PIL.__version__) >= Version("13")
# New lines that are weighed together: their few source lines in one product, instead of all that there are.
_GROUP = 16


def resize_as_pillow(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """
    What the installed Pillow's `Image.resize(..., Image.Resampling.BILINEAR)` gives, to the grey level.

    Along one side and then along the other, in Pillow's order, each pass rounded to 8 bits as Pillow does it. `H` and
    `W` may be dynamic.

    Args:
        images: `(B, C, H, W)` uint8.
        size: the height and the width wanted.

    Returns:
        `(B, C, *size)` of whole numbers in 0..255, in double precision: no sum of a pass takes more than 31 bits.
    """
    (height, width), (new_height, new_width) = images.shape[2:], size
    rows = _weights(height, new_height, images.device)
    columns = _weights(width, new_width, images.device)
    operands = (images, *rows, *columns)
    if not _PILLOW_CHOOSES:
        resized = _columns_first(*operands)
    elif torch.compiler.is_exporting():  # the order depends on the image's size, which a graph knows when it runs
        rows_lost = torch.scalar_tensor(height - new_height, dtype=torch.double)
        columns_lost = torch.scalar_tensor(width - new_width, dtype=torch.double)
        rows_first = rows_lost > (2 * columns_lost).clamp(min=0)
        resized = torch.cond(rows_first, _rows_first, _columns_first, operands)
    elif height - new_height > max(2 * (width - new_width), 0):
        resized = _rows_first(*operands)
    else:
        resized = _columns_first(*operands)
    return resized[:, :, :new_height, :new_width]


def _columns_first(
    images: torch.Tensor,
    rows: torch.Tensor,
    row_weights: torch.Tensor,
    columns: torch.Tensor,
    column_weights: torch.Tensor,
) -> torch.Tensor:
    narrow = _resize_rows(images.transpose(2, 3), columns, column_weights).transpose(2, 3)
    return _resize_rows(narrow, rows, row_weights)


def _rows_first(
    images: torch.Tensor,
    rows: torch.Tensor,
    row_weights: torch.Tensor,
    columns: torch.Tensor,
    column_weights: torch.Tensor,
) -> torch.Tensor:
    low = _resize_rows(images, rows, row_weights)
    return _resize_rows(low.transpose(2, 3), columns, column_weights).transpose(2, 3).contiguous()


def _resize_rows(images: torch.Tensor, rows: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Images `(B, C, H, W)` to `(B, C, groups * _GROUP, W)` by what [`_weights`] gave for `H`."""
    windows = images.index_select(2, rows.flatten()).unflatten(2, (weights.shape[0], -1)).double()
    return ((weights @ windows).flatten(2, 3) / _ONE + 0.5).floor().clamp(0, 255)


def _weights(there: int, wanted: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """
    The source lines of every `_GROUP` new lines, `(groups, lines)`, and what each counts in each new line, in units of
    2^-22, `(groups, _GROUP, lines)`. The last group is filled up with the last new line.
    """
    scale = torch.scalar_tensor(there, dtype=torch.double, device=device) / wanted
    reach = scale.clamp(min=1.0)  # a side that shrinks is smoothed, one that grows is interpolated
    groups = -(-wanted // _GROUP)
    new = torch.arange(groups * _GROUP, device=device).clamp(max=wanted - 1).double()
    centres = ((new + 0.5) * scale).view(groups, _GROUP, 1)
    first = (centres[:, 0] - reach).floor().clamp(min=0.0)
    span = (_GROUP + 1) * there // wanted + 5  # from the first centre less the reach to the last one and the reach
    lines = first + torch.arange(span, device=device).double()
    triangle = (1 - ((lines[:, None] - centres + 0.5) * (1 / reach)).abs()).clamp(min=0.0)
    triangle = triangle * (lines < there)[:, None]
    weights = (triangle / triangle.sum(dim=2, keepdim=True) * _ONE + 0.5).floor()
    return lines.clamp(max=there - 1).long(), weights


__all__ = ["resize_as_pillow"]
