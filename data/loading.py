"""Load a dataset into leakage-free train, validation and test splits."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, concatenate_datasets

from ..errors import InputError
from .arguments import DataArguments
from .duplicates import find_near_duplicates, merge_groups
from .masks import count_masks, drop_masks
from .readers.dagm import read_dagm
from .readers.hub import read_hub_dataset
from .readers.imagefolder import read_image_folder
from .readers.kolektorsdd import read_kolektorsdd, read_kolektorsdd2
from .readers.layouts import LAYOUTS
from .readers.magnetic_tile import read_magnetic_tile
from .readers.neu_det import read_neu_det
from .readers.table import Columns, read_table
from .splits import group_folds, hold_out_validation, select_few_labels
from .synthetic import CLASSES as SYNTHETIC_CLASSES
from .synthetic import load_synthetic
from .validation import DataIssue, Inspection, find_duplicate_issues, inspect_images


logger = logging.getLogger(__name__)

_FOLDER_READERS = {
    "imagefolder": read_image_folder,
    "kolektorsdd": read_kolektorsdd,
    "kolektorsdd2": read_kolektorsdd2,
    "dagm": read_dagm,
    "magnetic_tile": read_magnetic_tile,
    "neu_det": read_neu_det,
}
_DUPLICATE_DISTANCE = 16  # copies, recompressed or resized


@dataclass(frozen=True)
class LoadedDataset:
    splits: DatasetDict
    issues: list[DataIssue]
    defect_free_label: str | None


def load_defect_dataset(args: DataArguments) -> DatasetDict:
    """[`read_defect_dataset`] without what it noticed."""
    return read_defect_dataset(args).splits


def read_defect_dataset(args: DataArguments) -> LoadedDataset:
    """
    Read what `args` names into `train`, `test` and, unless `args.validation_share` is 0, `validation` splits.

    Columns: `image` (Image), `label` (ClassLabel), `mask` (Image or None; non-zero where the defect is), `group`
    (string: what never straddles a split; images that show the same share one), `file_name` and `digest` (strings).
    The training and validation splits have masks only with `args.train_on_masks`. A test split that the data comes
    with is kept as it is.

    Returns:
        The splits, and what is odd about the data.

    Raises:
        InputError: nothing usable there; the message names the folder, the files or the argument.
    """
    images, _, oddities = read_images(args)
    return LoadedDataset(split_images(images, args), oddities, defect_free_label(args))


def split_images(images: DatasetDict, args: DataArguments) -> DatasetDict:
    """
    What [`read_images`] read as `train`, `test` and, unless `args.validation_share` is 0, `validation`.

    Raises:
        InputError: too few independent images of a class.
    """
    splits, names = _hold_out_test(images, args), images["train"].features["label"].names
    train, share = splits["train"], 0.0
    if "validation" not in splits and args.validation_share > 0:
        share = args.validation_share
        train, splits["validation"] = hold_out_validation(train, share, args.split_seed)
        splits["validation"] = _apply_budget(splits["validation"], args, share)
    train = _apply_budget(train, args, 1 - share)
    if not args.train_on_masks:
        train = drop_masks(train)
    elif count_masks(train) == 0:
        raise InputError("--train_on_masks: no training image has a mask; docs/data.md tells where they are found.")
    for split_name, split in (("train", train), ("test", splits["test"])):
        missing = sorted(set(names) - {names[label] for label in split["label"][:]})
        if missing:
            raise InputError(f"The {split_name} split has no image of {', '.join(missing)}; another --split_seed?")
    if "validation" in splits:
        splits["validation"] = splits["validation"] if args.train_on_masks else drop_masks(splits["validation"])
        kinds = {names[label] == defect_free_label(args) for label in splits["validation"]["label"][:]}
        if defect_free_label(args) is not None and len(kinds) < 2:
            logger.warning("No operating point can be chosen: the validation images are not of both kinds.")
    splits["train"] = train
    return splits


def _apply_budget(images: Dataset, args: DataArguments, share: float) -> Dataset:
    """This part's share of the budget, at least one a class: what a larger budget chooses contains it."""
    budgets = [
        None if budget is None else max(1, round(share * budget))
        for budget in (args.train_per_class, args.train_defect_free)
    ]
    return select_few_labels(images, *budgets, defect_free_label(args), args.split_seed)


def read_images(args: DataArguments) -> tuple[DatasetDict, Inspection, list[DataIssue]]:
    """
    All usable images, in the splits they come with, groups joined where images show the same.

    Returns:
        Them; what was seen of every image, the bad ones too; and what is odd.

    Raises:
        InputError: as [`read_defect_dataset`]'s.
    """
    splits = _read(args)
    names = splits["train"].features["label"].names
    defect_free = defect_free_label(args)
    if len(names) < 2:
        raise InputError(f"{_source(args)}: one class only ({names[0]}); a classifier needs two or more.")
    if defect_free is not None and defect_free not in names:
        raise InputError(f"--defect_free_label {defect_free}: no such class; there are {', '.join(names)}.")
    whole = concatenate_datasets(list(splits.values()))
    split_of = np.repeat(list(splits), [len(split) for split in splits.values()])
    scan = inspect_images(whole)
    usable = [row for row, problem in enumerate(scan.problems) if problem is None]
    if not usable:
        raise InputError(
            f"{_source(args)}: none of {len(whole)} images can be used; the first is {whole['file_name'][0]} "
            f"({scan.problems[0]}). Is --data_dir right?"
        )
    oddities = scan.oddities + _unusable_image_issues(whole["file_name"][:], scan, args)
    if len(usable) < len(whole):
        whole, split_of = whole.select(usable), split_of[usable]
    whole = whole.add_column("digest", [scan.digests[row] for row in usable])
    near = find_near_duplicates(scan.hashes[usable], duplicate_distance(args))
    found = find_duplicate_issues(whole, near, split_of.tolist())
    for kind in ("published split leaks", "equal images of different classes"):
        of_kind = [str(one) for one in found if one.kind == kind]
        if of_kind:
            first = "; ".join(of_kind[:3])
            logger.warning("%s, %d times, such as %s. kgl-data lists all of it.", kind, len(of_kind), first)
    if defect_free is not None:
        found += _mask_contradictions(whole, [scan.marked[row] for row in usable], names.index(defect_free))
    groups = merge_groups(whole["group"][:], [whole["digest"][:], near])
    whole = whole.remove_columns("group").add_column("group", groups)
    parts = {name: whole.select(np.flatnonzero(split_of == name)) for name in splits}
    return DatasetDict(parts), scan, oddities + found


def duplicate_distance(args: DataArguments) -> int:
    """Bits of 256 within which images show the same: the layout's own where nothing is said."""
    if args.duplicate_distance is not None:
        return args.duplicate_distance
    layout = LAYOUTS.get(args.dataset)
    return layout.duplicate_distance if layout and layout.duplicate_distance is not None else _DUPLICATE_DISTANCE


def defect_free_label(args: DataArguments) -> str | None:
    """The class without defects: the layout's own where it has one."""
    if args.defect_free_label is not None:
        return args.defect_free_label
    if args.dataset == "surfaces":
        return SYNTHETIC_CLASSES[0]
    layout = LAYOUTS.get(args.dataset)
    return None if layout is None else layout.defect_free_label


def _read(args: DataArguments) -> dict[str, Dataset]:
    if args.dataset == "surfaces":
        return load_synthetic(args.num_surfaces, args.surface_size, args.split_seed)
    if args.dataset == "hub":
        if args.hub_dataset is None:
            raise InputError("--dataset hub needs --hub_dataset.")
        return read_hub_dataset(args.hub_dataset, args.hub_config, _columns(args))
    if args.dataset == "table" and args.data_file is None:
        raise InputError("--dataset table needs --data_file.")
    if args.dataset != "table" and args.data_dir is None:
        raise InputError(f"--dataset {args.dataset} needs --data_dir.")
    root = Path(args.data_dir) if args.data_dir is not None else Path(args.data_file).parent
    if not root.is_dir():
        raise InputError(f"--data_dir {root}: there is no such folder.")
    if args.dataset == "table":
        return read_table(Path(args.data_file), root, _columns(args))
    return _FOLDER_READERS[args.dataset](root)


def _columns(args: DataArguments) -> Columns:
    return Columns(
        image=args.image_column,
        label=args.label_column,
        mask=args.mask_column,
        group=args.group_column,
        split=args.split_column,
        thresholds=args.grade_thresholds or (),
        names=args.grade_names or (),
    )


def _source(args: DataArguments) -> str:
    for name in ("hub_dataset", "data_file", "data_dir"):
        if vars(args)[name] is not None:
            return f"--{name} {vars(args)[name]}"
    return f"--dataset {args.dataset}"


def _unusable_image_issues(names: list[str], scan: Inspection, args: DataArguments) -> list[DataIssue]:
    bad = [DataIssue("cannot be used", (names[row],), why) for row, why in enumerate(scan.problems) if why is not None]
    if not bad:
        return []
    listed = ", ".join(map(str, bad))
    if args.on_bad_image == "error":
        raise InputError(
            f"{len(bad)} images cannot be used: {listed}. Mend them, or leave them out by --on_bad_image skip."
        )
    logger.warning("%d images are left out: %s", len(bad), listed)
    return bad


def _mask_contradictions(images: Dataset, marked: list[bool | None], defect_free_id: int) -> list[DataIssue]:
    """Masks that say something else than the label."""
    rows = zip(images["file_name"][:], images["label"][:], marked, strict=True)
    return [
        DataIssue("mask contradicts the label", (name,), "a defect in a good image" if mask else "no defect in it")
        for name, label, mask in rows
        if mask is not None and mask != (label != defect_free_id)
    ]


def _hold_out_test(images: DatasetDict, args: DataArguments) -> DatasetDict:
    if "test" in images:
        return DatasetDict(images)
    train, test = group_folds(images["train"], args.num_folds, args.split_seed, "--num_folds")[args.fold]
    return DatasetDict(train=images["train"].select(train), test=images["train"].select(test))


__all__ = [
    "defect_free_label",
    "duplicate_distance",
    "load_defect_dataset",
    "read_defect_dataset",
    "read_images",
    "split_images",
]
