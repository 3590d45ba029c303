"""Atomic writes and folder locks."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from filelock import FileLock, Timeout

from ..errors import InputError


def write_json(path: Path, content: Any) -> None:
    """Whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Whole or not at all, in UTF-8."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def save_dataset(dataset: Dataset, folder: Path) -> None:
    """
    `save_to_disk` under another name first, so that a folder of this name is always a whole one.

    Raises:
        InputError: it cannot be written, for want of space for one.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for killed in folder.parent.glob(f".{folder.name}-unfinished-*"):
            shutil.rmtree(killed)
        prefix = f".{folder.name}-unfinished-"
        with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as unfinished:
            with _no_progress_bars():
                dataset.save_to_disk(Path(unfinished) / folder.name)
            (Path(unfinished) / folder.name).rename(folder)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written: {error}. What is finished is kept; make room and run the same again."
        ) from error


@contextmanager
def _no_progress_bars() -> Iterator[None]:
    disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            enable_progress_bars()


def lock(folder: Path, flag: str = "--output_dir") -> FileLock:
    """
    Keep other processes out of the folder for as long as the returned lock lives; it dies with its process.

    Raises:
        InputError: another process runs there, or it is no folder that can be written to.
    """
    held = FileLock(folder / "run.lock")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held.acquire(blocking=False)
    except Timeout as error:
        raise InputError(f"{flag} {folder}: another process is running in it; wait for it or end it.") from error
    except OSError as error:
        raise InputError(f"{flag} {folder}: it cannot be used as a folder. {error}") from error
    return held


__all__ = ["lock", "save_dataset", "write_json", "write_text"]
