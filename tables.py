"""Tables of pictures and labels to the data contract: CSV, JSON lines, parquet, and data sets of the Hub."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict, Image, Value, load_dataset
from datasets import config as dataset_config
from datasets.exceptions import DatasetGenerationError
from huggingface_hub.constants import HF_HUB_CACHE

from .errors import InputError
from .schema import defect_dataset, undecoded


_FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}
_VALIDATION = ("validation", "valid", "val", "dev")


@dataclass(frozen=True)
class Columns:
    """What the columns of a table are called, and how its labels are read."""

    image: str = "image"
    label: str = "label"
    mask: str | None = None
    group: str | None = None
    split: str | None = None
    thresholds: Sequence[float] = ()
    names: Sequence[str] = ()


def read_table(path: Path, root: Path, columns: Columns) -> dict[str, Dataset]:
    """
    A `.csv`, `.jsonl` (or `.json`) or `.parquet` file, a row a picture, paths relative to `root`.

    Raises:
        InputError: no such file or column, pictures outside of `root` or listed twice, labels that cannot be read.
    """
    if path.suffix.lower() not in _FORMATS:
        raise InputError(f"--data_file {path}: it must end in {', '.join(_FORMATS)}.")
    if not path.is_file():
        raise InputError(f"--data_file {path}: there is no such file.")
    where = f"--data_file {path}"
    if path.stat().st_size == 0:
        raise InputError(f"{where}: it has no rows.")
    try:
        # "NA" and "None" are names like any other; only an empty cell is empty.
        reading = {"keep_default_na": False, "na_values": [""]} if path.suffix.lower() == ".csv" else {}
        table = load_dataset(_FORMATS[path.suffix.lower()], data_files=str(path), split="train", **reading)
    except (DatasetGenerationError, ValueError) as error:
        raise InputError(f"--data_file {path}: it cannot be read. {_cause(error)}") from error
    _require_columns(table, columns, where)
    if not len(table):
        raise InputError(f"{where}: it has no rows.")
    files = [_within(root, value, f"{where}, row {row + 1}") for row, value in enumerate(table[columns.image])]
    twice = [str(file) for file, count in Counter(files).items() if count > 1]
    if twice:
        raise InputError(f"{where}: listed more than once: {', '.join(twice)}.")
    masks = [None] * len(files)
    if columns.mask is not None:
        masks = [
            str(_within(root, value, f"{where}, row {row + 1}")) if value else None
            for row, value in enumerate(table[columns.mask])
        ]
    labels, names = _class_names(table, columns, where)
    file_names = [str(file.relative_to(root.resolve())) for file in files]
    whole = defect_dataset(
        images=[str(file) for file in files],
        labels=labels,
        names=names,
        masks=masks,
        groups=_groups(table, columns, file_names),
        file_names=file_names,
    )
    return _parted(whole, None if columns.split is None else table[columns.split], where)


def read_hub_dataset(name: str, config: str | None, columns: Columns) -> dict[str, Dataset]:
    """
    A data set of the Hub by its id (or a folder that `datasets.load_dataset` reads); its own splits where it has
    several; a validation split is the test split where there is no other.

    Raises:
        InputError: no such data set or column, or labels that cannot be read.
    """
    where = f"--hub_dataset {name}"
    try:
        loaded = load_dataset(name, config)
    except Exception as error:  # whatever reading a stranger's repository may raise, the user is told what
        raise InputError(f"{where}: it cannot be loaded. {_cause(error)}") from error
    tables = loaded if isinstance(loaded, DatasetDict) else DatasetDict(train=loaded)
    for split, table in tables.items():
        _require_columns(table, columns, f"{where}, split {split}")
        if not isinstance(table.features[columns.image], Image):
            raise InputError(
                f"{where}: column {columns.image!r} holds no pictures but {table.features[columns.image]}."
            )
    first = "train" if "train" in tables else next(iter(tables))
    _, names = _class_names(tables[first], columns, where)
    between = next((split for split in _VALIDATION if split in tables and split != first), None)
    parts = {"train": first, "validation": between, "test": "test" if "test" in tables and first != "test" else None}
    if parts["test"] is None:  # judged on what there is
        parts |= {"test": between, "validation": None}
    return {
        part: _from_hub(tables[split], split, columns, names, name)
        for part, split in parts.items()
        if split is not None
    }


def _from_hub(table: Dataset, split: str, columns: Columns, names: list[str], hub_dataset: str) -> Dataset:
    where = f"--hub_dataset {hub_dataset}"
    labels, there = _class_names(table, columns, where)
    unknown = sorted(set(there) - set(names))
    if unknown:
        raise InputError(f"{where}: split {split} has {', '.join(unknown)}, which train has not.")
    kept = {columns.image: "image"} | ({columns.mask: "mask"} if columns.mask else {})
    grouping = table
    table = undecoded(table.select_columns(list(kept)).rename_columns(kept))
    file_names = [f"{split}/{row}" for row in range(len(table))]
    paths = pc.struct_field(table.with_format("arrow")["image"][:], "path").to_pylist()
    file_names = [f"{at}-{Path(path).name}" if path else at for at, path in zip(file_names, paths, strict=True)]
    dataset = table.cast_column("image", Image()).add_column("file_name", file_names)
    dataset = dataset.add_column("group", _groups(grouping, columns, file_names))
    indices = [names.index(label) for label in labels]
    dataset = dataset.add_column("label", indices).cast_column("label", ClassLabel(names=names))
    if columns.mask is None:
        dataset = dataset.add_column("mask", [None] * len(dataset), feature=Image())
    else:
        dataset = dataset.cast_column("mask", Image())
    _check_own_files(dataset, hub_dataset, f"{where}, split {split}")
    return dataset.select_columns(["image", "label", "mask", "group", "file_name"])


def _check_own_files(dataset: Dataset, hub_dataset: str, where: str) -> None:
    """
    A stranger's table may name any file of this machine; only what came with it is opened.

    Raises:
        InputError: a picture or mask lies elsewhere.
    """
    of_the_hub = Path(HF_HUB_CACHE) / f"datasets--{hub_dataset.replace('/', '--')}"
    # Downloads are called by digests that nobody guesses.
    roots = [root.resolve() for root in (Path(hub_dataset), of_the_hub, Path(dataset_config.DOWNLOADED_DATASETS_PATH))]
    rows = undecoded(dataset).with_format("arrow")
    for column in ("image", "mask"):
        stored = rows[column][:]
        named = pc.and_(pc.is_valid(stored), pc.is_null(pc.struct_field(stored, "bytes")))
        for row in np.flatnonzero(named.to_numpy()).tolist():
            path = stored[row]["path"].as_py()
            if not path:
                raise InputError(f"{where}, row {row + 1}: {column} is empty.")
            file = Path(path.rpartition("::")[2] if path.startswith("zip://") else path)  # a member of an archive
            # A relative one would be opened from wherever this runs, an address from anywhere.
            leads_to = _resolved(file) if file.is_absolute() else None
            if leads_to is None or not any(leads_to.is_relative_to(root) for root in roots):
                raise InputError(
                    f"{where}, row {row + 1}: {column} {path} is no file of this data set; a table of your own that "
                    "names files is read with --dataset table."
                )


def _resolved(file: Path) -> Path | None:
    try:
        return file.resolve()
    except (OSError, RuntimeError):  # a name longer than any file's, or links in a circle
        return None


def _groups(table: Dataset, columns: Columns, file_names: list[str]) -> list[str]:
    """Each row's group; a row without one is by itself."""
    if columns.group is None:
        return file_names
    values = zip(table[columns.group], file_names, strict=True)
    return [name if value is None or value == "" else str(value) for value, name in values]


def _parted(whole: Dataset, splits: Sequence[Any] | None, where: str) -> dict[str, Dataset]:
    if splits is None:
        return {"train": whole}
    there = sorted({str(split) for split in splits})
    between = [name for name in there if name in _VALIDATION]
    tested = [name for name in there if name not in ("train", *between)]
    if not tested and between:  # judged on what there is
        tested, between = between, []
    if "train" not in there or len(tested) != 1 or len(between) > 1:
        told = ", ".join(there)
        raise InputError(f"{where}: the split column must say train, test and maybe validation; it says {told}.")
    called = {"train": ["train"], "validation": between, "test": tested}
    return {
        name: whole.select([at for at, one in enumerate(splits) if str(one) == words[0]])
        for name, words in called.items()
        if words
    }


def _require_columns(table: Dataset, columns: Columns, where: str) -> None:
    options = {
        "--image_column": columns.image,
        "--label_column": columns.label,
        "--mask_column": columns.mask,
        "--group_column": columns.group,
        "--split_column": columns.split,
    }
    for option, name in options.items():
        if name is not None and name not in table.column_names:
            raise InputError(
                f"{where}: there is no column {name!r} ({option}); it has {', '.join(table.column_names)}."
            )


def _class_names(table: Dataset, columns: Columns, where: str) -> tuple[list[str], list[str]]:
    """The class of every row, and all classes: numeric ones in their order, others by the alphabet."""
    feature, values = table.features[columns.label], table[columns.label]
    missing = [str(row + 1) for row, value in enumerate(values) if value in (None, "") or value != value]
    if missing:
        raise InputError(
            f"{where}: no {columns.label!r} in row {', '.join(missing[:20])}{' ...' * (len(missing) > 20)}."
        )
    if columns.thresholds:
        return _graded(values, columns, where)
    if isinstance(feature, ClassLabel):
        unlabelled = [str(row + 1) for row, value in enumerate(values) if not 0 <= value < len(feature.names)]
        if unlabelled:
            raise InputError(f"{where}: no class in row {', '.join(unlabelled[:20])}; choose a split that has labels.")
        return [feature.names[value] for value in values], list(feature.names)
    if isinstance(feature, Value) and feature.dtype.startswith("float"):
        if any(not float(value).is_integer() for value in values):
            raise InputError(
                f"{where}: {columns.label!r} holds grades such as {values[0]}: part them by --grade_thresholds."
            )
        values = [int(value) for value in values]
    if all(isinstance(value, Integral) and not isinstance(value, bool) for value in values):
        return [str(value) for value in values], [str(value) for value in sorted(set(values))]
    if all(isinstance(value, (str, bool)) for value in values):
        return [str(value).strip() for value in values], sorted({str(value).strip() for value in values})
    raise InputError(f"{where}: {columns.label!r} holds {feature}; a label is a word or a number.")


def _graded(values: Sequence[Any], columns: Columns, where: str) -> tuple[list[str], list[str]]:
    """Classes of grades: below the first threshold, from it on to the next, and so on."""
    if not all(isinstance(value, Real) and not isinstance(value, bool) for value in values):
        raise InputError(f"{where}: --grade_thresholds part numbers, and {columns.label!r} holds {values[0]!r}.")
    limits = list(columns.thresholds)
    names = list(columns.names) or [
        f"below {limits[0]:g}",
        *(f"{low:g} to {high:g}" for low, high in pairwise(limits)),
        f"from {limits[-1]:g}",
    ]
    return [names[sum(value >= limit for limit in limits)] for value in values], names


def _within(root: Path, value: Any, where: str) -> Path:
    """The file that a table names, which must lie in `root`, links in it followed by name only."""
    if not isinstance(value, str) or not value:
        raise InputError(f"{where}: {value!r} is no path of a picture.")
    root = root.resolve()
    lexical = (root / value).parent
    try:
        file = lexical.resolve() / Path(value).name if lexical.exists() else root / value
    except OSError as error:  # a name longer than any file's
        raise InputError(f"{where}: {value[:80]} ... is no path of a picture. {error.strerror}.") from error
    if not file.is_relative_to(root) or ".." in file.relative_to(root).parts:
        raise InputError(f"{where}: {value} lies outside of {root}; name another --data_dir or move it.")
    return file


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:500]


__all__ = ["Columns", "read_hub_dataset", "read_table"]
