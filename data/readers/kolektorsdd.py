"""Readers of KolektorSDD and KolektorSDD2."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset
from PIL import Image as PILImage

from ...errors import InputError
from ..masks import mask_to_array
from ..schema import defect_dataset
from .files import number_in_name, require_files


def read_kolektorsdd(root: Path) -> dict[str, Dataset]:
    """`kosNN/PartM.jpg` with `PartM_label.bmp`; defective where the mask is not empty; one item is one group."""
    images = sorted(root.glob("kos*/Part*.jpg"), key=lambda path: (path.parent.name, number_in_name(path.stem)))
    if not images:
        raise InputError(f"--data_dir {root}: no kosNN/PartM.jpg in it, so this is not KolektorSDD.")
    masks = [path.with_name(f"{path.stem}_label.bmp") for path in images]
    groups = [path.parent.name for path in images]
    return {"train": _good_or_defect(root, images, require_files(masks), groups)}


def read_kolektorsdd2(root: Path) -> dict[str, Dataset]:
    """`train/N.png` and `test/N.png` with `N_GT.png`; defective where the mask is not empty; split as published."""
    splits = {}
    for split in ("train", "test"):
        images = [path for path in sorted((root / split).glob("*.png")) if not path.stem.endswith("_GT")]
        if not images:
            raise InputError(f"--data_dir {root}: no {split}/N.png in it, so this is not KolektorSDD2.")
        masks = [path.with_name(f"{path.stem}_GT.png") for path in images]
        splits[split] = _good_or_defect(root, images, require_files(masks))
    return splits


def _good_or_defect(root: Path, images: list[Path], masks: list[Path], groups: list[str] | None = None) -> Dataset:
    return defect_dataset(
        images=[str(path) for path in images],
        labels=["defect" if _not_empty(mask) else "good" for mask in masks],
        names=["good", "defect"],
        masks=[str(path) for path in masks],
        groups=groups,
        file_names=[str(path.relative_to(root)) for path in images],
    )


def _not_empty(mask: Path) -> bool:
    try:
        with PILImage.open(mask) as image:
            return bool(mask_to_array(image, (image.height, image.width)).any())
    except (OSError, SyntaxError, ValueError, PILImage.DecompressionBombError):
        return True  # it is named with all the others when every image is looked at


__all__ = ["read_kolektorsdd", "read_kolektorsdd2"]
