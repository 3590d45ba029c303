"""Reader of tables: CSV, JSON lines and parquet."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError

from ...errors import InputError
from ..schema import defect_dataset
from .columns import VALIDATION_NAMES, Columns, read_groups, read_labels, require_columns, root_cause
from .source import SourceDataset


_FORMATS = {".csv": "csv", ".json": "json", ".jsonl": "json", ".parquet": "parquet"}


def read_table(path: Path, root: Path, columns: Columns) -> SourceDataset:
    """
    Read a `.csv`, `.jsonl` (or `.json`) or `.parquet` file with one image per row, paths relative to `root`.

    Raises:
        InputError: no such file or column, images outside of `root` or listed twice, or labels that cannot be read.
    """
    source = f"--data_file {path}"
    table = _load_table(path, source)
    require_columns(table, columns, source)
    if not len(table):
        raise InputError(f"{source}: it has no rows.")
    files = [_resolve_inside(root, value, f"{source}, row {row}") for row, value in enumerate(table[columns.image], 1)]
    repeated = [str(file) for file, count in Counter(files).items() if count > 1]
    if repeated:
        raise InputError(f"{source}: listed more than once: {', '.join(repeated)}.")
    masks = [None] * len(files)
    if columns.mask is not None:
        masks = [
            str(_resolve_inside(root, value, f"{source}, row {row}")) if value else None
            for row, value in enumerate(table[columns.mask], 1)
        ]
    labels, names = read_labels(table, columns, source)
    file_names = [str(file.relative_to(root.resolve())) for file in files]
    rows = defect_dataset(
        images=[str(file) for file in files],
        labels=labels,
        names=names,
        masks=masks,
        groups=read_groups(table, columns, file_names),
        file_names=file_names,
    )
    splits = {"train": rows} if columns.split is None else _split_rows(rows, table[columns.split], source)
    return SourceDataset(splits, source)


def _load_table(path: Path, source: str) -> Dataset:
    if path.suffix.lower() not in _FORMATS:
        raise InputError(f"{source}: its name must end in {', '.join(_FORMATS)}.")
    if not path.is_file():
        raise InputError(f"{source}: there is no such file.")
    if path.stat().st_size == 0:
        raise InputError(f"{source}: it has no rows.")
    # "NA" and "None" are names like any other; only an empty cell is empty.
    options = {"keep_default_na": False, "na_values": [""]} if path.suffix.lower() == ".csv" else {}
    try:
        return load_dataset(_FORMATS[path.suffix.lower()], data_files=str(path), split="train", **options)
    except (DatasetGenerationError, ValueError) as error:
        raise InputError(f"{source}: it cannot be read. {root_cause(error)}") from error


def _split_rows(rows: Dataset, split_values: Sequence[Any], source: str) -> dict[str, Dataset]:
    found = sorted({str(value) for value in split_values})
    validation = [name for name in found if name in VALIDATION_NAMES]
    test = [name for name in found if name not in ("train", *validation)]
    if not test and validation:  # the only split held out is the test split
        test, validation = validation, []
    if "train" not in found or len(test) != 1 or len(validation) > 1:
        raise InputError(
            f"{source}: the split column must hold train, test and optionally validation; it holds {', '.join(found)}."
        )
    value_of = {"train": ["train"], "validation": validation, "test": test}
    return {
        split: rows.select([row for row, value in enumerate(split_values) if str(value) == values[0]])
        for split, values in value_of.items()
        if values
    }


def _resolve_inside(root: Path, value: Any, place: str) -> Path:
    """
    Return the file that a cell names; it must be inside `root`, where links are followed by name only.

    Raises:
        InputError: no path, or one that leads outside of `root`.
    """
    if not isinstance(value, str) or not value:
        raise InputError(f"{place}: {value!r} is not the path of an image.")
    root = root.resolve()
    folder = (root / value).parent
    try:
        file = folder.resolve() / Path(value).name if folder.exists() else root / value
    except OSError as error:  # a name longer than the file system allows
        raise InputError(f"{place}: {value[:80]} ... is not the path of an image. {error.strerror}.") from error
    if not file.is_relative_to(root) or ".." in file.relative_to(root).parts:
        raise InputError(f"{place}: {value} is outside of {root}; name another --data_dir, or move the image.")
    return file


__all__ = ["read_table"]
