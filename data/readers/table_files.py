"""Read a table's file: text of any usual separator and encoding, JSON lines, parquet or a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Value

from ...errors import InputError
from ..images import has_image_suffix
from .columns import Columns, require_columns, root_cause


_TEXT = (".csv", ".tsv", ".txt")
FORMATS = (*_TEXT, ".jsonl", ".json", ".parquet", ".xlsx")
_WHITESPACE = " "
_WORDS = re.compile(r'"[^"]*"|\S+')
_SEPARATORS = (",", ";", "\t", _WHITESPACE)
_BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


def read_table_file(path: Path, columns: Columns, source: str) -> tuple[Dataset, list[str]]:
    """
    Return the named columns of a table, and notes about how it was read.

    Every value is text as it is written, None where a cell is empty; parquet files keep their types.

    Raises:
        InputError: no such file, one that is no table, or a missing column.
    """
    suffix = path.suffix.lower()
    if suffix not in FORMATS:
        raise InputError(f"{source}: its name must end in {', '.join(FORMATS)}.")
    if not path.is_file():
        raise InputError(f"{source}: there is no such file.")
    if path.stat().st_size == 0:
        raise InputError(f"{source}: it has no rows.")
    notes: list[str] = []
    if suffix == ".xlsx" and find_spec("openpyxl") is None:
        raise InputError(f"{source}: spreadsheets need openpyxl (pip install openpyxl); or export it as CSV.")
    try:
        if suffix == ".parquet":
            table = _read_parquet(path)
            return table.select_columns(require_columns(table.column_names, columns, source)), notes
        if suffix in (".json", ".jsonl"):
            frame = _read_json(path)
        elif suffix == ".xlsx":
            frame = pd.read_excel(path, dtype=str, keep_default_na=False, engine="openpyxl")
        else:
            text, notes = _decode(path.read_bytes(), source)
            frame, headless = _read_text(text, columns)
            if headless:
                notes.append(
                    f"{source}: it has no line of column names; column 1 is the image and column 2 the label, unless "
                    "--image_column and --label_column name others by number."
                )
    except InputError:
        raise
    except (pa.ArrowException, csv.Error, ValueError, OSError) as error:
        raise InputError(f"{source}: it cannot be read. {root_cause(error)}") from error
    names = require_columns(list(map(str, frame.columns)), columns, source)
    frame = frame.loc[:, ~frame.columns.duplicated()]
    values = {name: [_to_text(value) for value in frame[name]] for name in names}
    return Dataset.from_dict(values, features=Features({name: Value("string") for name in names})), notes


def _decode(content: bytes, source: str) -> tuple[str, list[str]]:
    """Return the text of a file, and a note where its encoding is a guess."""
    for mark, encoding in _BYTE_ORDER_MARKS.items():
        if content.startswith(mark):
            return content.decode(encoding), []
    if b"\0" in content[:2]:  # of UTF-16, where the first letter is a Western one
        return content.decode("utf-16-be" if content[:1] == b"\0" else "utf-16-le"), []
    try:
        return content.decode("utf-8"), []
    except UnicodeDecodeError:
        note = "it is not UTF-8 and is read as Western European text (cp1252); save it as UTF-8 if names look wrong"
        return content.decode("cp1252"), [f"{source}: {note}."]


def _read_text(text: str, columns: Columns) -> tuple[pd.DataFrame, bool]:
    """
    Return the cells of a text table, and whether it has no line of column names: its first line names an image file.

    The columns of such a table are called `1`, `2` and so on; the first two are the image and the label as well.
    """
    first = next((line for line in text.splitlines() if line.strip()), "")
    separator = max(_SEPARATORS, key=lambda one: _separator_fit(first, one, columns))
    rows = [row for row in _split_cells(text, separator) if row] or [[]]
    headless = any(map(has_image_suffix, rows[0]))
    names = [str(number) for number in range(1, max(map(len, rows)) + 1)] if headless else rows.pop(0)
    for number, row in enumerate(rows, 1):
        if any(row[len(names) :]):
            raise ValueError(
                f"Row {number} has {len(row)} cells and the header {len(names)}; quote cells with commas or spaces."
            )
    padded = [(row + [""] * len(names))[: len(names)] for row in rows]
    frame = pd.DataFrame(padded, columns=names, dtype=object)
    if headless:
        frame = frame.assign(**{name: frame[number] for name, number in zip(("image", "label"), names, strict=False)})
    return frame, headless


def _separator_fit(line: str, separator: str, columns: Columns) -> tuple[int, bool, bool, int]:
    """Return how well the first line of a table reads with this separator: the more, the better."""
    cells = next(_split_cells(line, separator), [])
    named = len({columns.image, columns.label}.intersection(cells))
    # Names and labels may hold spaces, so whitespace comes last.
    return named, any(map(has_image_suffix, cells)), separator != _WHITESPACE and len(cells) > 1, len(cells)


def _split_cells(text: str, separator: str) -> Iterator[list[str]]:
    """Yield the cells of each row, without the spaces around them."""
    if separator == _WHITESPACE:
        for line in text.splitlines():
            yield [cell.strip('"') for cell in _WORDS.findall(line)]
        return
    # csv, not pandas, which takes a column for an index or cuts rows where they are longer than the header.
    for row in csv.reader(io.StringIO(text), delimiter=separator, skipinitialspace=True):
        yield [cell.strip() for cell in row]


def _read_json(path: Path) -> pd.DataFrame:
    """Read a list of objects, or an object per line; numbers stay as they are written."""
    text = path.read_text(encoding="utf-8-sig")
    options = {"parse_int": str, "parse_float": str, "parse_constant": str}
    if text.lstrip().startswith("["):
        rows = json.loads(text, **options)
    else:
        rows = [json.loads(line, **options) for line in text.splitlines() if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("It must hold one object per row.")
    names = list(dict.fromkeys(name for row in rows for name in row))
    return pd.DataFrame({name: pd.Series([row.get(name) for row in rows], dtype=object) for name in names})


def _read_parquet(path: Path) -> Dataset:
    table = pq.ParquetFile(path).read()  # not read_table, which takes parts of the path for columns
    for index, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):  # pandas' categories
            table = table.set_column(index, field.name, table[field.name].cast(field.type.value_type))
    return Dataset(table)


def _to_text(value: Any) -> str | None:
    if isinstance(value, (bool, dict, list)):
        return json.dumps(value)
    return str(value) if value is not None and value != "" else None


__all__ = ["FORMATS", "read_table_file"]
