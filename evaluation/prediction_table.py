"""The table of `kgl predict`: a CSV with a row per image, which a killed process leaves whole."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import sys
from collections.abc import Collection, Sequence
from datetime import datetime, timezone
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from ..data.storage import write_text
from ..errors import InputError


Stamp = tuple[str, str]  # size in bytes and time of the last change of a file
_STAMP_COLUMNS = ("file_size", "file_modified")
_COLUMNS = (
    "file_name", "predicted_label", "score", "defect_score", "defective", "decision", "unlike_training", "boxes",
    *_STAMP_COLUMNS,
)  # fmt: skip


class Row(NamedTuple):
    """
    What is kept in memory of a row.

    Attributes:
        decision: empty where the model makes none.
        stamp: of the file that was decided.
        unlike: words of the pipeline's `unlike_training`, joined with `"; "`; empty where there are none.
    """

    decision: str
    stamp: Stamp
    unlike: str


def file_stamp(path: Path) -> Stamp:
    """Return size in bytes and time of the last change of a file, as the table has them."""
    stat = path.stat()
    return str(stat.st_size), datetime.fromtimestamp(stat.st_mtime, timezone.utc).isoformat(timespec="microseconds")


class PredictionTable:
    """
    A CSV that grows by one row at a time; a row that was cut short all the same is removed when it is opened.

    `rows` maps the file names that have a row to what is kept of it.

    Args:
        path: the CSV; made if it is not there.
        classes: the model's, in order.

    Raises:
        InputError: it has other columns, so that rows cannot be added to it.
    """

    def __init__(self, path: Path, classes: list[str]) -> None:
        self._path, self._classes = path, classes
        header = [*_COLUMNS, *(f"probability_{name}" for name in classes)]
        content = path.read_bytes() if path.exists() else b""
        complete = content[: content.rfind(b"\n") + 1]
        rows = csv.reader(_text(complete))
        if next(rows, header) != header:
            raise InputError(
                f"{path} has other columns than this version of kgl predict writes; it was edited, or written by "
                "another version. Choose another --output."
            )
        decision, unlike, *stamp = map(header.index, ("decision", "unlike_training", *_STAMP_COLUMNS))
        self.rows: dict[str, Row] = {
            row[0]: Row(sys.intern(row[decision]), (row[stamp[0]], row[stamp[1]]), sys.intern(row[unlike]))
            for row in rows
        }
        self._file = path.open("ab", buffering=0)  # a row is one write, which a kill does not split
        self._file.truncate(len(complete))
        if not complete:
            self._write(header)

    def __enter__(self) -> PredictionTable:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def append(self, name: str, stamp: Stamp, prediction: dict[str, Any]) -> None:
        """Write the row of an image that has none; it is on disk when this returns."""
        boxes = [box | {"score": round(box["score"], 4)} for box in prediction["boxes"]]
        cells = {
            "file_name": name,
            "predicted_label": prediction["label"],
            "score": f"{prediction['score']:.6g}",
            "defect_score": "" if prediction["defect_score"] is None else f"{prediction['defect_score']:.6g}",
            "defective": "" if prediction["defective"] is None else str(prediction["defective"]),
            "decision": prediction["decision"] or "",
            "unlike_training": sys.intern("; ".join(prediction["unlike_training"] or [])),
            "boxes": json.dumps(boxes),
            **dict(zip(_STAMP_COLUMNS, stamp, strict=True)),
        }
        probabilities = (f"{prediction['scores'][label]:.6g}" for label in self._classes)
        self._write([*(cells[column] for column in _COLUMNS), *probabilities])
        self.rows[name] = Row(cells["decision"], stamp, cells["unlike_training"])

    def changed(self, images: dict[str, Path]) -> list[str]:
        """Return the names that have a row of a file of another size or time than `images` has now."""
        return [
            name
            for name, row in self.rows.items()
            if name in images and os.path.exists(images[name]) and row.stamp != file_stamp(images[name])
        ]

    def remove(self, names: Collection[str]) -> None:
        """Remove the rows of these names: the file is replaced by one without them."""
        gone = set(names) & self.rows.keys()
        if not gone:
            return
        unfinished = self._path.with_name(f"{self._path.name}.unfinished")
        text = {"newline": "", "encoding": "utf-8"}
        with self._path.open(**text, errors="backslashreplace") as rows, unfinished.open("w", **text) as kept:
            csv.writer(kept, lineterminator="\n").writerows(row for row in csv.reader(rows) if row[0] not in gone)
        self._file.close()
        unfinished.replace(self._path)
        self._file = self._path.open("ab", buffering=0)
        for name in gone:
            del self.rows[name]

    def _write(self, cells: list[str]) -> None:
        line = io.StringIO(newline="")
        csv.writer(line, lineterminator="\n").writerow(cells)  # csv, not pandas: rows are appended one by one
        row = line.getvalue().encode()
        before = os.fstat(self._file.fileno()).st_size
        if self._file.write(row) < len(row):  # the disk is full
            self._file.truncate(before)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self._path))


def _text(content: bytes) -> io.StringIO:
    return io.StringIO(content.decode(errors="backslashreplace"), newline="")


def write_unusable(path: Path, unusable: Sequence[tuple[str, str]]) -> None:
    """Write a CSV of the images that could not be used, `file_name` and `reason`; without any it is removed."""
    if unusable:
        table = pd.DataFrame(unusable, columns=["file_name", "reason"])
        write_text(path, table.to_csv(index=False, lineterminator="\n"))
    else:
        path.unlink(missing_ok=True)


__all__ = ["PredictionTable", "Row", "Stamp", "file_stamp", "write_unusable"]
