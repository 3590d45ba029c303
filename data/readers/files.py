"""Helpers shared by the readers of published layouts."""

from __future__ import annotations

import re
from pathlib import Path

from datasets import Dataset
from PIL import Image as PILImage

from ...errors import InputError, format_count
from ..images import open_upright
from ..masks import mask_to_array
from ..schema import defect_dataset


def require_files(paths: list[Path]) -> list[Path]:
    """
    Return the paths.

    Raises:
        InputError: one of them is no file.
    """
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise InputError(f"{format_count(len(missing), 'mask')} missing; the first is {missing[0]}.")
    return paths


def number_in_name(text: str) -> int:
    """Return the digits of a name as one number, 0 where it has none."""
    return int(re.sub(r"\D", "", text) or 0)


def label_by_mask(root: Path, images: list[Path], masks: list[Path], groups: list[str] | None = None) -> Dataset:
    """Return rows with the class `defect` where an image's mask is not empty, `good` elsewhere."""
    return defect_dataset(
        images=[str(path) for path in images],
        labels=["defect" if _is_marked(mask) else "good" for mask in masks],
        names=["good", "defect"],
        masks=[str(path) for path in masks],
        groups=groups,
        file_names=[str(path.relative_to(root)) for path in images],
    )


def _is_marked(path: Path) -> bool:
    try:
        mask, _ = open_upright(path.read_bytes())
    except (OSError, SyntaxError, ValueError, PILImage.DecompressionBombError):
        return True  # the inspection of all images reports it
    return bool(mask_to_array(mask, (mask.height, mask.width)).any())


__all__ = ["label_by_mask", "number_in_name", "require_files"]
