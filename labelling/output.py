"""The output folder of a command on labels: claimed by its settings, with a cache while it is unfinished."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from filelock import FileLock

from ..training.run_dir import CACHE_FOLDER, claim


CACHE = CACHE_FOLDER


def claim_output(folder: Path, command: str, settings: dict[str, Any]) -> FileLock:
    """
    Lock the output folder of a command; a folder that holds anything else is refused.

    Args:
        folder: a new folder, or that of the same command with the same settings.
        command: such as `curve`.
        settings: that decide what the command writes.

    Returns:
        The lock, to be released at the end.

    Raises:
        InputError: the folder holds something else, another process uses it, or it cannot be written to.
    """
    stored = json.loads(json.dumps({command: settings}, default=str))
    return claim(folder, stored, flag="--output")


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


__all__ = ["CACHE", "claim_output", "delete_cache", "read_lines"]
