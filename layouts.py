"""Folders of pictures to the data contract: a folder a class, and layouts that data sets are published in."""

from __future__ import annotations

import logging
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
from datasets import Dataset
from PIL import Image as PILImage

from .errors import InputError
from .schema import defect_dataset, mask_array, png
from .surfaces import CLASSES, generate_surface


logger = logging.getLogger(__name__)

_MASKS_FOLDER = "ground_truth"
# What is found in published layouts alone, which would otherwise be read as strange classes.
_SIGNS = {
    "kolektorsdd": "kos*/Part*_label.bmp",
    "kolektorsdd2": "train/*_GT.png",
    "dagm": "Class*/Train/Label",
    "magnetic_tile": "MT_*/Imgs",
    "neu_det": "IMAGES/*_*.jpg",
}


def read_image_folder(root: Path) -> dict[str, Dataset]:
    """
    One folder a class, in `root` itself or in `root/train` and `root/test`; pictures at any depth within.

    A folder `ground_truth` beside them (MVTec's layout) holds masks, `CLASS/NAME.png` or `CLASS/NAME_mask.png` for
    `CLASS/NAME.*`. Where a class of `test/` has no folder in `train/`, as in MVTec's one-class data, the two are one
    pool.

    Raises:
        InputError: no pictures, classes that differ, masks that fit no picture or two, or a published layout.
    """
    for dataset, sign in _SIGNS.items():
        if next(root.glob(sign), None) is not None:
            raise InputError(f"--data_dir {root}: this looks like a published layout; read it by --dataset {dataset}.")
    train = root / "train" if (root / "train").is_dir() else root
    tested = root / "test" if train != root and (root / "test").is_dir() else None
    names, others = _class_folders(train), _class_folders(tested) if tested else []
    folders = {"train": [train], **({"test": [tested]} if tested else {})}
    between = next((name for name in ("validation", "valid", "val") if (root / name).is_dir()), None)
    if train != root and between is not None:
        folders["validation"] = [root / between]
    if set(others) - set(names):
        if (root / _MASKS_FOLDER).is_dir():
            logger.warning("%s: train/ lacks classes of test/ (MVTec's one-class data): both are one pool.", root)
            names, folders = sorted({*names, *others}), {"train": [train, tested]}
        else:
            wrong = ", ".join(sorted(set(others) - set(names)))
            raise InputError(f"--data_dir {tested}: {wrong} is no class of {train}.")
    found_in = {
        split: [(path, name) for name in names for folder in within for path in pictures_below(folder / name)]
        for split, within in folders.items()
    }
    masks = _masks_beside(root, [pair for found in found_in.values() for pair in found])
    datasets = {}
    for split, within in folders.items():
        found = found_in[split]
        if not found:
            raise InputError(f"--data_dir {within[0]}: there is no picture in a folder of a class in it.")
        empty = sorted(set(names) - {name for _, name in found}) if split != "validation" else []
        if empty:
            raise InputError(
                f"--data_dir {within[0]}: there is no picture in {', '.join(empty)}; remove what is no class."
            )
        datasets[split] = defect_dataset(
            images=[str(path) for path, _ in found],
            labels=[name for _, name in found],
            names=names,
            masks=[masks.get((name, path.stem)) for path, name in found],
            file_names=[str(path.relative_to(root)) for path, _ in found],
        )
    return datasets


def pictures_below(folder: Path) -> list[Path]:
    """All files at any depth that are called like a picture, hidden ones left out."""
    suffixes = PILImage.registered_extensions()
    return [
        path
        for path in sorted(folder.rglob("*"))
        if path.suffix.lower() in suffixes and not path.name.startswith(".") and not path.is_dir()
    ]


def read_kolektorsdd(root: Path) -> dict[str, Dataset]:
    """`kosNN/PartM.jpg` with `PartM_label.bmp`; defective where the mask is not empty; one item is one group."""
    images = sorted(root.glob("kos*/Part*.jpg"), key=lambda path: (path.parent.name, _number(path.stem)))
    if not images:
        raise InputError(f"--data_dir {root}: no kosNN/PartM.jpg in it, so this is not KolektorSDD.")
    masks = [path.with_name(f"{path.stem}_label.bmp") for path in images]
    groups = [path.parent.name for path in images]
    return {"train": _good_or_defect(root, images, _require(masks), groups)}


def read_kolektorsdd2(root: Path) -> dict[str, Dataset]:
    """`train/N.png` and `test/N.png` with `N_GT.png`; defective where the mask is not empty; split as published."""
    splits = {}
    for split in ("train", "test"):
        images = [path for path in sorted((root / split).glob("*.png")) if not path.stem.endswith("_GT")]
        if not images:
            raise InputError(f"--data_dir {root}: no {split}/N.png in it, so this is not KolektorSDD2.")
        masks = [path.with_name(f"{path.stem}_GT.png") for path in images]
        splits[split] = _good_or_defect(root, images, _require(masks))
    return splits


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
    masks = _require([path.with_suffix(".png") for path in images])
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


def read_neu_det(root: Path) -> dict[str, Dataset]:
    """`IMAGES/class_N.jpg`, some with a mask in `MASKS/class_N.png`; no class without defects, no groups known."""
    images = sorted((root / "IMAGES").glob("*_*.jpg"), key=lambda path: (_class_of(path), _number(path.stem)))
    if not images:
        raise InputError(f"--data_dir {root}: no IMAGES/class_N.jpg in it, so this is not NEU-DET.")
    masks = [root / "MASKS" / f"{path.stem}.png" for path in images]
    return {
        "train": defect_dataset(
            images=[str(path) for path in images],
            labels=[_class_of(path) for path in images],
            names=sorted({_class_of(path) for path in images}),
            masks=[str(mask) if mask.is_file() else None for mask in masks],
            file_names=[str(path.relative_to(root)) for path in images],
        )
    }


def generated_surfaces(count: int, size: int, seed: int) -> dict[str, Dataset]:
    """Half of them good, the other half shared by the defects."""
    labels = [CLASSES[0] if index % 2 == 0 else CLASSES[1 + index // 2 % 3] for index in range(count)]
    surfaces = [generate_surface(label, size, seed * 1_000_003 + index) for index, label in enumerate(labels)]
    return {
        "train": defect_dataset(
            images=[png(surface.image) for surface in surfaces],
            labels=labels,
            names=list(CLASSES),
            masks=[png(surface.mask.astype(np.uint8) * 255) for surface in surfaces],
            file_names=[f"surface-{index}.png" for index in range(count)],
        )
    }


def _class_folders(folder: Path) -> list[str]:
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.name != _MASKS_FOLDER
    )


def _masks_beside(root: Path, found: list[tuple[Path, str]]) -> dict[tuple[str, str], str]:
    """The masks in `root/ground_truth`, by the name of a picture's class and its own."""
    masks: dict[tuple[str, str], str] = {}
    for path in pictures_below(root / _MASKS_FOLDER):
        label, stem = path.relative_to(root / _MASKS_FOLDER).parts[0], path.stem.removesuffix("_mask")
        if masks.setdefault((label, stem), str(path)) != str(path):
            raise InputError(f"--data_dir {root}: {masks[label, stem]} and {path} are masks of the same picture.")
    keys = [(name, path.stem) for path, name in found]
    twice = [f"{name}/{stem}" for (name, stem), count in Counter(keys).items() if count > 1 and (name, stem) in masks]
    if twice:
        raise InputError(f"--data_dir {root}: several pictures are called {', '.join(twice)}; whose is the mask?")
    orphans = [masks[key] for key in masks.keys() - set(keys)]
    if orphans:
        raise InputError(f"--data_dir {root}: {len(orphans)} masks have no picture, one is {orphans[0]}.")
    return masks


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
        with PILImage.open(mask) as picture:
            return bool(mask_array(picture, (picture.height, picture.width)).any())
    except (OSError, SyntaxError, ValueError, PILImage.DecompressionBombError):
        return True  # it is named with all the others when every picture is looked at


def _require(paths: list[Path]) -> list[Path]:
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise InputError(f"{len(missing)} masks are missing, the first is {missing[0]}.")
    return paths


def _runs_of_numbers(numbers: list[int], gap: int) -> list[str]:
    """For each number the run it belongs to, named after its first; a run ends where the next is over `gap` away."""
    ordered = sorted(set(numbers))
    run_of = {ordered[0]: ordered[0]}
    for before, number in pairwise(ordered):
        run_of[number] = run_of[before] if number - before <= gap else number
    return [f"tile-{run_of[number]}" for number in numbers]


def _class_of(path: Path) -> str:
    return path.stem.rpartition("_")[0]


def _number(text: str) -> int:
    return int(re.sub(r"\D", "", text) or 0)


__all__ = [
    "generated_surfaces",
    "pictures_below",
    "read_dagm",
    "read_image_folder",
    "read_kolektorsdd",
    "read_kolektorsdd2",
    "read_magnetic_tile",
    "read_neu_det",
]
