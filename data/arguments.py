"""Arguments that name a dataset and its splits."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import InputError, check_choices
from .readers.layouts import LAYOUTS


DATASETS = ("imagefolder", *LAYOUTS, "table", "hub", "surfaces")
MAX_DUPLICATE_DISTANCE = 127  # of 256 bits: unlike images differ in about half


@dataclass
class DataArguments:
    """What to learn from, and what to hold out."""

    dataset: str = field(
        default="imagefolder",
        metadata={
            "help": "How the images come: imagefolder (a folder a class, maybe below train/ and test/; masks in "
            "ground_truth/), table (--data_file), hub (--hub_dataset), surfaces (generated), or a published layout in "
            "data_dir: kolektorsdd, kolektorsdd2, dagm, magnetic_tile, neu_det.",
            "choices": list(DATASETS),
        },
    )
    data_dir: str | None = field(default=None, metadata={"help": "The folder that holds the images."})
    data_file: str | None = field(
        default=None,
        metadata={"help": "table: a .csv, .jsonl or .parquet file; its paths are relative to data_dir or its folder."},
    )
    hub_dataset: str | None = field(default=None, metadata={"help": "hub: the id of a dataset, OWNER/NAME."})
    hub_config: str | None = field(default=None, metadata={"help": "hub: the configuration, where it has several."})
    image_column: str = field(default="image", metadata={"help": "table, hub: the column of images."})
    label_column: str = field(
        default="label", metadata={"help": "table, hub: the column of labels, words or numbers."}
    )
    mask_column: str | None = field(default=None, metadata={"help": "table, hub: the column of masks."})
    group_column: str | None = field(
        default=None, metadata={"help": "table, hub: the column that tells which images are of one part."}
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
            "help": "What to do about images that cannot be used: error (all of them named, before any training) or "
            "skip (named in a warning).",
            "choices": ["error", "skip"],
        },
    )
    duplicate_distance: int | None = field(
        default=None,
        metadata={
            "help": "Images whose perceptual hashes differ in at most so many of 256 bits never straddle a split; "
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
            "help": "Hold so much of the training images out (one of equal parts) to choose the operating point "
            "on; 0 trains on all of them and chooses none. A validation/ folder or split is used instead."
        },
    )
    train_per_class: int | None = field(
        default=None, metadata={"help": "Keep this many training images of each defect class (the rest is unused)."}
    )
    train_defect_free: int | None = field(
        default=None, metadata={"help": "Keep this many defect-free training images."}
    )
    decode_once: bool = field(
        default=True,
        metadata={
            "help": "Keep the training images decoded and resized while a run lasts (3 bytes a pixel), instead of "
            "decoding them in every epoch."
        },
    )
    train_on_masks: bool = field(
        default=False,
        metadata={"help": "Where a training image has a mask, use it in place of the saliency prior."},
    )
    num_surfaces: int = field(default=600, metadata={"help": "surfaces: how many images to generate."})
    surface_size: int = field(default=96, metadata={"help": "surfaces: side of the images in pixels."})

    def __post_init__(self) -> None:
        check_choices(self, {"dataset": DATASETS, "on_bad_image": ("error", "skip")})
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
        if self.duplicate_distance is not None and self.duplicate_distance > MAX_DUPLICATE_DISTANCE:
            raise InputError(
                f"--duplicate_distance {self.duplicate_distance}: it must be at most {MAX_DUPLICATE_DISTANCE}."
            )
        thresholds = self.grade_thresholds or []
        if sorted(set(thresholds)) != thresholds:
            raise InputError(f"--grade_thresholds {' '.join(map(str, thresholds))}: they must ascend.")
        if self.grade_names is not None and not (thresholds and len(set(self.grade_names)) == len(thresholds) + 1):
            raise InputError(
                f"--grade_names: {len(thresholds)} thresholds make {len(thresholds) + 1} different classes."
            )


__all__ = ["DataArguments"]
