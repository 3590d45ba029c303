"""Unusable images of a command that goes on without them: the first on standard error, all in a CSV."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path


_PRINTED = 5


def report_unusable(unusable: Sequence[tuple[str, str]], output: Path, say: bool = True) -> None:
    """
    Write `unusable.csv`, and print the first images on standard error.

    Args:
        unusable: name and reason of each image.
        output: folder of the CSV.
        say: whether they are printed.
    """
    from ..data.storage import full_disk_as_input_error
    from ..evaluation.prediction_table import write_unusable

    path = output / "unusable.csv"
    with full_disk_as_input_error(output):
        write_unusable(path, unusable)
    for name, reason in unusable[:_PRINTED] if say else ():
        print(f"  {name}: {reason}", file=sys.stderr)
    if say and len(unusable) > _PRINTED:
        print(f"  and {len(unusable) - _PRINTED} more, all in {path}", file=sys.stderr)


__all__ = ["report_unusable"]
