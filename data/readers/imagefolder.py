"""Reader of image folders: one folder per class."""

from __future__ import annotations

import logging
from collections import Counter
from pathlib import Path

from datasets import Dataset

from ...errors import InputError
from ..images import find_images
from ..schema import defect_dataset
from .layouts import detect_layout


logger = logging.getLogger(__name__)

_MASKS_FOLDER = "ground_truth"


def read_image_folder(root: Path) -> dict[str, Dataset]:
    """
    One folder a class, in `root` itself or in `root/train` and `root/test`; images at any depth within.

    A folder `ground_truth` beside them (MVTec's layout) holds masks, `CLASS/NAME.png` or `CLASS/NAME_mask.png` for
    `CLASS/NAME.*`. Where a class of `test/` has no folder in `train/`, as in MVTec's one-class data, the two are one
    pool.

    Raises:
        InputError: no images, classes that differ, masks that fit no image or two, or a published layout.
    """
    layout = detect_layout(root)
    if layout is not None:
        raise InputError(f"--data_dir {root}: this looks like a published layout; read it by --dataset {layout}.")
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
        split: [(path, name) for name in names for folder in within for path in find_images(folder / name)]
        for split, within in folders.items()
    }
    masks = _masks_beside(root, [pair for found in found_in.values() for pair in found])
    datasets = {}
    for split, within in folders.items():
        found = found_in[split]
        if not found:
            raise InputError(f"--data_dir {within[0]}: there is no image in a folder of a class in it.")
        empty = sorted(set(names) - {name for _, name in found}) if split != "validation" else []
        if empty:
            raise InputError(
                f"--data_dir {within[0]}: there is no image in {', '.join(empty)}; remove what is no class."
            )
        datasets[split] = defect_dataset(
            images=[str(path) for path, _ in found],
            labels=[name for _, name in found],
            names=names,
            masks=[masks.get((name, path.stem)) for path, name in found],
            file_names=[str(path.relative_to(root)) for path, _ in found],
        )
    return datasets


def _class_folders(folder: Path) -> list[str]:
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.name != _MASKS_FOLDER
    )


def _masks_beside(root: Path, found: list[tuple[Path, str]]) -> dict[tuple[str, str], str]:
    """The masks in `root/ground_truth`, by the name of an image's class and its own."""
    masks: dict[tuple[str, str], str] = {}
    for path in find_images(root / _MASKS_FOLDER):
        label, stem = path.relative_to(root / _MASKS_FOLDER).parts[0], path.stem.removesuffix("_mask")
        if masks.setdefault((label, stem), str(path)) != str(path):
            raise InputError(f"--data_dir {root}: {masks[label, stem]} and {path} are masks of the same image.")
    keys = [(name, path.stem) for path, name in found]
    twice = [f"{name}/{stem}" for (name, stem), count in Counter(keys).items() if count > 1 and (name, stem) in masks]
    if twice:
        raise InputError(f"--data_dir {root}: several images are called {', '.join(twice)}; whose is the mask?")
    orphans = [masks[key] for key in masks.keys() - set(keys)]
    if orphans:
        raise InputError(f"--data_dir {root}: {len(orphans)} masks have no image, one is {orphans[0]}.")
    return masks


__all__ = ["read_image_folder"]
