"""Atomic writes, folder locks and the check of disk space."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from filelock import FileLock, Timeout

from ..errors import InputError


LOCK_FILE = "run.lock"
Result = TypeVar("Result")


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically: a process that dies leaves the old file or the new one."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def save_dataset(dataset: Dataset, folder: Path) -> None:
    """
    Save a dataset with `save_to_disk` atomically.

    Raises:
        InputError: it cannot be written, for example on a full disk.
    """
    prefix = f".{folder.name}-unfinished-"
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for leftover in folder.parent.glob(f"{prefix}*"):
            shutil.rmtree(leftover)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=folder.parent) as unfinished:
            with no_library_progress_bars():
                dataset.save_to_disk(Path(unfinished) / folder.name)
            (Path(unfinished) / folder.name).rename(folder)
    except OSError as error:
        raise InputError(
            f"{folder} cannot be written: {error}. Finished parts are kept; make room and run the same again."
        ) from error


def run_on_main_process(step: Callable[[], Result]) -> Result | None:
    """
    Run a step in the main process while the others wait; None in the others.

    Raises:
        InputError: the step raised it; every process does, so that none waits for a process that has ended.
    """
    result, message = None, [None]
    if PartialState().is_main_process:
        try:
            result = step()
        except InputError as error:
            message = [str(error)]
    broadcast_object_list(message)
    if message[0] is not None:
        raise InputError(message[0])
    return result


@contextmanager
def no_library_progress_bars() -> Iterator[None]:
    """Switch off the progress bars of `datasets` (casting, flattening, loading): we draw our own."""
    disabled = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not disabled:
            enable_progress_bars()


def check_disk_space(folder: Path, needed_bytes: int, what: str, advice: str) -> None:
    """
    Check that a file fits before it is written: a memory-mapped file on a full disk kills the process.

    Args:
        folder: where it will be written.
        needed_bytes: its size.
        what: what it holds, in the plural, for the message.
        advice: what to do instead of making room, for the message.

    Raises:
        InputError: there is too little space.
    """
    free = shutil.disk_usage(folder).free
    if needed_bytes > free:
        raise InputError(
            f"{folder}: {what} take {needed_bytes / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free; make room, or "
            f"{advice}."
        )


def lock(folder: Path, flag: str = "--output_dir") -> FileLock:
    """
    Keep other processes out of a folder until the returned lock is released or its process ends.

    Raises:
        InputError: another process holds it, or the folder cannot be written to.
    """
    held = FileLock(folder / LOCK_FILE)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held.acquire(blocking=False)
    except Timeout as error:
        raise InputError(f"{flag} {folder}: another process is running in it; wait for it or end it.") from error
    except OSError as error:
        raise InputError(f"{flag} {folder}: it cannot be used as a folder. {error}") from error
    return held


__all__ = [
    "LOCK_FILE",
    "check_disk_space",
    "lock",
    "no_library_progress_bars",
    "run_on_main_process",
    "save_dataset",
    "write_json",
    "write_text",
]
