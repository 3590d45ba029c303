"""Reader of image folders: one folder per class."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ...errors import InputError
from ..images import find_images
from ..schema import defect_dataset
from .source import SourceDataset


MASKS_FOLDER = "ground_truth"
_VALIDATION_FOLDERS = ("validation", "valid", "val")


def read_image_folder(root: Path) -> SourceDataset:
    """
    Read one folder per class, in `root` itself or in `root/train` and `root/test`, images at any depth within.

    A folder `ground_truth` in `root` (MVTec's layout) holds masks, `CLASS/NAME.png` or `CLASS/NAME_mask.png` for
    `CLASS/NAME.*`. Where `test/` has classes that `train/` lacks and there are masks, as in MVTec's one-class data,
    both are pooled and split anew.

    Raises:
        InputError: no images, classes that differ between splits, or masks that fit no image or two.
    """
    folders, notes = _split_folders(root), []
    names = _class_folders(folders["train"][0])
    unseen = sorted(set(_class_folders(folders["test"][0])) - set(names)) if "test" in folders else []
    if unseen and not (root / MASKS_FOLDER).is_dir():
        raise InputError(f"--data_dir {folders['test'][0]}: {', '.join(unseen)} is no class of {folders['train'][0]}.")
    if unseen:
        notes.append(f"{root}: train/ lacks classes of test/ (MVTec's one-class data), so both are pooled.")
        names = sorted([*names, *unseen])
        folders = {"train": [*folders["train"], *folders["test"]]} | {
            split: of_split for split, of_split in folders.items() if split == "validation"
        }
    files = {
        split: [(path, name) for name in names for folder in of_split for path in find_images(folder / name)]
        for split, of_split in folders.items()
    }
    for split, of_split in files.items():
        _check_classes_have_images(folders[split][0], split, names, of_split)
    masks = _find_masks(root, [file for of_split in files.values() for file in of_split])
    splits = {
        split: defect_dataset(
            images=[str(path) for path, _ in of_split],
            labels=[name for _, name in of_split],
            names=names,
            masks=[masks.get((name, path.stem)) for path, name in of_split],
            file_names=[str(path.relative_to(root)) for path, _ in of_split],
        )
        for split, of_split in files.items()
    }
    return SourceDataset(splits, f"--data_dir {root}", tuple(notes))


def _split_folders(root: Path) -> dict[str, list[Path]]:
    """Return the folders that hold class folders, by split."""
    if not (root / "train").is_dir():
        return {"train": [root]}
    folders = {"train": [root / "train"]}
    if (root / "test").is_dir():
        folders["test"] = [root / "test"]
    validation = next((root / name for name in _VALIDATION_FOLDERS if (root / name).is_dir()), None)
    if validation is not None:
        folders["validation"] = [validation]
    return folders


def _class_folders(folder: Path) -> list[str]:
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.name != MASKS_FOLDER
    )


def _check_classes_have_images(folder: Path, split: str, names: list[str], files: list[tuple[Path, str]]) -> None:
    if not files:
        raise InputError(f"--data_dir {folder}: there is no image in a class folder of it.")
    empty = sorted(set(names) - {name for _, name in files})
    if empty and split != "validation":  # a small validation set may lack a rare class
        raise InputError(
            f"--data_dir {folder}: there is no image in {', '.join(empty)}; remove folders that are no class."
        )


def _find_masks(root: Path, files: list[tuple[Path, str]]) -> dict[tuple[str, str], str]:
    """Return the mask files in `root/ground_truth` by `(class, stem of the image)`."""
    masks: dict[tuple[str, str], str] = {}
    for path in find_images(root / MASKS_FOLDER):
        label, stem = path.relative_to(root / MASKS_FOLDER).parts[0], path.stem.removesuffix("_mask")
        if masks.setdefault((label, stem), str(path)) != str(path):
            raise InputError(f"--data_dir {root}: {masks[label, stem]} and {path} are masks of the same image.")
    counts = Counter((name, path.stem) for path, name in files)
    ambiguous = [f"{name}/{stem}" for (name, stem), count in counts.items() if count > 1 and (name, stem) in masks]
    if ambiguous:
        raise InputError(
            f"--data_dir {root}: several images are named {', '.join(ambiguous)}, so their mask is ambiguous; rename "
            "all but one."
        )
    orphans = [masks[key] for key in masks.keys() - counts.keys()]
    if orphans:
        raise InputError(f"--data_dir {root}: {len(orphans)} masks have no image; one is {orphans[0]}.")
    return masks


__all__ = ["MASKS_FOLDER", "read_image_folder"]
