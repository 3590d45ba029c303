"""Columns of tables and of Hub datasets: labels, grades and groups."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from numbers import Integral, Real
from typing import Any

from datasets import ClassLabel, Dataset, Value

from ...errors import InputError


VALIDATION_NAMES = ("validation", "valid", "val", "dev")
SPLIT_NAMES = {"train": ("train", "training"), "test": ("test", "testing"), "validation": VALIDATION_NAMES}
_MAX_ROWS_NAMED = 20
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
_DECIMAL_COMMA = re.compile(r"[+-]?[0-9]*,[0-9]+")
_THOUSANDS = re.compile(r"[+-]?[1-9][0-9]{0,2},[0-9]{3}")
_WHOLE_NUMBER = re.compile(r"[+-]?[0-9]+")


@dataclass(frozen=True)
class Columns:
    """
    The names of a table's columns, and how its labels are read.

    Args:
        image: of every table.
        label: None where labels are not read.
        mask, group, split: None where the table has none.
        grade_thresholds: ascending; they turn graded labels into classes.
        grade_names: of these classes, one more than there are thresholds.
    """

    image: str = "image"
    label: str | None = "label"
    mask: str | None = None
    group: str | None = None
    split: str | None = None
    grade_thresholds: Sequence[float] = ()
    grade_names: Sequence[str] = ()


def validation_serves_as_test(name: str) -> str:
    """Return the note of a source whose only split held out is one for validation."""
    return f"as there is no test split, {name} serves as test split."


def require_columns(found: Sequence[str], columns: Columns, source: str) -> list[str]:
    """
    Return the names of the columns that are used.

    Raises:
        InputError: a column is missing.
    """
    options = {
        "--image_column": columns.image,
        "--label_column": columns.label,
        "--mask_column": columns.mask,
        "--group_column": columns.group,
        "--split_column": columns.split,
    }
    for option, name in options.items():
        if name is not None and name not in found:
            named = ", ".join(one for one in found if one)
            raise InputError(f"{source}: there is no column {name!r} ({option}); it has {named}.")
    return list(dict.fromkeys(name for name in options.values() if name is not None))


def read_labels(
    table: Dataset, columns: Columns, source: str, row_numbers: Sequence[int] | None = None
) -> tuple[list[str], list[str]]:
    """
    Return the class of every row, and all classes: numbers in ascending, words in alphabetic order.

    Text stays as it is: `00`, `1E3` and `true` are classes.

    Args:
        row_numbers: of the rows, for messages; from 1 where left out.

    Raises:
        InputError: a label is missing, or is neither a word nor a whole number.
    """
    feature, values = table.features[columns.label], table[columns.label][:]
    # A line break in a cell would be one in every table and message.
    values = [" ".join(value.strip().splitlines()) if isinstance(value, str) else value for value in values]
    rows = range(1, len(values) + 1) if row_numbers is None else row_numbers
    _require_labels([value in (None, "") or value != value for value in values], columns, source, rows)
    if columns.grade_thresholds:
        return _grades_to_classes(values, columns, source)
    if isinstance(feature, ClassLabel):
        _require_labels([not 0 <= value < len(feature.names) for value in values], columns, source, rows)
        return [feature.names[value] for value in values], list(feature.names)
    grades = _to_numbers(values)
    if None not in grades and not all(grade.is_integer() for grade in grades):
        raise InputError(
            f"{source}: {columns.label!r} holds grades such as {values[0]}; give --grade_thresholds to turn them "
            "into classes."
        )
    if isinstance(feature, Value) and feature.dtype.startswith("float"):
        values = [int(value) for value in values]
    if not all(isinstance(value, (str, Integral)) for value in values):
        raise InputError(f"{source}: {columns.label!r} holds {feature}; labels must be words or numbers.")
    labels = [str(value) for value in values]
    return labels, sorted(set(labels), key=_by_number if all(map(_WHOLE_NUMBER.fullmatch, labels)) else None)


def read_groups(table: Dataset, columns: Columns, file_names: list[str]) -> list[str]:
    """Return the group of every row; a row without one is its own group."""
    if columns.group is None:
        return file_names
    values = zip(table[columns.group], file_names, strict=True)
    return [name if value is None or value == "" else str(value) for value, name in values]


def root_cause(error: BaseException) -> str:
    """Return the message of an error's first cause, on one line."""
    while error.__cause__ is not None:
        error = error.__cause__
    return " ".join(str(error).split())[:500]


def _require_labels(missing: list[bool], columns: Columns, source: str, row_numbers: Sequence[int]) -> None:
    rows = [str(row) for row, is_missing in zip(row_numbers, missing, strict=True) if is_missing]
    if rows:
        shown = ", ".join(rows[:_MAX_ROWS_NAMED]) + " ..." * (len(rows) > _MAX_ROWS_NAMED)
        raise InputError(f"{source}: no {columns.label!r} in row {shown}; every row needs a label.")


def _grades_to_classes(values: Sequence[Any], columns: Columns, source: str) -> tuple[list[str], list[str]]:
    """Cut grades into classes: below the first threshold, from it to below the next, and so on."""
    grades = _to_numbers(values)
    if None in grades:
        word = values[grades.index(None)]
        advice = "write numbers as 0.7 or 1000" if "," in str(word) else "leave it out"
        raise InputError(
            f"{source}: --grade_thresholds needs numbers, and {columns.label!r} holds {word!r}; {advice}."
        )
    limits = list(columns.grade_thresholds)
    names = list(columns.grade_names) or [
        f"below {limits[0]:g}",
        *(f"{low:g} to {high:g}" for low, high in pairwise(limits)),
        f"from {limits[-1]:g}",
    ]
    return [names[sum(grade >= limit for limit in limits)] for grade in grades], names


def _to_numbers(values: Sequence[Any]) -> list[float | None]:
    """
    Return numbers, also those that are written as text; None for anything else.

    Commas are decimal where no value has a point, and where one of them at least cannot stand for thousands.
    """
    texts = [value for value in values if isinstance(value, str)]
    with_comma = [text for text in texts if _DECIMAL_COMMA.fullmatch(text)]
    if any("." in text for text in texts) or all(map(_THOUSANDS.fullmatch, with_comma)):
        with_comma = []
    replaced = {text: text.replace(",", ".") for text in with_comma}
    return [_to_number(replaced.get(value, value) if isinstance(value, str) else value) for value in values]


def _to_number(value: Any) -> float | None:
    if isinstance(value, str) and _NUMBER.fullmatch(value):
        value = float(value)
    return float(value) if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value) else None


def _by_number(label: str) -> tuple[int, str]:
    return int(label), label


__all__ = ["SPLIT_NAMES", "VALIDATION_NAMES", "Columns", "read_groups", "read_labels", "require_columns", "root_cause"]
