"""Atomic writes, folder locks, the check of disk space, and errors of a full disk."""

from __future__ import annotations

import atexit
import errno
import json
import os
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from datasets import Dataset, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from datasets import config as datasets_config
from filelock import FileLock, Timeout

from ..errors import InputError


LOCK_FILE = "run.lock"
HOLDER_FILE = "run.lock.txt"  # who holds the lock; the lock itself cannot be read everywhere
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Errors of torch.save, which have no number, and of safetensors and others, which have it in their text.
_FULL_IN_TEXT = ("unexpected pos", "PytorchStreamWriter failed", *(f"os error {number}" for number in _FULL))
Result = TypeVar("Result")


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically: a process that dies leaves the old file or the new one."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


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
            f"{folder} cannot be written: {error}. Finished parts are kept; make room and run the same command again."
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


@cache
def datasets_cache() -> str | None:
    """Return None for the cache of `datasets`, or where it cannot be written a folder that ends with the process."""
    try:
        folder = Path(datasets_config.HF_DATASETS_CACHE)
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        unfinished = tempfile.TemporaryDirectory(prefix="kgl-datasets-")
        atexit.register(unfinished.cleanup)
        return unfinished.name
    return None


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
            f"{folder}: {what} take {_format_size(needed_bytes)} and {_format_size(free)} are free; make room, or "
            f"{advice}."
        )


def _format_size(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{size / 2**20:.2f} MiB"


@contextmanager
def full_disk_as_input_error(folder: Path) -> Iterator[None]:
    """
    Turn the error of a full disk into an [`InputError`], whichever library raises it.

    Args:
        folder: that is written to; the same command has to continue in it.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        if not _is_full_disk(error):
            raise
        free = _format_size(shutil.disk_usage(folder).free)
        raise InputError(
            f"{folder}: a file cannot be written, the disk is full or a limit is reached ({free} are free; "
            f"{' '.join(str(error).split())}). Finished parts are kept; make room and run the same command again."
        ) from error


def _is_full_disk(error: Exception) -> bool:
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in _FULL
    return any(sign in str(error) for sign in _FULL_IN_TEXT)


def lock(folder: Path, flag: str = "--output_dir") -> FileLock:
    """
    Keep other processes, of other hosts too, out of a folder until the returned lock is released or its process ends.

    Raises:
        InputError: another process holds it, which is named with its host, or the folder cannot be written to.
    """
    held, holder = FileLock(folder / LOCK_FILE), folder / HOLDER_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        held.acquire(blocking=False)
        holder.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
    except Timeout as error:
        named = f", {holder.read_text(encoding='utf-8')}" if holder.exists() else ""
        raise InputError(
            f"{flag} {folder}: another process is running in it{named}; wait for it or end it."
        ) from error
    except OSError as error:
        raise InputError(f"{flag} {folder}: it cannot be used as a folder. {error}") from error
    return held


__all__ = [
    "HOLDER_FILE",
    "LOCK_FILE",
    "check_disk_space",
    "datasets_cache",
    "full_disk_as_input_error",
    "lock",
    "no_library_progress_bars",
    "run_on_main_process",
    "save_dataset",
    "write_json",
    "write_text",
]
