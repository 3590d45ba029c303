"""Reader of tables with one image per row."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Any

from datasets import Dataset, Image

from ...errors import InputError
from ..schema import defect_dataset
from .columns import SPLIT_NAMES, VALIDATION_NAMES, Columns, read_groups, read_labels, validation_serves_as_test
from .source import SourceDataset
from .table_files import read_table_file


def read_table(path: Path, root: Path, columns: Columns) -> SourceDataset:
    """
    Read a table with one image per row ([`~kgl.data.readers.layouts.TABLE_ENDINGS`]), paths relative to `root`.

    Parquet files may hold the images themselves, as bytes or as `{"bytes", "path"}`.

    Raises:
        InputError: no such file or column, images outside of `root` or listed twice, or labels that cannot be read.
    """
    source = f"--data_file {path}"
    read = read_table_file(path, columns, source)
    table, numbers, notes = read.table, read.row_numbers, read.notes
    if not len(table):
        raise InputError(f"{source}: it has no rows.")
    cells = table.select_columns([columns.image] + [columns.mask] * (columns.mask not in (None, columns.image)))
    for name, feature in cells.features.items():
        if isinstance(feature, Image):
            cells = cells.cast_column(name, Image(decode=False))
    places = [f"{source}, row {number}" for number in numbers]
    images = [
        _read_cell(root, value, place, columns.image)
        for value, place in zip(cells[columns.image], places, strict=True)
    ]
    repeated = [image for image, count in Counter(one for one in images if isinstance(one, str)).items() if count > 1]
    if repeated:
        raise InputError(f"{source}: listed more than once: {', '.join(repeated)}.")
    masks: list[Any] = [None] * len(images)
    if columns.mask is not None:
        masks = [
            _read_cell(root, value, place, columns.mask) if _is_given(value) else None
            for value, place in zip(cells[columns.mask], places, strict=True)
        ]
    labels, names = read_labels(table, columns, source, numbers)
    file_names = [_file_name(root, image, number) for number, image in zip(numbers, images, strict=True)]
    rows = defect_dataset(
        images=images,
        labels=labels,
        names=names,
        masks=masks,
        groups=read_groups(table, columns, file_names),
        file_names=file_names,
    )
    splits = {"train": rows}
    if columns.split is not None:
        splits, of_splits = _split_rows(rows, table[columns.split], source)
        notes = [*notes, *of_splits]
    return SourceDataset(splits, source, tuple(notes))


def _is_given(value: Any) -> bool:
    return any(value.values()) if isinstance(value, dict) else value not in (None, "", b"")


def _read_cell(root: Path, value: Any, place: str, column: str) -> str | dict[str, Any]:
    """Return the path of the file that a cell names, or the image that it holds as `{"bytes", "path"}`."""
    if isinstance(value, bytes):
        value = {"bytes": value, "path": None}
    if isinstance(value, dict):
        if value.get("bytes"):
            return {"bytes": value["bytes"], "path": value.get("path")}
        value = value.get("path")
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if value in (None, ""):
        raise InputError(f"{place}: column {column!r} is empty; name the image's file there, or delete the row.")
    if not isinstance(value, str):
        raise InputError(f"{place}: column {column!r} holds {value!r}, which is not the path of an image.")
    return str(_resolve_inside(root, value, place))


def _file_name(root: Path, image: str | dict[str, Any], row: int) -> str:
    if isinstance(image, str):
        return str(Path(image).relative_to(root.resolve()))
    return f"{row}-{Path(image['path']).name}" if image["path"] else str(row)


def _split_rows(rows: Dataset, split_values: Sequence[Any], source: str) -> tuple[dict[str, Dataset], list[str]]:
    split_values = [str(value).strip().casefold() for value in split_values]
    found, notes = sorted(set(split_values)), []
    train = [name for name in found if name in SPLIT_NAMES["train"]]
    validation = [name for name in found if name in VALIDATION_NAMES]
    test = [name for name in found if name not in (*train, *validation)]
    if not test and len(validation) == 1:
        test, validation = validation, []
        notes = [f"{source}: {validation_serves_as_test(test[0])}"]
    if len(train) != 1 or len(test) != 1 or len(validation) > 1:
        raise InputError(
            f"{source}: the split column must hold train, test and optionally validation; it holds {', '.join(found)}."
        )
    value_of = {"train": train, "validation": validation, "test": test}
    splits = {
        split: rows.select([row for row, value in enumerate(split_values) if value == values[0]])
        for split, values in value_of.items()
        if values
    }
    return splits, notes


def _resolve_inside(root: Path, value: str, place: str) -> Path:
    """
    Return the file that a cell names; it must be inside `root`, where links are followed by name only.

    Raises:
        InputError: a path that leads outside of `root`, or one of another machine.
    """
    root = root.resolve()
    if value.startswith("~") and not os.path.lexists(root / value):
        value = os.path.expanduser(value)
    if not os.path.lexists(root / value):
        _check_foreign_path(root, value, place)
    folder = (root / value).parent
    try:
        file = folder.resolve() / Path(value).name if folder.exists() else root / value
    except OSError as error:  # a name longer than the file system allows
        raise InputError(f"{place}: {value[:80]} ... is not the path of an image. {error.strerror}.") from error
    if not file.is_relative_to(root) or ".." in file.relative_to(root).parts:
        raise InputError(f"{place}: {value} is outside of {root}; name another --data_dir, or move the image.")
    return file


def _check_foreign_path(root: Path, value: str, place: str) -> None:
    """
    Check a path that leads to no file.

    Raises:
        InputError: it is absolute, and not in `root`, or has the backslashes of Windows.
    """
    windows = PureWindowsPath(value)
    if windows.root and not Path(value).is_relative_to(root):
        parts = windows.parts[1:]
        endings = ("/".join(parts[start:]) for start in range(len(parts)))
        found = next((ending for ending in endings if os.path.lexists(root / ending)), None)
        raise InputError(
            f"{place}: {value[:200]} is an absolute path, of another machine or folder; write "
            f"{'paths with /' if found is None else found}, relative to {root}."
        )
    if "\\" in value:
        raise InputError(
            f"{place}: there is no {value[:80]}; paths with backslashes are Windows paths: write "
            f"{value[:80].replace(chr(92), '/')}, relative to {root}."
        )


__all__ = ["read_table"]
