"""Pillow's bilinear `Image.resize` as torch operations, for exported graphs."""

from __future__ import annotations

import PIL
import torch
from packaging.version import Version


# Pillow's weights of 8-bit pixels are whole multiples of 2^-22.
_ONE = float(1 << 22)
# From version 13, Pillow resizes rows first where an image loses far more rows than columns.
_PILLOW_CHOOSES = Version(PIL.__version__) >= Version("13")
# New lines computed in one product, from their few source lines instead of all of them.
_GROUP = 16


def resize_as_pillow(images: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """
    Resize images exactly as the installed Pillow's `Image.resize(..., Image.Resampling.BILINEAR)`.

    Both sides are resized in Pillow's order, and each pass is rounded to 8 bits as in Pillow. `H` and `W` may be
    dynamic.

    Args:
        images: `(B, C, H, W)` uint8.
        size: the new height and width.

    Returns:
        `(B, C, *size)`, whole numbers in 0..255 in double precision, which holds the 31-bit sums of a pass exactly.
    """
    (height, width), (new_height, new_width) = images.shape[2:], size
    rows = _weights(height, new_height, images.device)
    columns = _weights(width, new_width, images.device)
    operands = (images, *rows, *columns)
    if not _PILLOW_CHOOSES:
        resized = _columns_first(*operands)
    elif torch.compiler.is_exporting():  # the order depends on the image's size, known only when the graph runs
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
    """Resize the rows of `(B, C, H, W)` by the source rows and weights of [`_weights`], `(B, C, h, W)`."""
    windows = images.index_select(2, rows.flatten()).unflatten(2, (weights.shape[0], -1)).double()
    return ((weights @ windows).flatten(2, 3) / _ONE + 0.5).floor().clamp(0, 255)


def _weights(old: int, new: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """
    Return the source lines of each group of `_GROUP` new lines, and their weights in each new line.

    Args:
        old: number of lines.
        new: number of lines after resizing; the last group repeats the last new line.
        device: of the results.

    Returns:
        `(groups, lines)` indices, and `(groups, _GROUP, lines)` weights in units of 2^-22.
    """
    scale = torch.scalar_tensor(old, dtype=torch.double, device=device) / new
    reach = scale.clamp(min=1.0)  # shrinking averages, growing interpolates
    groups = -(-new // _GROUP)
    new_lines = torch.arange(groups * _GROUP, device=device).clamp(max=new - 1).double()
    centres = ((new_lines + 0.5) * scale).view(groups, _GROUP, 1)
    first = (centres[:, 0] - reach).floor().clamp(min=0.0)
    span = (_GROUP + 1) * old // new + 5  # from the first centre minus the reach to the last centre plus the reach
    lines = first + torch.arange(span, device=device).double()
    triangle = (1 - ((lines[:, None] - centres + 0.5) * (1 / reach)).abs()).clamp(min=0.0)
    triangle = triangle * (lines < old)[:, None]
    weights = (triangle / triangle.sum(dim=2, keepdim=True) * _ONE + 0.5).floor()
    return lines.clamp(max=old - 1).long(), weights


__all__ = ["resize_as_pillow"]
