"""Read a table's file: CSV of any usual separator and encoding, JSON lines, parquet or a spreadsheet."""

from __future__ import annotations

import csv
import io
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from datasets import Dataset, Features, Value

from ...errors import InputError
from .columns import Columns, require_columns, root_cause


_TEXT = (".csv", ".tsv", ".txt")
FORMATS = (*_TEXT, ".jsonl", ".json", ".parquet", ".xlsx")
_SEPARATORS = (",", ";", "\t")
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
            frame = _read_csv(text, columns)
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


def _read_csv(text: str, columns: Columns) -> pd.DataFrame:
    header = text.splitlines()[0] if text.strip() else ""
    named = {columns.image, columns.label}

    def fit(separator: str) -> tuple[int, int]:
        cells = [cell.strip() for cell in next(csv.reader([header], delimiter=separator), [])]
        return len(named.intersection(cells)), len(cells)

    # csv, not pandas, which takes a column for an index or cuts rows where they are longer than the header.
    names, *rows = [row for row in csv.reader(io.StringIO(text), delimiter=max(_SEPARATORS, key=fit)) if row] or [[]]
    for number, row in enumerate(rows, 1):
        if any(row[len(names) :]):
            raise ValueError(
                f"Row {number} has {len(row)} cells and the header {len(names)}; quote cells with commas."
            )
    padded = [(row + [""] * len(names))[: len(names)] for row in rows]
    return pd.DataFrame(padded, columns=[name.strip() for name in names], dtype=object)


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
