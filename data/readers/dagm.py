"""Reader of DAGM 2007."""

from __future__ import annotations

from pathlib import Path

from datasets import Dataset

from ...errors import InputError
from ..schema import defect_dataset


def read_dagm(root: Path) -> dict[str, Dataset]:
    """DAGM 2007: `ClassK/Train/N.PNG` and `ClassK/Test/N.PNG`, defective where `Label/N_label.PNG` is there."""
    splits = {}
    for split in ("Train", "Test"):
        images = [path for path in sorted(root.glob(f"Class*/{split}/*")) if path.suffix.lower() == ".png"]
        images = images or [path for path in sorted((root / split).glob("*")) if path.suffix.lower() == ".png"]
        if not images:
            raise InputError(f"--data_dir {root}: no ClassK/{split}/N.PNG in it, so this is not DAGM 2007.")
        masks = [path.parent / "Label" / f"{path.stem}_label{path.suffix}" for path in images]
        there = [mask.is_file() for mask in masks]
        splits[split.lower()] = defect_dataset(
            images=[str(path) for path in images],
            labels=["defect" if marked else "good" for marked in there],
            names=["good", "defect"],
            masks=[str(mask) if marked else None for mask, marked in zip(masks, there, strict=True)],
            file_names=[str(path.relative_to(root)) for path in images],
        )
    return splits


__all__ = ["read_dagm"]
