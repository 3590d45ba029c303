"""Reader of KolektorSDD2 (Božič et al. 2021)."""

from __future__ import annotations

from pathlib import Path

from ...errors import InputError
from .files import label_by_mask, require_files
from .source import SourceDataset


def read_kolektorsdd2(root: Path) -> SourceDataset:
    """
    Read `train/N.png` and `test/N.png` with masks `N_GT.png`, split as published.

    Raises:
        InputError: no such images, or a missing mask.
    """
    splits = {}
    for split in ("train", "test"):
        images = [
            path
            for path in sorted(root.glob(f"[{split[0].upper()}{split[0]}]{split[1:]}/*.png"))
            if not path.stem.endswith("_GT")
        ]
        if not images:
            raise InputError(f"--data_dir {root}: it has no {split}/N.png, so it is not KolektorSDD2.")
        masks = require_files([path.with_name(f"{path.stem}_GT.png") for path in images])
        splits[split] = label_by_mask(root, images, masks)
    return SourceDataset(splits, f"--data_dir {root}")


__all__ = ["read_kolektorsdd2"]
