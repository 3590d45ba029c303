"""Reader of NEU-DET (Song and Yan 2013)."""

from __future__ import annotations

from pathlib import Path

from ...errors import InputError
from ..schema import defect_dataset
from .files import number_in_name
from .source import SourceDataset


def read_neu_det(root: Path) -> SourceDataset:
    """
    Read `IMAGES/class_N.jpg`, with a mask where there is a file `MASKS/class_N.png`. No groups are known.

    Raises:
        InputError: no such images.
    """
    images = sorted(
        (root / "IMAGES").glob("*_*.jpg"), key=lambda path: (_class_in_name(path), number_in_name(path.stem))
    )
    if not images:
        raise InputError(f"--data_dir {root}: it has no IMAGES/class_N.jpg, so it is not NEU-DET.")
    masks = [root / "MASKS" / f"{path.stem}.png" for path in images]
    train = defect_dataset(
        images=[str(path) for path in images],
        labels=[_class_in_name(path) for path in images],
        names=sorted({_class_in_name(path) for path in images}),
        masks=[str(mask) if mask.is_file() else None for mask in masks],
        file_names=[str(path.relative_to(root)) for path in images],
    )
    return SourceDataset({"train": train}, f"--data_dir {root}")


def _class_in_name(path: Path) -> str:
    return path.stem.rpartition("_")[0]


__all__ = ["read_neu_det"]
