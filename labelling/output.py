"""The output folder of a command on labels: claimed by its settings, with a cache while it is unfinished."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..data.storage import full_disk_as_input_error
from ..training.run_dir import CACHE_FOLDER, check_claimable, claim


CACHE = CACHE_FOLDER


def check_output(folder: Path, command: str, settings: dict[str, Any]) -> None:
    """
    Check before the images are read that the output folder is not one of other settings.

    Args:
        folder: as that of [`claimed_output`].
        command: such as `next`.
        settings: those that are known without the images.

    Raises:
        InputError: the folder holds something else, or was made with other settings.
    """
    check_claimable(folder, {command: settings}, flag="--output")


@contextmanager
def claimed_output(folder: Path, command: str, settings: dict[str, Any]) -> Iterator[None]:
    """
    Lock the output folder of a command while it writes; a folder that holds anything else is refused.

    Args:
        folder: a new folder, or that of the same command with the same settings.
        command: such as `curve`.
        settings: that decide what the command writes.

    Raises:
        InputError: the folder holds something else, another process uses it, or it cannot be written to.
    """
    held = claim(folder, {command: settings}, flag="--output")
    try:
        with full_disk_as_input_error(folder):
            yield
    finally:
        held.release()


def delete_cache(folder: Path) -> None:
    """Delete what only an unfinished command needs."""
    shutil.rmtree(folder / CACHE, ignore_errors=True)


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a JSON-lines file, none where it is missing; a line cut short by a kill is removed."""
    if not path.exists():
        return []
    content = path.read_bytes()
    complete = content[: content.rfind(b"\n") + 1]
    if len(complete) < len(content):
        path.write_bytes(complete)
    return [json.loads(line) for line in complete.decode().splitlines()]


__all__ = ["CACHE", "check_output", "claimed_output", "delete_cache", "read_lines"]
