"""Read a table's file: text of any usual separator and encoding, JSON lines, parquet or a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Value

from ...errors import InputError
from ..images import has_image_suffix
from .columns import Columns, require_columns, root_cause
from .layouts import OTHER_SPREADSHEETS, TABLE_ENDINGS


_WHITESPACE = " "
_WORDS = re.compile(r'"[^"]*"|\S+')
_SEPARATORS = (";", "\t", ",", _WHITESPACE)  # where lines fit several, commas are decimal
_SEPARATOR_LINE = re.compile(r'"?sep=([^"\r\n])"?(?:\r\n?|\n|$)', re.IGNORECASE)  # Excel's
_LINE_END = re.compile(r"\r\n?|\n")  # str.splitlines also splits at rare characters of text
_BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


@dataclass(frozen=True)
class TableFile:
    """
    The named columns of a table's file.

    Args:
        table: every value is text as it is written, None where a cell is empty; parquet files keep their types.
        row_numbers: of the rows of `table`, from 1 below the column names; wholly empty rows are left out.
        notes: sentences about how the file was read.
    """

    table: Dataset
    row_numbers: list[int]
    notes: list[str]


def read_table_file(path: Path, columns: Columns, source: str) -> TableFile:
    """
    Return the named columns of a table.

    Raises:
        InputError: no such file, one that is no table, or a missing column.
    """
    suffix, notes = _check_file(path, source), []
    try:
        if suffix == ".parquet":
            return _read_parquet(path, columns, source)
        if suffix in (".json", ".jsonl"):
            frame = _read_json(path)
        else:
            if suffix == ".xlsx":
                rows = _read_spreadsheet(path, source)
            else:
                text, notes = _decode(path.read_bytes(), source)
                rows = _read_text(text, columns)
            frame, headless = _to_frame(rows)
            if headless:
                notes.append(
                    f"{source}: it has no line of column names; column 1 is the image and column 2 the label, unless "
                    "--image_column and --label_column name others by number."
                )
    except InputError:
        raise
    except (pa.ArrowException, csv.Error, ImportError, ValueError, OSError) as error:
        raise InputError(f"{source}: it cannot be read. {root_cause(error)}") from error
    if not len(frame.columns):
        raise InputError(f"{source}: it has no rows.")
    names = require_columns(list(map(str, frame.columns)), columns, source)
    frame = frame.loc[:, ~frame.columns.duplicated()]
    values = {name: [_to_text(value) for value in frame[name]] for name in names}
    table = Dataset.from_dict(values, features=Features({name: Value("string") for name in names}))
    return TableFile(table, frame.index.tolist(), notes)


def _check_file(path: Path, source: str) -> str:
    """
    Return the ending of a table's file.

    Raises:
        InputError: it is no table's, there is no such file, it is empty, or the package that reads it is missing.
    """
    suffix = path.suffix.lower()
    if suffix in OTHER_SPREADSHEETS:
        raise InputError(f"{source}: spreadsheets ending in {suffix} are not read; save it as .xlsx or as CSV.")
    if suffix not in TABLE_ENDINGS:
        raise InputError(f"{source}: its name must end in {', '.join(TABLE_ENDINGS)}.")
    if not path.is_file():
        raise InputError(f"{source}: there is no such file.")
    if path.stat().st_size == 0:
        raise InputError(f"{source}: it has no rows.")
    if suffix == ".xlsx" and find_spec("openpyxl") is None:
        raise InputError(f"{source}: spreadsheets need openpyxl (pip install openpyxl); or export it as CSV.")
    return suffix


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


def _read_text(text: str, columns: Columns) -> list[list[str]]:
    """Return the cells of each row of a text table, with its usual separators or the one that `sep=;` names."""
    stated = _SEPARATOR_LINE.match(text)
    if stated:
        return list(_split_cells(text[stated.end() :], stated[1]))
    first = next((line for line in _LINE_END.split(text) if line.strip()), "")
    separator = max(_SEPARATORS, key=lambda one: _separator_fit(first, one, columns))
    return list(_split_cells(text, separator))


def _read_spreadsheet(path: Path, source: str) -> list[list[str]]:
    """
    Return the cells of each row of the first sheet; cells that hold an error are empty.

    Raises:
        InputError: another kind of file, or one with a password.
    """
    try:
        sheet = pd.read_excel(path, header=None, dtype=str, keep_default_na=False, engine="openpyxl")
    except (BadZipFile, KeyError) as error:  # of zipfile, for a missing part
        message = f"{source}: it is no .xlsx file, or has a password; save it as .xlsx without one, or as CSV."
        raise InputError(message) from error
    return [[cell.strip() if isinstance(cell, str) else "" for cell in row] for row in sheet.values.tolist()]


def _to_frame(rows: list[list[str]]) -> tuple[pd.DataFrame, bool]:
    """
    Return rows by their numbers, and whether no line of column names precedes them: the first names an image file.

    Wholly empty rows are left out. The columns of a table without names are called `1`, `2` and so on; the first two
    are the image and the label as well.
    """
    while rows and not any(rows[0]):
        rows = rows[1:]
    if not rows:
        return pd.DataFrame(), False
    headless = any(map(has_image_suffix, rows[0]))
    names = [str(number) for number in range(1, max(map(len, rows)) + 1)] if headless else rows[0]
    numbered = {number: row for number, row in enumerate(rows if headless else rows[1:], 1) if any(row)}
    for number, row in numbered.items():
        if any(row[len(names) :]):
            raise ValueError(
                f"Row {number} has {len(row)} cells and the header {len(names)}; quote cells with commas or spaces."
            )
    padded = [(row + [""] * len(names))[: len(names)] for row in numbered.values()]
    frame = pd.DataFrame(padded, index=list(numbered), columns=names, dtype=object)
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
        for line in _LINE_END.split(text):
            yield [cell.strip('"') for cell in _WORDS.findall(line)]
        return
    # csv, not pandas, which takes a column for an index or cuts rows where they are longer than the header.
    for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True):
        yield [cell.strip() for cell in row]


def _read_json(path: Path) -> pd.DataFrame:
    """Read a list of objects, or an object per line; numbers stay as they are written."""
    text = path.read_text(encoding="utf-8-sig")
    options = {"parse_int": str, "parse_float": str, "parse_constant": str}
    if text.lstrip().startswith("["):
        rows = json.loads(text, **options)
    else:
        rows = [json.loads(line, **options) for line in _LINE_END.split(text) if line.strip()]
    if not all(isinstance(row, dict) for row in rows):
        raise ValueError("It must hold one object per row.")
    names = list(dict.fromkeys(name for row in rows for name in row))
    numbered = {number: row for number, row in enumerate(rows, 1) if any(map(_to_text, row.values()))}
    columns = {name: [row.get(name) for row in numbered.values()] for name in names}
    return pd.DataFrame(columns, index=list(numbered), dtype=object)


def _read_parquet(path: Path, columns: Columns, source: str) -> TableFile:
    table = pq.ParquetFile(path).read()  # not read_table, which takes parts of the path for columns
    names = require_columns(table.column_names, columns, source)
    for index, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):  # pandas' categories
            table = table.set_column(index, field.name, table[field.name].cast(field.type.value_type))
    filled = np.flatnonzero(np.any([column.is_valid().to_numpy() for column in table.columns], axis=0))
    rows = Dataset(table) if len(filled) == len(table) else Dataset(table).select(filled)
    return TableFile(rows.select_columns(names), (filled + 1).tolist(), [])


def _to_text(value: Any) -> str | None:
    if isinstance(value, (bool, dict, list)):
        return json.dumps(value)
    return str(value) if value is not None and value != "" else None


__all__ = ["TableFile", "read_table_file"]
