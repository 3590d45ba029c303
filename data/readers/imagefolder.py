"""Reader of image folders: one folder per class."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from ...errors import InputError, format_count
from ..images import find_files, find_images, has_image_suffix, is_hidden
from ..run_folders import describe_output_folder
from ..schema import defect_dataset
from .columns import SPLIT_NAMES
from .shards import SUFFIXES
from .source import SourceDataset


MASKS_FOLDER = "ground_truth"
_MAX_NAMED = 4
_EACH_IS_A_CLASS = "each subfolder of a folder of images is a class"
_MASK_FOLDERS = frozenset({"annotations", "gt", "groundtruth", "mask", "masks", "segmentation", MASKS_FOLDER})
_MASK_ENDINGS = ("_gt", "_mask", "_masks")


def read_image_folder(root: Path) -> SourceDataset:
    """
    Read one folder per class, in `root` itself or in `root/train` and `root/test`, images at any depth within.

    The names of splits are recognised in any case. Where there is a validation folder and no test folder, the
    validation images are the test split.

    A folder `ground_truth` in `root` (MVTec's layout; in any case) holds masks, `CLASS/NAME.png` or
    `CLASS/NAME_mask.png` for `CLASS/NAME.*`. Where `test/` has classes that `train/` lacks and there are masks, as in
    MVTec's one-class data, both are pooled and split anew.

    Raises:
        InputError: no images, a folder that kgl wrote, classes that differ between splits, or masks that fit no image
            or two.
    """
    if (written := describe_output_folder(root)) is not None:
        raise InputError(f"--data_dir {root}: {written}.")
    folders, notes = _split_folders(root)
    train = folders["train"][0]
    classes = {split: _class_folders(of_split[0]) for split, of_split in folders.items()}
    names = classes["train"]
    unread = _unread_images(root, folders)
    unseen = sorted(set(classes.get("test", ())) - set(names))
    if unseen and _masks_folder(root).is_dir():
        test = folders["test"][0].name
        notes = [f"{root}: {train.name}/ lacks classes of {test}/ (MVTec's one-class data), so both are pooled."]
        names = sorted([*names, *unseen])
        pooled = {"train": [*folders["train"], *folders["test"]]}
        folders = pooled | {split: of_split for split, of_split in folders.items() if split == "validation"}
    for split in folders:
        unseen = sorted(set(classes[split]) - set(names))
        if unseen:
            raise InputError(
                f"--data_dir {folders[split][0]}: {', '.join(unseen)} is no class of {train}; add images of it there, "
                "or move it out."
            )
    files = {
        split: [(path, name) for name in names for folder in of_split for path in find_images(folder / name)]
        for split, of_split in folders.items()
    }
    for split, of_split in files.items():
        _check_classes_have_images(folders[split][0], split, names, of_split)
    notes += [*unread, *_doubtful_classes(train, names, files["train"])]
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


def _split_folders(root: Path) -> tuple[dict[str, list[Path]], list[str]]:
    """
    Return the folders that hold class folders, by split, and a note where a split's folder has another name.

    Raises:
        InputError: two folders for one split, or no folder for training beside others.
    """
    found = {
        split: [folder for folder in _visible_folders(root) if folder.name.casefold() in names]
        for split, names in SPLIT_NAMES.items()
    }
    for split, of_split in found.items():
        if len(of_split) > 1 and found["train"]:
            shown = ", ".join(f"{folder.name}/" for folder in of_split)
            raise InputError(f"--data_dir {root}: {shown} are all named as {split} images; keep one of them.")
    if not found["train"]:
        others = [folder for of_split in found.values() for folder in of_split]
        if others and len(others) == len(_class_folders(root)):
            shown = ", ".join(f"{folder.name}/" for folder in others)
            raise InputError(f"--data_dir {root}: there is {shown} and no train/, so nothing can be learned from.")
        note = "{}: {}/ is read as a class, as there is no train/."
        return {"train": [root]}, [note.format(root, folder.name) for folder in others]
    folders = {split: of_split for split, of_split in found.items() if of_split}
    if "test" in folders or "validation" not in folders:
        return folders, []
    folders = {"train": folders["train"], "test": folders["validation"]}
    names = {split: of_split[0].name for split, of_split in folders.items()}
    note = (
        f"{root}: {names['train']}/ serves as train split and, as there is no test/, {names['test']}/ as test split."
    )
    return folders, [note]


def _visible_folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name))


def _class_folders(folder: Path) -> list[str]:
    return [path.name for path in _visible_folders(folder) if path.name.casefold() != MASKS_FOLDER]


def _masks_folder(root: Path) -> Path:
    """Return the folder of masks, its name in any case; it need not exist."""
    named = (folder for folder in _visible_folders(root) if folder.name.casefold() == MASKS_FOLDER)
    return next(named, root / MASKS_FOLDER)


def _is_named_as_masks(name: str) -> bool:
    return name.casefold() in _MASK_FOLDERS or name.casefold().endswith(_MASK_ENDINGS)


def _unread_images(root: Path, folders: dict[str, list[Path]]) -> list[str]:
    """Return sentences about images beside the folders of splits and of classes, which are not read."""
    notes = []
    tops = [folder for of_split in folders.values() for folder in of_split]
    if root not in tops:
        read = {*tops, _masks_folder(root)}
        beside = [folder for folder in _visible_folders(root) if folder not in read]
        for folder, count in ((folder, len(find_images(folder))) for folder in beside):
            if count:
                notes.append(
                    f"{folder} is not read ({format_count(count, 'image')}): beside {tops[0].name}/, in no split."
                )
        tops = [root, *tops]
    for folder in tops:
        names = (path.name for path in folder.iterdir() if path.is_file())
        count = sum(has_image_suffix(name) and not is_hidden(name) for name in names)
        if count:
            notes.append(f"{folder}: images that are in no class folder are not read ({count}).")
    return notes


def _doubtful_classes(folder: Path, names: list[str], files: list[tuple[Path, str]]) -> list[str]:
    """Return sentences about folders that are read as classes, or as images of a class, and may be something else."""
    advice = f"masks belong in {MASKS_FOLDER}/CLASS/NAME.png, or in the mask column of a table"
    notes = [f"{folder}: {name}/ is read as a class; {advice}." for name in names if _is_named_as_masks(name)]
    inner: dict[str, set[tuple[str, ...]]] = {name: set() for name in names}
    for path, name in files:
        if path.is_relative_to(folder / name):  # the pooled images of test/ are not
            inner[name].add(path.relative_to(folder / name).parts[:-1])
    for name, of_class in inner.items():
        masks = sorted({part for parts in of_class for part in parts if _is_named_as_masks(part)})
        notes += [f"{folder}: the files in {part}/ of {name}/ are read as images of it; {advice}." for part in masks]
    first = [{parts[0] if parts else "" for parts in of_class} for of_class in inner.values()]
    every = set().union(*first)
    alike = all(of_class == first[0] for of_class in first)
    if every and "" not in every and (alike or any(len(of_class) > 1 for of_class in first)):
        shown = " and ".join(f"{name}/" for name in sorted(every)[:_MAX_NAMED])
        owner = "every class" if alike else "each class is a folder of folders: a class"
        notes.append(
            f"{folder}: {owner} ({', '.join(names[:_MAX_NAMED])}) has {shown}; if these are the classes, sort the "
            "images by them, or list the images in a table."
        )
    return notes


def _check_classes_have_images(folder: Path, split: str, names: list[str], files: list[tuple[Path, str]]) -> None:
    if not files:
        if any(file.suffix.lower() in SUFFIXES for file in find_files(folder)):
            raise InputError(f"--data_dir {folder}: it holds shards, not images; give it as --hub_dataset {folder}.")
        raise InputError(f"--data_dir {folder}: there is no image in a class folder of it; {_EACH_IS_A_CLASS}.")
    empty = sorted(set(names) - {name for _, name in files})
    if empty and split != "validation":  # a small validation set may lack a rare class
        advice = (
            f"{_EACH_IS_A_CLASS}: add images of it, move folders that are none elsewhere, or give another folder"
            if split == "train"
            else "add images of it, or leave the class out of the training images as well"
        )
        raise InputError(f"--data_dir {folder}: there is no image in {', '.join(empty)}; {advice}.")


def _find_masks(root: Path, files: list[tuple[Path, str]]) -> dict[tuple[str, str], str]:
    """Return the mask files in `root/ground_truth` by `(class, stem of the image)`."""
    masks: dict[tuple[str, str], str] = {}
    folder = _masks_folder(root)
    for path in find_images(folder):
        label, stem = path.relative_to(folder).parts[0], path.stem.removesuffix("_mask")
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
        raise InputError(
            f"--data_dir {root}: {format_count(len(orphans), 'mask')} without an image; one is {orphans[0]}."
        )
    return masks


__all__ = ["MASKS_FOLDER", "read_image_folder"]
