"""Reader of the magnetic-tile defect dataset."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

from datasets import Dataset

from ...errors import InputError
from ..schema import defect_dataset
from .files import require_files


def read_magnetic_tile(root: Path) -> dict[str, Dataset]:
    """
    `MT_Class/Imgs/expK_num_N.jpg` with a `.png` mask.

    The exposures of one tile were taken one after another: their N lie close together. So a group goes on, over all
    classes, as long as the next N is at most 300 away. Some tiles were taken again later; those are found by their
    looks.
    """
    images = sorted(root.glob("MT_*/Imgs/*.jpg"))
    if not images:
        raise InputError(f"--data_dir {root}: no MT_*/Imgs/*.jpg in it, so these are not the magnetic tiles.")
    strange = [str(path) for path in images if not re.fullmatch(r"exp\d+_num_\d+", path.stem)]
    if strange:
        raise InputError(f"--data_dir {root}: not called expK_num_N.jpg: {', '.join(strange)}.")
    masks = require_files([path.with_suffix(".png") for path in images])
    labels = [path.parent.parent.name.removeprefix("MT_") for path in images]
    return {
        "train": defect_dataset(
            images=[str(path) for path in images],
            labels=labels,
            names=sorted(set(labels), key=lambda name: (name != "Free", name)),
            masks=[str(path) for path in masks],
            groups=_runs_of_numbers([int(path.stem.rpartition("_")[2]) for path in images], gap=300),
            file_names=[str(path.relative_to(root)) for path in images],
        )
    }


def _runs_of_numbers(numbers: list[int], gap: int) -> list[str]:
    """For each number the run it belongs to, named after its first; a run ends where the next is over `gap` away."""
    ordered = sorted(set(numbers))
    run_of = {ordered[0]: ordered[0]}
    for before, number in pairwise(ordered):
        run_of[number] = run_of[before] if number - before <= gap else number
    return [f"tile-{run_of[number]}" for number in numbers]


__all__ = ["read_magnetic_tile"]
