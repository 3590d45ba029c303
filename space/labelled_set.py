"""Labelled sets: true classes and defect scores from a CSV, and the decisions at a threshold."""

import csv
import io
from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np

import quotas
from input_error import InputError


# `predictions.csv` of a training run has the first, a table made by hand may have the second.
SCORE_COLUMNS = ("final_defect_score", "defect_score")


@dataclass(frozen=True)
class LabelledSet:
    """
    Images with known classes.

    Args:
        name: of the file they come from.
        scores: P(defect), `(N,)` in 0..1.
        defective: whether the true class is a defect, `(N,)` bool.
    """

    name: str
    scores: np.ndarray
    defective: np.ndarray


@dataclass(frozen=True)
class Confusion:
    """Decisions on a labelled set, counted; a rate without a denominator is `None`."""

    found: int
    missed: int
    false_alarms: int
    passed: int

    @property
    def recall(self) -> float | None:
        return _rate(self.found, self.found + self.missed)

    @property
    def false_alarm_rate(self) -> float | None:
        return _rate(self.false_alarms, self.false_alarms + self.passed)

    @property
    def precision(self) -> float | None:
        return _rate(self.found, self.found + self.false_alarms)


def _rate(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def count_decisions(labelled_set: LabelledSet, threshold: float) -> Confusion:
    """Count the decisions where scores at or above `threshold` are called defective."""
    called = labelled_set.scores >= threshold
    defective = labelled_set.defective
    return Confusion(
        found=int((defective & called).sum()),
        missed=int((defective & ~called).sum()),
        false_alarms=int((~defective & called).sum()),
        passed=int((~defective & ~called).sum()),
    )


def read_labelled_set(raw: bytes, name: str, classes: Collection[str], defect_free_label: str) -> LabelledSet:
    """
    Read a CSV with the true class in `label` and P(defect) in one of [`SCORE_COLUMNS`].

    Raises:
        InputError: it is no such table, or a row has an unknown class or a score outside 0..1.
    """
    try:
        table = csv.DictReader(io.StringIO(raw.decode("utf-8-sig"), newline=""), strict=True)
        rows = list(_rows(table, classes))
    except UnicodeDecodeError as error:
        raise InputError("it is not text in UTF-8. Save it as CSV in UTF-8.") from error
    except csv.Error as error:
        raise InputError(f"it is not a valid CSV: {error}.") from error
    if not rows:
        raise InputError("it has no rows.")
    labels, scores = zip(*rows, strict=True)
    return LabelledSet(name, np.array(scores), np.array([label != defect_free_label for label in labels]))


def _rows(table: csv.DictReader, classes: Collection[str]) -> Iterator[tuple[str, float]]:
    """Yield each row's class and score."""
    score_column = _score_column(table.fieldnames or [])
    for count, row in enumerate(table):
        if count == quotas.MAX_LABELLED_ROWS:
            raise InputError(f"it has more than {quotas.MAX_LABELLED_ROWS:,} rows. Split it.")
        line = f"line {table.line_num}"
        if row["label"] not in classes:
            known = ", ".join(classes)
            raise InputError(f"{line}: `label` is {row['label']!r:.80}, which is not a class of the model ({known}).")
        yield row["label"], _score(row[score_column], f"{line}: `{score_column}`")


def _score_column(columns: Collection[str]) -> str:
    if "label" not in columns:
        if "predicted_label" in columns and "boxes" in columns:
            raise InputError(
                "it is a table of `kgl predict`, whose classes are predicted. Use the predictions.csv of a training "
                "run, or add a column `label` with the true classes."
            )
        raise InputError("it has no column `label`. Add one with the true classes.")
    for column in SCORE_COLUMNS:
        if column in columns:
            return column
    names = " nor ".join(f"`{column}`" for column in SCORE_COLUMNS)
    raise InputError(f"it has neither column {names}. Add one with P(defect).")


def _score(text: str | None, where: str) -> float:
    try:
        score = float(text or "")
    except ValueError as error:
        raise InputError(f"{where} is {text!r:.80}, which is not a number.") from error
    if not 0 <= score <= 1:
        raise InputError(f"{where} is {text}, which is outside 0..1.")
    return score
