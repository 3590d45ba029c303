"""Load a dataset into leakage-free train, validation and test splits."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from datasets import Dataset, DatasetDict, concatenate_datasets

from ..errors import InputError, format_count, format_names
from .arguments import DataArguments
from .defect_free import DefectFreeClass, find_defect_free_class
from .duplicates import find_near_duplicates, merge_groups
from .images import set_max_megapixels
from .masks import count_masks, drop_masks
from .readers.columns import Columns
from .readers.dagm import read_dagm
from .readers.hub import read_hub_dataset
from .readers.imagefolder import read_image_folder
from .readers.kolektorsdd import read_kolektorsdd
from .readers.kolektorsdd2 import read_kolektorsdd2
from .readers.layouts import LAYOUTS, detect_layout
from .readers.magnetic_tile import read_magnetic_tile
from .readers.neu_det import read_neu_det
from .readers.source import SourceDataset
from .readers.table import read_table
from .splits import find_complete_fold, group_folds, hold_out_validation, select_few_labels
from .storage import no_library_progress_bars
from .synthetic import generate_surfaces
from .validation import (
    CONFLICTING_LABELS,
    ISSUE_ADVICE,
    LARGE_MASK,
    MASK_CONTRADICTS_LABEL,
    SPLIT_LEAK,
    UNUSABLE,
    DataIssue,
    Inspection,
    find_duplicate_issues,
    find_mask_issues,
    find_small_classes,
    find_unusable,
    inspect_images,
)


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
_MAX_EXAMPLES = 3
_MAX_UNUSABLE_NAMED = 5
_NO_DEFECT_FREE_CLASS = (
    "No class is recognised as free of defects, so images are sorted by class and none is decided good or defective: "
    "no threshold, no P(defect), no priors from good parts. Name it with --defect_free_label, or give "
    "--defect_free_label none if every class is a defect."
)


@dataclass(frozen=True)
class LoadedDataset:
    """
    A dataset and what was found out about it.

    Columns of the splits: `image` (Image), `label` (ClassLabel), `mask` (Image or None), `group` (string; near-
    duplicates share one), `file_name` and `digest` (strings).

    Args:
        splits: of the source ([`read_images`]), or train, test and optionally validation ([`read_defect_dataset`]).
        dataset: the kind of dataset, one of [`~kgl.data.arguments.DATASETS`], recognised where none was given.
        source: the setting that names it, such as `--data_dir images`.
        defect_free: the class without defects and how it was found.
        duplicate_distance: bits of 256 within which images are near-duplicates.
        inspection: what was found in every image, unusable ones included.
        issues: what the owner of the data should know.
        notes: sentences about how the source was read and split.
        source_groups: file name to group of the images to which the source gives one, such as a part: by
            --group_column or by its layout, near-duplicates not joined.
    """

    splits: DatasetDict
    dataset: str
    source: str
    defect_free: DefectFreeClass
    duplicate_distance: int
    inspection: Inspection
    issues: list[DataIssue]
    notes: list[str]
    source_groups: dict[str, str]

    @property
    def class_names(self) -> list[str]:
        """The classes in the order of their indices."""
        return self.splits["train"].features["label"].names

    @property
    def defect_free_label(self) -> str | None:
        """The name of the class without defects, None where there is none."""
        return self.defect_free.label

    @property
    def warnings(self) -> list[str]:
        """The notes, and a sentence per kind of issue that limits how far figures can be trusted, for the terminal."""
        return [*self.notes, *_important_issues(self.issues)]


def load_defect_dataset(args: DataArguments) -> DatasetDict:
    """Return the splits of [`read_defect_dataset`]; its warnings are logged."""
    loaded = read_defect_dataset(args)
    for warning in loaded.warnings:
        logger.warning("%s", warning)
    return loaded.splits


def read_defect_dataset(args: DataArguments) -> LoadedDataset:
    """
    Read, check and split a dataset into `train`, `test` and, with a validation share, `validation`.

    Train and validation splits have masks only with `args.train_on_masks`. Test and validation splits of the source
    are kept.

    Args:
        args: the dataset and how it is split.

    Raises:
        InputError: the dataset cannot be used; the message names the folder, the files or the setting.
    """
    return split_images(read_images(args, trust_shards=True), args)


def read_images(args: DataArguments, trust_shards: bool = False) -> LoadedDataset:
    """
    Read all usable images in the splits of their source; near-duplicates share a group.

    Args:
        args: the dataset.
        trust_shards: inspect no images that are streamed from shards which `kgl data` wrote: it inspected them.

    Raises:
        InputError: as [`read_defect_dataset`].
    """
    set_max_megapixels(args.max_image_megapixels)
    with no_library_progress_bars():
        dataset = _recognise_dataset(args)
        source = _read_source(dataset, args)
        names = source.class_names
        if len(names) < 2:
            raise InputError(f"{source.description}: only one class ({names[0]}); a classifier needs at least two.")
        defect_free = find_defect_free_class(args.defect_free_label, dataset, names)
        images = concatenate_datasets(list(source.splits.values()))
        split_of = np.repeat(list(source.splits), [len(split) for split in source.splits.values()])
        if "digest" in images.column_names:
            if trust_shards:
                return _inspected_before(source, images, split_of.tolist(), dataset, defect_free)
            images = images.remove_columns("digest")
        inspection = inspect_images(images)
        issues = [*inspection.issues, *_unusable_images(images, inspection, source.description, args.on_bad_image)]
        usable = inspection.usable
        if len(usable) < len(images):
            images, split_of = images.select(usable), split_of[usable]
        images = images.add_column("digest", [inspection.digests[row] for row in usable])
        distance = _duplicate_distance(dataset, args)
        near_duplicates = find_near_duplicates(inspection.hashes[usable], distance)
        issues += find_duplicate_issues(images, near_duplicates, split_of.tolist())
        if defect_free.label is not None:
            shown = [inspection.mask_shows_defect[row] for row in usable]
            issues += find_mask_issues(images, shown, defect_free.label)
        source_groups = _source_groups(images)
        groups = merge_groups(images["group"][:], images["digest"][:], near_duplicates.tolist())
        images = images.remove_columns("group").add_column("group", groups)
        splits = DatasetDict({name: images.select(np.flatnonzero(split_of == name)) for name in source.splits})
        issues += find_small_classes(splits["train"])
    return LoadedDataset(
        splits=splits,
        dataset=dataset,
        source=source.description,
        defect_free=defect_free,
        duplicate_distance=distance,
        inspection=inspection,
        issues=issues,
        notes=list(source.notes),
        source_groups=source_groups,
    )


def _inspected_before(
    source: SourceDataset, images: Dataset, split_of: list[str], dataset: str, defect_free: DefectFreeClass
) -> LoadedDataset:
    """Return shards whose images were inspected, and near-duplicates joined, when they were written."""
    count, digests = len(images), images["digest"][:]
    inspection = Inspection(
        problems=[None] * count,
        digests=digests,
        hashes=np.zeros((count, 4), dtype=np.uint64),
        sizes=[(0, 0)] * count,
        modes=[""] * count,
        mask_shows_defect=[None] * count,
        issues=[],
    )
    issues = find_duplicate_issues(images, np.arange(count), split_of) + find_small_classes(source.splits["train"])
    return LoadedDataset(
        splits=DatasetDict(source.splits),
        dataset=dataset,
        source=source.description,
        defect_free=defect_free,
        duplicate_distance=0,
        inspection=inspection,
        issues=issues,
        notes=[*source.notes, "Images and near-duplicates as `kgl data` found them when it wrote the shards."],
        source_groups=_source_groups(images),
    )


def split_images(loaded: LoadedDataset, args: DataArguments) -> LoadedDataset:
    """
    Split what [`read_images`] read into `train`, `test` and, with a validation share, `validation`.

    Raises:
        InputError: a class has too few independent images.
    """
    with no_library_progress_bars():
        splits, notes = _hold_out_test(loaded.splits, args), list(loaded.notes)
        if loaded.defect_free.origin == "unknown":
            notes.append(_NO_DEFECT_FREE_CLASS)
        train, share, names = splits["train"], 0.0, loaded.class_names
        if "validation" not in splits and args.validation_share > 0:
            share = args.validation_share
            train, validation = hold_out_validation(train, share, args.split_seed)
            if len(validation) == 0:  # every class is one image or one group
                share = 0.0
                notes.append(
                    "No operating point is chosen: every class has a single independent training image, so none is "
                    "held out for validation."
                )
            else:
                splits["validation"] = _select_budget(validation, args, share, loaded.defect_free_label)
        splits["train"] = _select_budget(train, args, 1 - share, loaded.defect_free_label)
        if args.train_on_masks and count_masks(splits["train"]) == 0:
            raise InputError("--train_on_masks: no training image has a mask; see docs/data_formats.md.")
        _check_classes_of_splits(splits, loaded, args)
        if "validation" in splits and loaded.defect_free_label is not None:
            labels = splits["validation"]["label"][:]
            if len({names[label] == loaded.defect_free_label for label in labels}) < 2:
                notes.append("No operating point is chosen: the validation images are all good or all defective.")
        if not args.train_on_masks:
            splits |= {split: drop_masks(splits[split]) for split in ("train", "validation") if split in splits}
    in_order = {split: splits[split] for split in ("train", "validation", "test") if split in splits}
    return replace(loaded, splits=DatasetDict(in_order), notes=notes)


def _recognise_dataset(args: DataArguments) -> str:
    """Return the kind of dataset that is given, or that the sources and the folder's layout imply."""
    if args.dataset is not None:
        return args.dataset
    if args.data_file is not None:
        return "table"
    if args.hub_dataset is not None:
        return "hub"
    if args.data_dir is None:
        raise InputError("No images are named; give --data_dir, --data_file or --hub_dataset.")
    return detect_layout(Path(args.data_dir)) or "imagefolder"


def _read_source(dataset: str, args: DataArguments) -> SourceDataset:
    if dataset == "surfaces":
        return generate_surfaces(args.num_surfaces, args.surface_size, args.split_seed)
    columns = Columns(
        image=args.image_column,
        label=args.label_column,
        mask=args.mask_column,
        group=args.group_column,
        split=args.split_column,
        grade_thresholds=args.grade_thresholds or (),
        grade_names=args.grade_names or (),
    )
    if dataset == "hub":
        if args.hub_dataset is None:
            raise InputError("--dataset hub needs --hub_dataset.")
        return read_hub_dataset(args.hub_dataset, args.hub_config, columns, args.streaming)
    if dataset == "table" and args.data_file is None:
        raise InputError("--dataset table needs --data_file.")
    if dataset != "table" and args.data_dir is None:
        raise InputError(f"--dataset {dataset} needs --data_dir.")
    root = Path(args.data_dir) if args.data_dir is not None else Path(args.data_file).parent
    if root.is_file():
        raise InputError(f"--data_dir {root}: it is a file, not a folder; a table is given with --data_file.")
    if not root.is_dir():
        raise InputError(f"--data_dir {root}: there is no such folder.")
    return read_table(Path(args.data_file), root, columns) if dataset == "table" else _FOLDER_READERS[dataset](root)


def _duplicate_distance(dataset: str, args: DataArguments) -> int:
    if args.duplicate_distance is not None:
        return args.duplicate_distance
    measured = LAYOUTS[dataset].duplicate_distance if dataset in LAYOUTS else None
    return _DUPLICATE_DISTANCE if measured is None else measured


def _unusable_images(images: Dataset, inspection: Inspection, source: str, on_bad_image: str) -> list[DataIssue]:
    """
    Return the unusable images.

    Raises:
        InputError: there are some and `on_bad_image` is `error`, or no image is usable.
    """
    unusable = find_unusable(images["file_name"][:], inspection)
    if len(unusable) == len(images):
        raise InputError(f"{source}: no image is usable of {len(images)}; the first is {unusable[0]}.")
    if unusable and on_bad_image == "error":
        named = format_names([str(one) for one in unusable], _MAX_UNUSABLE_NAMED)
        if len(unusable) > _MAX_UNUSABLE_NAMED:
            named += f"; `kgl data --listed {len(unusable)}` lists all"
        count = format_count(len(unusable), "unusable image")
        raise InputError(f"{count}: {named}. Repair or remove them, or leave them out with --on_bad_image skip.")
    return unusable


def _source_groups(images: Dataset) -> dict[str, str]:
    """Return file name to group of the images that are not their own group."""
    pairs = zip(images["file_name"][:], images["group"][:], strict=True)
    return {file_name: group for file_name, group in pairs if group != file_name}


def _important_issues(issues: list[DataIssue]) -> list[str]:
    titles = {
        UNUSABLE: "Unusable images left out",
        SPLIT_LEAK: "Leaks between splits of the source",
        CONFLICTING_LABELS: "Identical images with different labels",
        MASK_CONTRADICTS_LABEL: "Masks that contradict the label",
        LARGE_MASK: "Masks that cover more than half of the image",
    }
    sentences = []
    for kind, title in titles.items():
        of_kind = [issue.shortened() for issue in issues if issue.kind == kind]
        if of_kind:
            examples = "; ".join(of_kind[:_MAX_EXAMPLES])
            advice = f"Mind: {ISSUE_ADVICE[kind]}. " if kind in ISSUE_ADVICE else ""
            lists = "`kgl data --output FILE.json` lists all."
            sentences.append(f"{title}: {len(of_kind)}, such as {examples}. {advice}{lists}")
    return sentences


def _check_classes_of_splits(splits: dict[str, Dataset], loaded: LoadedDataset, args: DataArguments) -> None:
    """
    Check that training and test images have every class.

    Raises:
        InputError: one of them lacks a class.
    """
    for split in ("train", "test"):
        missing = sorted(set(range(len(loaded.class_names))) - set(splits[split]["label"][:]))
        if not missing:
            continue
        names = ", ".join(loaded.class_names[label] for label in missing)
        message = f"{loaded.source}: the {split} split has no image of {names}"
        if "test" in loaded.splits:  # the source's own split, which no seed changes
            raise InputError(
                f"{message}; add images of it to the {split} split, or leave the class out of all splits."
            )
        complete = find_complete_fold(loaded.splits["train"], args.num_folds, args.split_seed)
        if complete is None:
            advice = f"no fold of the other seeds tried has every class: add images of {names} from other groups"
        else:
            advice = "give --split_seed {} --fold {}, or add images".format(*complete)
        raise InputError(
            f"{message}: images of one group and near-duplicates stay together (`kgl data` lists them); {advice}."
        )


def _hold_out_test(splits: DatasetDict, args: DataArguments) -> dict[str, Dataset]:
    if "test" in splits:
        return dict(splits)
    train, test = group_folds(splits["train"], args.num_folds, args.split_seed, "--num_folds")[args.fold]
    return {"train": splits["train"].select(train), "test": splits["train"].select(test)}


def _select_budget(images: Dataset, args: DataArguments, share: float, defect_free: str | None) -> Dataset:
    """Select a split's share of the label budget, at least one per class; larger budgets contain smaller ones."""
    per_class, defect_free_count = (
        None if budget is None else max(1, round(share * budget))
        for budget in (args.train_per_class, args.train_defect_free)
    )
    return select_few_labels(images, per_class, defect_free_count, defect_free, args.split_seed)


__all__ = ["LoadedDataset", "load_defect_dataset", "read_defect_dataset", "read_images", "split_images"]
