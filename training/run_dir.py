"""The run folder: claimed by its settings."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ..data.storage import write_json
from ..errors import InputError


def strip_paths(content: Any) -> Any:
    """Settings as they may be shared: of files and folders of this machine only their names."""
    if isinstance(content, dict):
        return {name: strip_paths(value) for name, value in content.items()}
    if isinstance(content, list):
        return [strip_paths(value) for value in content]
    return Path(content).name if isinstance(content, str) and _is_path(content) else content


def absolute_paths(content: Any) -> list[str]:
    """The absolute paths among settings."""
    if isinstance(content, dict):
        return [path for value in content.values() for path in absolute_paths(value)]
    if isinstance(content, list):
        return [path for value in content for path in absolute_paths(value)]
    return [content] if isinstance(content, str) and os.path.isabs(content) else []


def _is_path(text: str) -> bool:
    # A Hub id has a separator too, but is nothing on this disk.
    return os.path.isabs(text) or text.startswith(("~", "./", "../")) or ("/" in text and os.path.exists(text))


def claim(folder: Path, settings: dict[str, dict[str, Any]], flag: str = "--output_dir") -> None:
    """
    Write the settings into a new folder, the one that `flag` named; in a used one, insist that they are the same.

    Raises:
        InputError: the folder holds something else or a run with other settings, each difference named, or cannot be
            written to.
    """
    stored = folder / "run.json"
    try:
        if not stored.exists():
            if folder.exists() and any(path.name != f"{stored.name}.unfinished" for path in folder.iterdir()):
                raise InputError(f"{flag} {folder}: it holds something else; choose a new or empty folder.")
            folder.mkdir(parents=True, exist_ok=True)
            write_json(stored, settings)
            return
        there = json.loads(stored.read_text())
    except OSError as error:
        raise InputError(f"{flag} {folder}: it cannot be used as a folder. {error}") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{stored} is damaged ({error}); choose another {flag}.") from error
    differences = [
        f"{name} is {there.get(part, {}).get(name)!r} there and {settings[part].get(name)!r} here"
        for part in settings
        for name in sorted(settings[part].keys() | there.get(part, {}).keys())
        if there.get(part, {}).get(name) != settings[part].get(name)
    ]
    if differences:
        raise InputError(
            f"{flag} {folder} holds a run with other settings: {'; '.join(differences)}. "
            "Choose another folder, or the same settings to resume."
        )


__all__ = ["absolute_paths", "claim", "strip_paths"]
