"""Arguments that name a dataset and its splits."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path

from ..errors import InputError, check_choices, expand_home
from .readers.layouts import LAYOUTS


FOLDER_DATASETS = ("imagefolder", *LAYOUTS)
DATASETS = (*FOLDER_DATASETS, "table", "hub", "surfaces")
MAX_MEGAPIXELS_HELP = (
    "Images of more megapixels are unusable; by default 89, Pillow's limit, as files of strangers may fill the memory."
)
MAX_DUPLICATE_DISTANCE = 127  # of 256 bits: unlike images differ in about half

_DATASETS_THAT_READ = {
    "data_dir": (*FOLDER_DATASETS, "table"),
    "data_file": ("table",),
    "hub_dataset": ("hub",),
    "hub_config": ("hub",),
    "streaming": ("hub",),
    "mask_column": ("table", "hub"),
    "group_column": ("table", "hub"),
    "split_column": ("table",),
    "grade_thresholds": ("table", "hub"),
    "image_column": ("table", "hub"),
    "label_column": ("table", "hub"),
    "num_surfaces": ("surfaces",),
    "surface_size": ("surfaces",),
}
_SPLIT_FOLDERS = ("train", "training", "test", "testing", "validation", "valid", "val", "dev")


@dataclass
class DataArguments:
    """
    The dataset, and how it is split.

    Raises:
        InputError: a setting out of range, or one that the chosen dataset does not read.
    """

    dataset: str | None = field(
        default=None,
        metadata={
            "help": "The kind of dataset; recognised where left out: a table by --data_file, a Hub dataset by "
            "--hub_dataset, and in --data_dir a published layout (kolektorsdd, kolektorsdd2, dagm, magnetic_tile, "
            "neu_det) or else imagefolder (one folder per class, optionally below train/ and test/, masks in "
            "ground_truth/). surfaces are generated images.",
            "choices": list(DATASETS),
        },
    )
    data_dir: str | None = field(default=None, metadata={"help": "The folder that holds the images."})
    data_file: str | None = field(
        default=None,
        metadata={
            "help": "table: a .csv, .jsonl, .parquet or .xlsx file; paths relative to --data_dir or its folder."
        },
    )
    hub_dataset: str | None = field(
        default=None, metadata={"help": "hub: the id of the dataset, OWNER/NAME, or a folder like a repository."}
    )
    hub_config: str | None = field(default=None, metadata={"help": "hub: the configuration, where it has several."})
    streaming: bool = field(
        default=False,
        metadata={
            "help": "hub: leave the images in their parquet or WebDataset shards and read them as they are needed, "
            "for sets that fit neither the memory nor the disk."
        },
    )
    image_column: str = field(default="image", metadata={"help": "table, hub: the column of images."})
    label_column: str = field(
        default="label", metadata={"help": "table, hub: the column of labels, words or numbers."}
    )
    mask_column: str | None = field(default=None, metadata={"help": "table, hub: the column of masks."})
    group_column: str | None = field(
        default=None,
        metadata={"help": "table, hub: the column of groups, such as parts; images of one group stay in one split."},
    )
    split_column: str | None = field(
        default=None, metadata={"help": "table: the column of splits: train, test and optionally validation."}
    )
    grade_thresholds: list[float] | None = field(
        default=None, metadata={"help": "table, hub: turn graded labels into classes at these values, ascending."}
    )
    grade_names: list[str] | None = field(
        default=None, metadata={"help": "The names of these classes, one more than there are thresholds."}
    )
    defect_free_label: str | None = field(
        default=None,
        metadata={
            "help": "The class without defects; recognised by its usual names (good, ok, normal, ...) where left out. "
            "none: every class is a defect."
        },
    )
    on_bad_image: str = field(
        default="error",
        metadata={
            "help": "What to do about unusable images: error (all of them named, before any training) or skip.",
            "choices": ["error", "skip"],
        },
    )
    max_image_megapixels: int | None = field(default=None, metadata={"help": MAX_MEGAPIXELS_HELP})
    duplicate_distance: int | None = field(
        default=None,
        metadata={
            "help": "Images whose perceptual hashes differ in at most this many of 256 bits are near-duplicates and "
            "stay in one split; by default 16 (copies, recompressed or resized), 60 for the published layouts where "
            "that was measured."
        },
    )
    num_folds: int = field(
        default=3,
        metadata={"help": "Number of folds, stratified by class, groups kept whole; one of them is the test split."},
    )
    fold: int = field(
        default=0,
        metadata={"help": "The fold held out as test split, from 0; unused where the dataset has a test split."},
    )
    split_seed: int = field(default=0, metadata={"help": "Seed of the folds and of the few-label selection."})
    validation_share: float = field(
        default=0.2,
        metadata={
            "help": "The share of the training images held out to choose the operating point on; 0 trains on all of "
            "them and chooses none. Unused where the dataset has a validation split."
        },
    )
    train_per_class: int | None = field(
        default=None, metadata={"help": "Use only this many training images of each defect class."}
    )
    train_defect_free: int | None = field(
        default=None, metadata={"help": "Use only this many defect-free training images."}
    )
    decode_once: bool = field(
        default=True,
        metadata={
            "help": "Decode and resize the training images once and keep them on disk (3 bytes per pixel) during the "
            "run, instead of decoding them in every epoch."
        },
    )
    train_on_masks: bool = field(
        default=False,
        metadata={"help": "Where a training image has a mask, use it in place of the saliency prior."},
    )
    num_surfaces: int = field(default=600, metadata={"help": "surfaces: number of images to generate."})
    surface_size: int = field(default=96, metadata={"help": "surfaces: side of the images in pixels."})

    def __post_init__(self) -> None:
        check_choices(self, {"on_bad_image": ("error", "skip")})
        if self.dataset is not None:
            check_choices(self, {"dataset": DATASETS})
        self._check_source()
        expand_home(self, "data_dir", "data_file", "hub_dataset")
        self._check_ranges()

    def _check_source(self) -> None:
        """Refuse settings that the dataset does not read: they would silently do nothing."""
        dataset, chosen_by = self.dataset, f"--dataset {self.dataset}"
        if dataset is None:
            implied = {"data_file": "table", "hub_dataset": "hub", "data_dir": "imagefolder"}
            source = next((name for name in implied if vars(self)[name] is not None), None)
            if source is None:
                return
            dataset, chosen_by = implied[source], f"--{source} {vars(self)[source]}"
        defaults = {one.name: one.default for one in fields(self)}
        for name, read_by in _DATASETS_THAT_READ.items():
            value = vars(self)[name]
            if value != defaults[name] and dataset not in read_by:
                shown = " ".join(map(str, value)) if isinstance(value, list) else value
                misplaced = dataset == "hub" and self.hub_dataset is None and name in ("data_dir", "data_file")
                advice = f"give it as --hub_dataset {shown}" if misplaced else "leave one of them out"
                if name == "streaming":
                    shown, advice = "true", "it goes with shards, given as --hub_dataset"
                raise InputError(f"--{name} {shown} has no effect beside {chosen_by}; {advice}.")

    def _check_ranges(self) -> None:
        minima = {
            "num_folds": 2, "split_seed": 0, "train_per_class": 1, "train_defect_free": 1, "surface_size": 32,
            "duplicate_distance": 0,
        }  # fmt: skip
        for name, minimum in minima.items():
            value = vars(self)[name]
            if value is not None and value < minimum:
                raise InputError(f"--{name} {value}: it must be at least {minimum}.")
        check_megapixels(self.max_image_megapixels)
        if not 0 <= self.fold < self.num_folds:
            raise InputError(f"--fold {self.fold}: it must lie in 0..{self.num_folds - 1} (--num_folds).")
        if not 0 <= self.validation_share <= 0.5:
            raise InputError(f"--validation_share {self.validation_share}: it must lie in 0..0.5.")
        if self.duplicate_distance is not None and self.duplicate_distance > MAX_DUPLICATE_DISTANCE:
            raise InputError(
                f"--duplicate_distance {self.duplicate_distance}: it must be at most {MAX_DUPLICATE_DISTANCE}."
            )
        thresholds = self.grade_thresholds or []
        if sorted(set(thresholds)) != thresholds:
            raise InputError(f"--grade_thresholds {' '.join(map(str, thresholds))}: they must be in ascending order.")
        if self.grade_names is not None and not (thresholds and len(set(self.grade_names)) == len(thresholds) + 1):
            raise InputError(
                f"--grade_names: {len(thresholds)} thresholds make {len(thresholds) + 1} classes; name each of them "
                "differently."
            )


def check_megapixels(limit: int | None) -> None:
    """
    Check `--max_image_megapixels`.

    Raises:
        InputError: it is below 1.
    """
    if limit is not None and limit < 1:
        raise InputError(f"--max_image_megapixels {limit}: it must be at least 1.")


def folder_name(folder: Path) -> str:
    """Return the name of a folder of images: the parent's where the last folder is named after a split."""
    is_split = folder.name.lower() in _SPLIT_FOLDERS and folder.parent.name
    return folder.parent.name if is_split else folder.name


__all__ = ["MAX_MEGAPIXELS_HELP", "DataArguments", "check_megapixels", "folder_name"]
