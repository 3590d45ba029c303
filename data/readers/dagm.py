"""Reader of DAGM 2007."""

from __future__ import annotations

from pathlib import Path

from ...errors import InputError
from ..schema import defect_dataset
from .source import SourceDataset


def read_dagm(root: Path) -> SourceDataset:
    """
    Read `ClassK/Train/N.PNG` and `ClassK/Test/N.PNG`, or one folder `ClassK`, split as published.

    An image with a mask `Label/N_label.PNG` is defective.

    Raises:
        InputError: no such images.
    """
    splits = {}
    for split in ("Train", "Test"):
        images = [path for path in sorted(root.glob(f"Class*/{split}/*")) if path.suffix.lower() == ".png"]
        images = images or [path for path in sorted((root / split).glob("*")) if path.suffix.lower() == ".png"]
        if not images:
            raise InputError(f"--data_dir {root}: it has no ClassK/{split}/N.PNG, so it is not DAGM 2007.")
        paths = [path.parent / "Label" / f"{path.stem}_label{path.suffix}" for path in images]
        masks = [str(path) if path.is_file() else None for path in paths]
        splits[split.lower()] = defect_dataset(
            images=[str(path) for path in images],
            labels=["good" if mask is None else "defect" for mask in masks],
            names=["good", "defect"],
            masks=masks,
            file_names=[str(path.relative_to(root)) for path in images],
        )
    return SourceDataset(splits, f"--data_dir {root}")


__all__ = ["read_dagm"]
