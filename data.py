"""What to learn from: settings to training, validation and test splits that nothing straddles."""

from __future__ import annotations

import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, concatenate_datasets

from .duplicates import HASH_BITS, merged_groups, near_duplicates
from .errors import InputError, check_choices
from .layouts import (
    generated_surfaces,
    read_dagm,
    read_image_folder,
    read_kolektorsdd,
    read_kolektorsdd2,
    read_magnetic_tile,
    read_neu_det,
)
from .scan import Oddity, Scan, find_duplicates, scan_pictures
from .schema import masks_in, without_masks
from .splits import few_labels, group_folds, hold_out_validation
from .tables import Columns, read_hub_dataset, read_table


logger = logging.getLogger(__name__)

_FOLDERS = {
    "imagefolder": read_image_folder,
    "kolektorsdd": read_kolektorsdd,
    "kolektorsdd2": read_kolektorsdd2,
    "dagm": read_dagm,
    "magnetic_tile": read_magnetic_tile,
    "neu_det": read_neu_det,
}
_DATASETS = (*_FOLDERS, "table", "hub", "surfaces")
_DEFECT_FREE = {
    "kolektorsdd": "good",
    "kolektorsdd2": "good",
    "dagm": "good",
    "magnetic_tile": "Free",
    "surfaces": "good",
}
# Bits of 256 within which pictures show the same; measured on these sets, see docs/data.md.
_DUPLICATE_DISTANCE = {"kolektorsdd": 60, "magnetic_tile": 60, "neu_det": 60}


@dataclass
class DataArguments:
    """What to learn from, and what to hold out."""

    dataset: str = field(
        default="imagefolder",
        metadata={
            "help": "How the pictures come: imagefolder (a folder a class, maybe below train/ and test/; masks in "
            "ground_truth/), table (--data_file), hub (--hub_dataset), surfaces (generated), or a published layout in "
            "data_dir: kolektorsdd, kolektorsdd2, dagm, magnetic_tile, neu_det.",
            "choices": list(_DATASETS),
        },
    )
    data_dir: str | None = field(default=None, metadata={"help": "The folder that holds the pictures."})
    data_file: str | None = field(
        default=None,
        metadata={"help": "table: a .csv, .jsonl or .parquet file; its paths are relative to data_dir or its folder."},
    )
    hub_dataset: str | None = field(default=None, metadata={"help": "hub: the id of a data set, OWNER/NAME."})
    hub_config: str | None = field(default=None, metadata={"help": "hub: the configuration, where it has several."})
    image_column: str = field(default="image", metadata={"help": "table, hub: the column of pictures."})
    label_column: str = field(
        default="label", metadata={"help": "table, hub: the column of labels, words or numbers."}
    )
    mask_column: str | None = field(default=None, metadata={"help": "table, hub: the column of masks."})
    group_column: str | None = field(
        default=None, metadata={"help": "table, hub: the column that tells which pictures are of one part."}
    )
    split_column: str | None = field(default=None, metadata={"help": "table: the column that says train or test."})
    grade_thresholds: list[float] | None = field(
        default=None, metadata={"help": "table, hub: part graded labels into classes at these values, ascending."}
    )
    grade_names: list[str] | None = field(
        default=None, metadata={"help": "What these classes are called, one more than there are thresholds."}
    )
    defect_free_label: str | None = field(
        default=None, metadata={"help": "The class without defects, if there is one. Published layouts know theirs."}
    )
    on_bad_image: str = field(
        default="error",
        metadata={
            "help": "What to do about pictures that cannot be used: error (all of them named, before any training) or "
            "skip (named in a warning).",
            "choices": ["error", "skip"],
        },
    )
    duplicate_distance: int | None = field(
        default=None,
        metadata={
            "help": "Pictures whose perceptual hashes differ in at most so many of 256 bits never straddle a split; "
            "16 (copies, recompressed or resized) by default, 60 for published layouts that it was measured on."
        },
    )
    num_folds: int = field(
        default=3, metadata={"help": "Folds, stratified by class with groups whole; one of them is held out."}
    )
    fold: int = field(default=0, metadata={"help": "The fold held out, from 0. A test split is used instead."})
    split_seed: int = field(default=0, metadata={"help": "Seed of the folds and of the few-label selection."})
    validation_share: float = field(
        default=0.2,
        metadata={
            "help": "Hold so much of the training pictures out (one of equal parts) to choose the operating point "
            "on; 0 trains on all of them and chooses none. A validation/ folder or split is used instead."
        },
    )
    train_per_class: int | None = field(
        default=None, metadata={"help": "Keep this many training pictures of each defect class (the rest is unused)."}
    )
    train_defect_free: int | None = field(
        default=None, metadata={"help": "Keep this many defect-free training pictures."}
    )
    decode_once: bool = field(
        default=True,
        metadata={
            "help": "Keep the training pictures decoded and resized while a run lasts (3 bytes a pixel), instead of "
            "decoding them in every epoch."
        },
    )
    train_on_masks: bool = field(
        default=False,
        metadata={"help": "Where a training picture has a mask, use it in place of the saliency prior."},
    )
    num_surfaces: int = field(default=600, metadata={"help": "surfaces: how many pictures to generate."})
    surface_size: int = field(default=96, metadata={"help": "surfaces: side of the pictures in pixels."})

    def __post_init__(self) -> None:
        check_choices(self, {"dataset": _DATASETS, "on_bad_image": ("error", "skip")})
        least = {
            "num_folds": 2, "split_seed": 0, "train_per_class": 1, "train_defect_free": 1, "surface_size": 32,
            "duplicate_distance": 0,
        }  # fmt: skip
        for name, minimum in least.items():
            value = vars(self)[name]
            if value is not None and value < minimum:
                raise InputError(f"--{name} {value}: it must be at least {minimum}.")
        if not 0 <= self.fold < self.num_folds:
            raise InputError(f"--fold {self.fold}: it must lie in 0..{self.num_folds - 1} (--num_folds).")
        if not 0 <= self.validation_share <= 0.5:
            raise InputError(f"--validation_share {self.validation_share}: it must lie in 0..0.5.")
        if self.duplicate_distance is not None and self.duplicate_distance >= HASH_BITS // 2:
            raise InputError(f"--duplicate_distance {self.duplicate_distance}: it must be below {HASH_BITS // 2}.")
        thresholds = self.grade_thresholds or []
        if sorted(set(thresholds)) != thresholds:
            raise InputError(f"--grade_thresholds {' '.join(map(str, thresholds))}: they must ascend.")
        if self.grade_names is not None and not (thresholds and len(set(self.grade_names)) == len(thresholds) + 1):
            raise InputError(
                f"--grade_names: {len(thresholds)} thresholds make {len(thresholds) + 1} different classes."
            )


def load_defect_dataset(args: DataArguments) -> DatasetDict:
    """[`read_defect_dataset`] without what it noticed."""
    return read_defect_dataset(args)[0]


def read_defect_dataset(args: DataArguments) -> tuple[DatasetDict, list[Oddity]]:
    """
    Read what `args` names into `train`, `test` and, unless `args.validation_share` is 0, `validation` splits.

    Columns: `image` (Image), `label` (ClassLabel), `mask` (Image or None; non-zero where the defect is), `group`
    (string: what never straddles a split; pictures that show the same share one), `file_name` and `digest` (strings).
    The training and validation splits have masks only with `args.train_on_masks`. A test split that the data comes
    with is kept as it is.

    Returns:
        The splits, and what is odd about the data.

    Raises:
        InputError: nothing usable there; the message names the folder, the files or the argument.
    """
    pictures, _, oddities = read_pictures(args)
    return split_pictures(pictures, args), oddities


def split_pictures(pictures: DatasetDict, args: DataArguments) -> DatasetDict:
    """
    What [`read_pictures`] read as `train`, `test` and, unless `args.validation_share` is 0, `validation`.

    Raises:
        InputError: too few independent pictures of a class.
    """
    splits, names = _held_out(pictures, args), pictures["train"].features["label"].names
    train, share = splits["train"], 0.0
    if "validation" not in splits and args.validation_share > 0:
        share = args.validation_share
        train, splits["validation"] = hold_out_validation(train, share, args.split_seed)
        splits["validation"] = _few(splits["validation"], args, share)
    train = _few(train, args, 1 - share)
    if not args.train_on_masks:
        train = without_masks(train)
    elif masks_in(train) == 0:
        raise InputError("--train_on_masks: no training picture has a mask; docs/data.md tells where they are found.")
    for split_name, split in (("train", train), ("test", splits["test"])):
        missing = sorted(set(names) - {names[label] for label in split["label"][:]})
        if missing:
            raise InputError(f"The {split_name} split has no picture of {', '.join(missing)}; another --split_seed?")
    if "validation" in splits:
        splits["validation"] = splits["validation"] if args.train_on_masks else without_masks(splits["validation"])
        kinds = {names[label] == defect_free_label(args) for label in splits["validation"]["label"][:]}
        if defect_free_label(args) is not None and len(kinds) < 2:
            logger.warning("No operating point can be chosen: the validation pictures are not of both kinds.")
    splits["train"] = train
    return splits


def _few(pictures: Dataset, args: DataArguments, share: float) -> Dataset:
    """This part's share of the budget, at least one a class: what a larger budget chooses contains it."""
    budgets = [
        None if budget is None else max(1, round(share * budget))
        for budget in (args.train_per_class, args.train_defect_free)
    ]
    return few_labels(pictures, *budgets, defect_free_label(args), args.split_seed)


def read_pictures(args: DataArguments) -> tuple[DatasetDict, Scan, list[Oddity]]:
    """
    All usable pictures, in the splits they come with, groups joined where pictures show the same.

    Returns:
        Them; what was seen of every picture, the bad ones too; and what is odd.

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
    scan = scan_pictures(whole)
    usable = [row for row, problem in enumerate(scan.problems) if problem is None]
    if not usable:
        raise InputError(
            f"{_source(args)}: none of {len(whole)} pictures can be used; the first is {whole['file_name'][0]} "
            f"({scan.problems[0]}). Is --data_dir right?"
        )
    oddities = scan.oddities + _bad_pictures(whole["file_name"][:], scan, args)
    if len(usable) < len(whole):
        whole, split_of = whole.select(usable), split_of[usable]
    whole = whole.add_column("digest", [scan.digests[row] for row in usable])
    near = near_duplicates(scan.hashes[usable], duplicate_distance(args))
    found = find_duplicates(whole, near, split_of.tolist())
    for kind in ("published split leaks", "equal pictures of different classes"):
        of_kind = [str(one) for one in found if one.kind == kind]
        if of_kind:
            first = "; ".join(of_kind[:3])
            logger.warning("%s, %d times, such as %s. kgl-data lists all of it.", kind, len(of_kind), first)
    if defect_free is not None:
        found += _contradictions(whole, [scan.marked[row] for row in usable], names.index(defect_free))
    groups = merged_groups(whole["group"][:], [whole["digest"][:], near])
    whole = whole.remove_columns("group").add_column("group", groups)
    parts = {name: whole.select(np.flatnonzero(split_of == name)) for name in splits}
    return DatasetDict(parts), scan, oddities + found


def duplicate_distance(args: DataArguments) -> int:
    """Bits of 256 within which pictures show the same: the layout's own where nothing is said."""
    if args.duplicate_distance is not None:
        return args.duplicate_distance
    return _DUPLICATE_DISTANCE.get(args.dataset, 16)


def defect_free_label(args: DataArguments) -> str | None:
    """The class without defects: the layout's own where it has one."""
    return _DEFECT_FREE.get(args.dataset, args.defect_free_label)


def _read(args: DataArguments) -> dict[str, Dataset]:
    if args.dataset == "surfaces":
        return generated_surfaces(args.num_surfaces, args.surface_size, args.split_seed)
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
    return _FOLDERS[args.dataset](root)


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


def _bad_pictures(names: list[str], scan: Scan, args: DataArguments) -> list[Oddity]:
    bad = [Oddity("cannot be used", (names[row],), why) for row, why in enumerate(scan.problems) if why is not None]
    if not bad:
        return []
    listed = ", ".join(map(str, bad))
    if args.on_bad_image == "error":
        raise InputError(
            f"{len(bad)} pictures cannot be used: {listed}. Mend them, or leave them out by --on_bad_image skip."
        )
    logger.warning("%d pictures are left out: %s", len(bad), listed)
    return bad


def _contradictions(pictures: Dataset, marked: list[bool | None], defect_free_id: int) -> list[Oddity]:
    """Masks that say something else than the label."""
    rows = zip(pictures["file_name"][:], pictures["label"][:], marked, strict=True)
    return [
        Oddity("mask contradicts the label", (name,), "a defect in a good picture" if mask else "no defect in it")
        for name, label, mask in rows
        if mask is not None and mask != (label != defect_free_id)
    ]


def _held_out(pictures: DatasetDict, args: DataArguments) -> DatasetDict:
    if "test" in pictures:
        return DatasetDict(pictures)
    train, test = group_folds(pictures["train"], args.num_folds, args.split_seed, "--num_folds")[args.fold]
    return DatasetDict(train=pictures["train"].select(train), test=pictures["train"].select(test))


__all__ = [
    "DataArguments",
    "defect_free_label",
    "duplicate_distance",
    "load_defect_dataset",
    "read_defect_dataset",
    "read_pictures",
    "split_pictures",
]
