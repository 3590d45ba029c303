"""Reader of the magnetic-tile defect dataset (Huang et al. 2018)."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

from ...errors import InputError
from ..schema import defect_dataset
from .files import require_files
from .source import SourceDataset


MAX_NUMBER_GAP = 300  # between the numbers of neighbouring exposures of one tile


def read_magnetic_tile(root: Path) -> SourceDataset:
    """
    Read `MT_Class/Imgs/expK_num_N.jpg`, each with a `.png` mask.

    The exposures of one tile were photographed one after another, so their numbers N are close together: a group is a
    run of numbers, over all classes, at most [`MAX_NUMBER_GAP`] apart. Tiles photographed again later are found as
    near-duplicates.

    Raises:
        InputError: no such images, other file names, or a missing mask.
    """
    images = sorted(root.glob("MT_*/Imgs/*.jpg"))
    if not images:
        raise InputError(f"--data_dir {root}: it has no MT_*/Imgs/*.jpg, so it is not the magnetic-tile dataset.")
    misnamed = [str(path) for path in images if not re.fullmatch(r"exp\d+_num_\d+", path.stem)]
    if misnamed:
        raise InputError(f"--data_dir {root}: not named expK_num_N.jpg: {', '.join(misnamed)}.")
    masks = require_files([path.with_suffix(".png") for path in images])
    labels = [path.parent.parent.name.removeprefix("MT_") for path in images]
    train = defect_dataset(
        images=[str(path) for path in images],
        labels=labels,
        names=sorted(set(labels), key=lambda name: (name != "Free", name)),
        masks=[str(path) for path in masks],
        groups=_group_by_number([int(path.stem.rpartition("_")[2]) for path in images]),
        file_names=[str(path.relative_to(root)) for path in images],
    )
    return SourceDataset({"train": train}, f"--data_dir {root}")


def _group_by_number(numbers: list[int]) -> list[str]:
    """Return the run that each number belongs to, named after the first number of the run."""
    ordered = sorted(set(numbers))
    run_of = {ordered[0]: ordered[0]}
    for previous, number in pairwise(ordered):
        run_of[number] = run_of[previous] if number - previous <= MAX_NUMBER_GAP else number
    return [f"tile-{run_of[number]}" for number in numbers]


__all__ = ["MAX_NUMBER_GAP", "read_magnetic_tile"]
