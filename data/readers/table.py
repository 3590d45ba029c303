"""Reader of tables: CSV, JSON lines and parquet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Value, load_dataset
from datasets.exceptions import DatasetGenerationError

from ...errors import InputError
from ..schema import defect_dataset


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
    A `.csv`, `.jsonl` (or `.json`) or `.parquet` file, a row an image, paths relative to `root`.

    Raises:
        InputError: no such file or column, images outside of `root` or listed twice, labels that cannot be read.
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
        raise InputError(f"--data_file {path}: it cannot be read. {root_cause(error)}") from error
    _require_columns(table, columns, where)
    if not len(table):
        raise InputError(f"{where}: it has no rows.")
    files = [_resolve_inside(root, value, f"{where}, row {row + 1}") for row, value in enumerate(table[columns.image])]
    twice = [str(file) for file, count in Counter(files).items() if count > 1]
    if twice:
        raise InputError(f"{where}: listed more than once: {', '.join(twice)}.")
    masks = [None] * len(files)
    if columns.mask is not None:
        masks = [
            str(_resolve_inside(root, value, f"{where}, row {row + 1}")) if value else None
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
    return _split_by_column(whole, None if columns.split is None else table[columns.split], where)


def _groups(table: Dataset, columns: Columns, file_names: list[str]) -> list[str]:
    """Each row's group; a row without one is by itself."""
    if columns.group is None:
        return file_names
    values = zip(table[columns.group], file_names, strict=True)
    return [name if value is None or value == "" else str(value) for value, name in values]


def _split_by_column(whole: Dataset, splits: Sequence[Any] | None, where: str) -> dict[str, Dataset]:
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
        return _grades_to_classes(values, columns, where)
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


def _grades_to_classes(values: Sequence[Any], columns: Columns, where: str) -> tuple[list[str], list[str]]:
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


def _resolve_inside(root: Path, value: Any, where: str) -> Path:
    """The file that a table names, which must lie in `root`, links in it followed by name only."""
    if not isinstance(value, str) or not value:
        raise InputError(f"{where}: {value!r} is no path of an image.")
    root = root.resolve()
    lexical = (root / value).parent
    try:
        file = lexical.resolve() / Path(value).name if lexical.exists() else root / value
    except OSError as error:  # a name longer than any file's
        raise InputError(f"{where}: {value[:80]} ... is no path of an image. {error.strerror}.") from error
    if not file.is_relative_to(root) or ".." in file.relative_to(root).parts:
        raise InputError(f"{where}: {value} lies outside of {root}; name another --data_dir or move it.")
    return file


def root_cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:500]


__all__ = ["Columns", "read_table"]
