"""Reader of KolektorSDD (Tabernik et al. 2019)."""

from __future__ import annotations

from pathlib import Path

from ...errors import InputError
from .files import label_by_mask, number_in_name, require_files
from .source import SourceDataset


def read_kolektorsdd(root: Path) -> SourceDataset:
    """
    Read `kosNN/PartM.jpg` with `PartM_label.bmp`; all parts of one item `kosNN` are one group.

    Raises:
        InputError: no such images, or a missing mask.
    """
    images = sorted(root.glob("kos*/Part*.jpg"), key=lambda path: (path.parent.name, number_in_name(path.stem)))
    if not images:
        raise InputError(f"--data_dir {root}: it has no kosNN/PartM.jpg, so it is not KolektorSDD.")
    masks = require_files([path.with_name(f"{path.stem}_label.bmp") for path in images])
    train = label_by_mask(root, images, masks, groups=[path.parent.name for path in images])
    return SourceDataset({"train": train}, f"--data_dir {root}")


__all__ = ["read_kolektorsdd"]
