"""Reader of NEU-DET."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset

from ...errors import InputError
from ..schema import defect_dataset
from .files import number_in_name


def read_neu_det(root: Path) -> dict[str, Dataset]:
    """`IMAGES/class_N.jpg`, some with a mask in `MASKS/class_N.png`; no class without defects, no groups known."""
    images = sorted(
        (root / "IMAGES").glob("*_*.jpg"), key=lambda path: (class_in_name(path), number_in_name(path.stem))
    )
    if not images:
        raise InputError(f"--data_dir {root}: no IMAGES/class_N.jpg in it, so this is not NEU-DET.")
    masks = [root / "MASKS" / f"{path.stem}.png" for path in images]
    return {
        "train": defect_dataset(
            images=[str(path) for path in images],
            labels=[class_in_name(path) for path in images],
            names=sorted({class_in_name(path) for path in images}),
            masks=[str(mask) if mask.is_file() else None for mask in masks],
            file_names=[str(path.relative_to(root)) for path in images],
        )
    }


def class_in_name(path: Path) -> str:
    return path.stem.rpartition("_")[0]


__all__ = ["read_neu_det"]
