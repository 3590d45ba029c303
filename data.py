"""Folders and published layouts to one schema, and splits that keep groups whole."""

from __future__ import annotations

import hashlib
import io
import logging
import re
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, IterableDataset, Value
from datasets.utils.file_utils import xopen
from PIL import Image as PILImage
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from sklearn.model_selection import StratifiedGroupKFold
from torch.nn import functional as F

from .errors import InputError
from .surfaces import CLASSES, generate_surface


logger = logging.getLogger(__name__)


@dataclass
class DataArguments:
    """What to learn from, and what to hold out."""

    dataset: str = field(
        default="imagefolder",
        metadata={
            "help": "How data_dir is laid out: imagefolder (one folder a class, optionally below train/ and test/), "
            "kolektorsdd, magnetic_tile, neu_det, or surfaces (generated, no data_dir).",
            "choices": ["imagefolder", "kolektorsdd", "magnetic_tile", "neu_det", "surfaces"],
        },
    )
    data_dir: str | None = field(default=None, metadata={"help": "The folder that holds the pictures."})
    defect_free_label: str | None = field(
        default=None,
        metadata={"help": "imagefolder: the class without defects, if there is one. Published layouts know theirs."},
    )
    num_folds: int = field(
        default=3, metadata={"help": "Folds, stratified by class with groups whole; one of them is held out."}
    )
    fold: int = field(default=0, metadata={"help": "The fold held out, from 0. A test/ folder is used instead."})
    split_seed: int = field(default=0, metadata={"help": "Seed of the folds and of the few-label selection."})
    train_per_class: int | None = field(
        default=None, metadata={"help": "Keep this many training pictures of each defect class (the rest is unused)."}
    )
    train_defect_free: int | None = field(
        default=None, metadata={"help": "Keep this many defect-free training pictures."}
    )
    train_on_masks: bool = field(
        default=False,
        metadata={"help": "Where a training picture has a mask, use it in place of the saliency prior."},
    )
    num_surfaces: int = field(default=600, metadata={"help": "surfaces: how many pictures to generate."})
    surface_size: int = field(default=96, metadata={"help": "surfaces: side of the pictures in pixels."})

    def __post_init__(self) -> None:
        least = {"num_folds": 2, "split_seed": 0, "train_per_class": 1, "train_defect_free": 1, "surface_size": 32}
        for name, minimum in least.items():
            value = vars(self)[name]
            if value is not None and value < minimum:
                raise InputError(f"--{name} {value}: it must be at least {minimum}.")
        if not 0 <= self.fold < self.num_folds:
            raise InputError(f"--fold {self.fold}: it must lie in 0..{self.num_folds - 1} (--num_folds).")


def load_defect_dataset(args: DataArguments) -> DatasetDict:
    """
    Read what `args` names into `train` and `test` splits of one schema.

    Columns: `image` (Image), `label` (ClassLabel), `mask` (Image or None; non-zero where the defect is), `group`
    (string: what never straddles a split; pictures of equal bytes share one), `file_name` and `digest` (strings). The
    training split has masks only with `args.train_on_masks`.

    Raises:
        InputError: nothing usable there; the message names the folder, the files or the argument.
    """
    if args.dataset == "surfaces":
        pictures = _read_surfaces(args.num_surfaces, args.surface_size, args.split_seed)
    else:
        if args.data_dir is None:
            raise InputError(f"--dataset {args.dataset} needs --data_dir.")
        root = Path(args.data_dir)
        if not root.is_dir():
            raise InputError(f"--data_dir {root}: there is no such folder.")
        readers = {
            "imagefolder": _read_image_folder,
            "kolektorsdd": _read_kolektorsdd,
            "magnetic_tile": _read_magnetic_tile,
            "neu_det": _read_neu_det,
        }
        pictures = readers[args.dataset](root)

    defect_free = defect_free_label(args)
    splits = DatasetDict({name: _finish(split) for name, split in pictures.items()})
    names = splits["train"].features["label"].names
    if len(names) < 2:
        raise InputError(f"--data_dir {args.data_dir}: one class only ({names[0]}); a classifier needs two or more.")
    if defect_free is not None and defect_free not in names:
        raise InputError(f"--defect_free_label {defect_free}: no such class; there are {', '.join(names)}.")
    if "test" not in splits:
        splits = _hold_out_fold(splits["train"], args)
    shared = set(splits["train"]["digest"]) & set(splits["test"]["digest"])
    if shared:  # a split that was given is kept as it is
        logger.warning("%d pictures of the test split are in the training split too.", len(shared))
    splits["train"] = few_labels(
        splits["train"], args.train_per_class, args.train_defect_free, defect_free, args.split_seed
    )
    for name, split in splits.items():
        missing = sorted(set(names) - {names[label] for label in split["label"]})
        if missing:
            raise InputError(f"The {name} split has no picture of {', '.join(missing)}: try another --split_seed.")
    if not args.train_on_masks:
        splits["train"] = _without_masks(splits["train"])
    return splits


def defect_free_label(args: DataArguments) -> str | None:
    """The class without defects: the layout's own where it has one."""
    published = {"kolektorsdd": "good", "magnetic_tile": "Free", "surfaces": "good"}
    return published.get(args.dataset, args.defect_free_label)


def picture_digests(dataset: Dataset) -> list[str]:
    """
    SHA-1 of every picture's bytes, every picture and mask having been decoded once.

    Raises:
        InputError: pictures or masks that cannot be read or have more than 8 bits a channel, all of them named.
    """
    digests, unreadable = [], []
    for row in undecoded(dataset.select_columns(["image", "mask", "file_name"])):
        for column, name in (("image", row["file_name"]), ("mask", f"the mask of {row['file_name']}")):
            if row[column] is None:
                continue
            try:
                content = _content(row[column])
                with PILImage.open(io.BytesIO(content)) as picture:
                    picture.load()
                    if picture.mode.startswith(("I", "F")):
                        unreadable.append(f"{name} (mode {picture.mode}: convert it to 8 bits)")
            except (OSError, SyntaxError, ValueError, PILImage.DecompressionBombError):  # what Pillow raises
                unreadable.append(name)
                content = b""
            if column == "image":
                digests.append(hashlib.sha1(content).hexdigest())
    if unreadable:
        raise InputError(f"{len(unreadable)} pictures cannot be read, mend or remove them: {', '.join(unreadable)}.")
    return digests


def undecoded(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """The data set with its pictures and masks as `{"bytes", "path"}`, to be decoded by [`decoded`]."""
    for column in ("image", "mask"):
        if column in dataset.features:
            dataset = dataset.cast_column(column, Image(decode=False))
    return dataset


def decoded(encoded: dict[str, Any] | None) -> PILImage.Image | None:
    """The picture of an undecoded value."""
    return None if encoded is None else Image().decode_example(encoded)


def fingerprint(dataset: Dataset) -> str:
    """Changes whenever a picture, the name of its class, its mask or the order does."""
    rows = undecoded(dataset.select_columns(["digest", "label", "mask"]))
    return rows_digest(rows[:], dataset.features["label"].names)


def rows_digest(rows: dict[str, list[Any]], names: list[str]) -> str:
    """
    A SHA-1 of rows' pictures, the names of their classes, their masks and their order.

    Args:
        rows: columns of the data contract, undecoded; a `digest` stands for the picture where there is one.
        names: of the classes.
    """
    whole = hashlib.sha1()
    pictures = digests_of(rows)
    masks = rows.get("mask", [None] * len(pictures))
    for picture, label, mask in zip(pictures, rows["label"], masks, strict=True):
        whole.update(repr((picture, names[label], mask and _digest(mask))).encode())
    return whole.hexdigest()


def group_folds(pictures: Dataset, folds: int, seed: int, option: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """
    Indices `(rest, held out)` of each of `folds` folds, stratified by class, groups whole.

    Raises:
        InputError: a class has fewer groups than there are folds; the message names `option`.
    """
    labels = np.asarray(pictures["label"])
    names = pictures.features["label"].names
    groups_of = {
        name: len({g for g, k in zip(pictures["group"], labels, strict=True) if names[k] == name}) for name in names
    }
    scarce = [f"{name} ({count})" for name, count in groups_of.items() if count < folds]
    if scarce:
        raise InputError(f"{option} {folds}: too few independent pictures of {', '.join(scarce)}.")
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return list(splitter.split(labels, labels, pictures["group"]))


def digests_of(rows: dict[str, list[Any]]) -> list[str]:
    """Each picture's SHA-1, of undecoded rows: their `digest` where they have one."""
    return rows["digest"] if "digest" in rows else [_digest(image) for image in rows["image"]]


def mask_array(mask: PILImage.Image | None, size: tuple[int, int]) -> np.ndarray | None:
    """A mask as `(H, W)` bool at `size = (H, W)`, or None; masks stored as grey count from half-way up."""
    if mask is None:
        return None
    height, width = size
    return np.asarray(mask.convert("L").resize((width, height), PILImage.Resampling.BOX)) > 127


def mask_on_grid(masks: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Masks `(N, H, W)` bool on a coarser grid, `(N, h, w)` bool: a cell is defect where any of its pixels is."""
    pixels = torch.from_numpy(masks).float().unsqueeze(1)
    return F.adaptive_max_pool2d(pixels, tuple(grid))[:, 0].numpy() > 0


def _read_image_folder(root: Path) -> dict[str, Dataset]:
    """One folder a class, in `root` itself or in `root/train` and `root/test`; pictures at any depth within."""
    train = root / "train" if (root / "train").is_dir() else root
    splits = {"train": train} | ({"test": root / "test"} if train != root and (root / "test").is_dir() else {})
    names = sorted(path.name for path in train.iterdir() if path.is_dir() and not path.name.startswith("."))
    suffixes = PILImage.registered_extensions()
    datasets = {}
    for split, folder in splits.items():
        found = [
            (path, name)
            for name in names
            for path in sorted((folder / name).rglob("*"))
            if path.suffix.lower() in suffixes and not path.name.startswith(".") and not path.is_dir()
        ]
        if not found:
            raise InputError(f"--data_dir {folder}: there is no picture in a folder of a class in it.")
        empty = sorted(set(names) - {name for _, name in found})
        if empty:
            raise InputError(f"--data_dir {folder}: there is no picture in {', '.join(empty)}.")
        if split == "test":
            others = sorted(path.name for path in folder.iterdir() if path.is_dir() and path.name not in names)
            if others:
                raise InputError(f"--data_dir {folder}: {', '.join(others)} is no class of {train}.")
        datasets[split] = _dataset(
            images=[str(path) for path, _ in found],
            labels=[name for _, name in found],
            names=names,
            masks=[None] * len(found),
            groups=[str(path) for path, _ in found],
            file_names=[str(path.relative_to(root)) for path, _ in found],
        )
    return datasets


def _read_kolektorsdd(root: Path) -> dict[str, Dataset]:
    """`kosNN/PartM.jpg` with `PartM_label.bmp`; defective where the mask is not empty; one item is one group."""
    images = sorted(root.glob("kos*/Part*.jpg"), key=lambda path: (path.parent.name, _number(path.stem)))
    if not images:
        raise InputError(f"--data_dir {root}: no kosNN/PartM.jpg in it, so this is not KolektorSDD.")
    masks = [path.with_name(f"{path.stem}_label.bmp") for path in images]
    _require(masks)
    labels = ["defect" if _not_empty(mask) else "good" for mask in masks]
    return {
        "train": _dataset(
            images=[str(path) for path in images],
            labels=labels,
            names=["good", "defect"],
            masks=[str(path) for path in masks],
            groups=[path.parent.name for path in images],
            file_names=[str(path.relative_to(root)) for path in images],
        )
    }


def _read_magnetic_tile(root: Path) -> dict[str, Dataset]:
    """
    `MT_Class/Imgs/expK_num_N.jpg` with a `.png` mask.

    The exposures of one tile were taken one after another: their N lie close together. So a group goes on, over all
    classes, as long as the next N is at most 300 away.
    """
    images = sorted(root.glob("MT_*/Imgs/*.jpg"))
    if not images:
        raise InputError(f"--data_dir {root}: no MT_*/Imgs/*.jpg in it, so these are not the magnetic tiles.")
    masks = [path.with_suffix(".png") for path in images]
    _require(masks)
    labels = [path.parent.parent.name.removeprefix("MT_") for path in images]
    return {
        "train": _dataset(
            images=[str(path) for path in images],
            labels=labels,
            names=sorted(set(labels), key=lambda name: (name != "Free", name)),
            masks=[str(path) for path in masks],
            groups=_runs_of_numbers([int(path.stem.rpartition("_")[2]) for path in images], gap=300),
            file_names=[str(path.relative_to(root)) for path in images],
        )
    }


def _read_neu_det(root: Path) -> dict[str, Dataset]:
    """`IMAGES/class_N.jpg`, some with a mask in `MASKS/class_N.png`; no class without defects, no groups known."""
    images = sorted((root / "IMAGES").glob("*_*.jpg"), key=lambda path: (_class_of(path), _number(path.stem)))
    if not images:
        raise InputError(f"--data_dir {root}: no IMAGES/class_N.jpg in it, so this is not NEU-DET.")
    masks = [root / "MASKS" / f"{path.stem}.png" for path in images]
    return {
        "train": _dataset(
            images=[str(path) for path in images],
            labels=[_class_of(path) for path in images],
            names=sorted({_class_of(path) for path in images}),
            masks=[str(mask) if mask.is_file() else None for mask in masks],
            groups=[path.stem for path in images],
            file_names=[str(path.relative_to(root)) for path in images],
        )
    }


def _class_of(path: Path) -> str:
    return path.stem.rpartition("_")[0]


def _read_surfaces(count: int, size: int, seed: int) -> dict[str, Dataset]:
    """Half of them good, the other half shared by the defects."""
    labels = [CLASSES[0] if index % 2 == 0 else CLASSES[1 + index // 2 % 3] for index in range(count)]
    surfaces = [generate_surface(label, size, seed * 1_000_003 + index) for index, label in enumerate(labels)]
    return {
        "train": _dataset(
            images=[_png(surface.image) for surface in surfaces],
            labels=labels,
            names=list(CLASSES),
            masks=[_png(surface.mask.astype(np.uint8) * 255) for surface in surfaces],
            groups=[f"surface-{index}" for index in range(count)],
            file_names=[f"surface-{index}.png" for index in range(count)],
        )
    }


def _dataset(
    *,
    images: list[Any],
    labels: list[str],
    names: list[str],
    masks: list[Any],
    groups: list[str],
    file_names: list[str],
) -> Dataset:
    features = Features(
        image=Image(), label=ClassLabel(names=names), mask=Image(), group=Value("string"), file_name=Value("string")
    )
    columns = {"image": images, "label": labels, "mask": masks, "group": groups, "file_name": file_names}
    return Dataset.from_dict(columns, features=features)


def _finish(pictures: Dataset) -> Dataset:
    """Check every picture, note its digest, and put pictures of equal bytes in one group."""
    digests = picture_digests(pictures)
    groups = _keep_duplicates_together(pictures["group"], digests)
    return pictures.remove_columns("group").add_column("group", groups).add_column("digest", digests)


def _keep_duplicates_together(groups: list[str], digests: list[str]) -> list[str]:
    """Groups that hold a picture of equal bytes become one, named after its first."""
    names, group_codes = np.unique(groups, return_inverse=True)
    hashes, digest_codes = np.unique(digests, return_inverse=True)
    nodes = len(names) + len(hashes)
    edges = (np.ones(len(groups)), (group_codes, len(names) + digest_codes))
    _, component = connected_components(coo_array(edges, shape=(nodes, nodes)), directed=False)
    first_of = {}
    for name, code in zip(names.tolist(), component[: len(names)].tolist(), strict=True):
        if first_of.setdefault(code, name) != name:
            logger.warning("%s and %s hold the same picture: kept in one split.", first_of[code], name)
    return [first_of[component[code]] for code in group_codes]


def _hold_out_fold(pictures: Dataset, args: DataArguments) -> DatasetDict:
    train, test = group_folds(pictures, args.num_folds, args.split_seed, "--num_folds")[args.fold]
    return DatasetDict(train=pictures.select(train), test=pictures.select(test))


def few_labels(
    pictures: Dataset, per_class: int | None, defect_free_count: int | None, defect_free: str | None, seed: int
) -> Dataset:
    """
    The first so many of each class in a random order fixed by the seed, so that larger budgets contain smaller ones.

    Args:
        pictures: to choose from.
        per_class: how many of each class, None for all.
        defect_free_count: how many of the defect-free class, None for all.
        defect_free: its name, or None where there is none.
        seed: of the order.
    """
    names, labels = pictures.features["label"].names, pictures["label"]
    taken = dict.fromkeys(names, 0)
    keep = []
    for index in np.random.default_rng(seed).permutation(len(pictures)).tolist():
        name = names[labels[index]]
        limit = defect_free_count if name == defect_free else per_class
        if limit is None or taken[name] < limit:
            taken[name] += 1
            keep.append(index)
    return pictures.select(sorted(keep))


def _without_masks(pictures: Dataset) -> Dataset:
    unmarked = pictures.remove_columns("mask").add_column("mask", [None] * len(pictures), feature=Image())
    return unmarked.select_columns(pictures.column_names)


def _not_empty(mask: Path) -> bool:
    try:
        return np.asarray(PILImage.open(mask).convert("L")).any()
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"{mask}: this mask cannot be read.") from error


def _digest(encoded: dict[str, Any]) -> str:
    return hashlib.sha1(_content(encoded)).hexdigest()


def _content(encoded: dict[str, Any]) -> bytes:
    """The bytes of an undecoded `Image` value."""
    if encoded["bytes"]:
        return encoded["bytes"]
    with xopen(encoded["path"], "rb") as file:  # in an archive or on the Hub too
        return file.read()


def _require(paths: list[Path]) -> None:
    missing = [str(path) for path in paths if not path.is_file()]
    if missing:
        raise InputError(f"{len(missing)} masks are missing, the first is {missing[0]}.")


def _runs_of_numbers(numbers: list[int], gap: int) -> list[str]:
    """For each number the run it belongs to, named after its first; a run ends where the next is over `gap` away."""
    ordered = sorted(set(numbers))
    run_of = {ordered[0]: ordered[0]}
    for before, number in pairwise(ordered):
        run_of[number] = run_of[before] if number - before <= gap else number
    return [f"tile-{run_of[number]}" for number in numbers]


def _number(text: str) -> int:
    return int(re.sub(r"\D", "", text) or 0)


def _png(pixels: np.ndarray) -> dict[str, Any]:
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


__all__ = [
    "DataArguments",
    "decoded",
    "digests_of",
    "defect_free_label",
    "few_labels",
    "fingerprint",
    "group_folds",
    "load_defect_dataset",
    "mask_array",
    "mask_on_grid",
    "picture_digests",
    "rows_digest",
    "undecoded",
]
