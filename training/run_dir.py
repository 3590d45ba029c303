"""The run folder: the settings that claim it, the state of its steps, and settings without local paths."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

from ..data.storage import write_json
from ..errors import InputError


SETTINGS_FILE = "run.json"
STATE_FILE = "state.json"
CACHE_FOLDER = "cache"  # resized images and frozen features, deleted when the run is finished
_OWN_FILES = (SETTINGS_FILE, STATE_FILE, CACHE_FOLDER, "run.lock")


class RunState:
    """
    Finished steps of a run with what they recorded, and complete checkpoints of its phases.

    Kept in `state.json`; only the main process writes it, atomically, when a step is finished or a checkpoint is
    complete. A checkpoint folder that is not listed is incomplete.
    """

    def __init__(self, folder: Path, is_main_process: bool = True) -> None:
        self._path, self._writes = folder / STATE_FILE, is_main_process
        content = {"steps": {}, "checkpoints": {}}
        try:
            if self._path.exists():
                content = json.loads(self._path.read_text(encoding="utf-8"))
        except json.JSONDecodeError as error:
            raise InputError(f"{self._path} is damaged ({error}); choose another --output_dir.") from error
        self._steps: dict[str, dict[str, Any]] = content["steps"]
        self._checkpoints: dict[str, list[dict[str, Any]]] = content["checkpoints"]

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been trained yet."""
        return not self._checkpoints and not self._steps.keys() - {"cache"}

    def record(self, step: str) -> dict[str, Any] | None:
        """Return what a finished step recorded, None while it is unfinished."""
        return self._steps.get(step)

    def finish(self, step: str, **record: Any) -> dict[str, Any]:
        """Record a step as finished and return the record; its checkpoints are no longer listed."""
        self._steps[step] = record
        self._checkpoints.pop(step, None)
        self._write()
        return record

    def checkpoints(self, phase: str) -> list[dict[str, Any]]:
        """Return the complete checkpoints of a phase, oldest first, each with its `step` and `seconds`."""
        return list(self._checkpoints.get(phase, []))

    def set_checkpoints(self, phase: str, checkpoints: list[dict[str, Any]]) -> None:
        """List the complete checkpoints of a phase."""
        self._checkpoints[phase] = checkpoints
        self._write()

    def _write(self) -> None:
        if self._writes:
            write_json(self._path, {"steps": self._steps, "checkpoints": self._checkpoints})


def claim(folder: Path, settings: dict[str, dict[str, Any]], *, flag: str = "--output_dir", started: bool) -> None:
    """
    Write the settings into a new folder; in a used one, require that they are the same.

    Settings of a run that failed before it trained or wrote anything are replaced.

    Args:
        folder: the run's folder.
        settings: everything that decides the run, as JSON values, by group.
        flag: what the folder is called in messages.
        started: whether the run in the folder has results that the settings belong to.

    Raises:
        InputError: the folder holds something else or a run with other settings, each difference named, or cannot be
            written to.
    """
    stored = folder / SETTINGS_FILE
    try:
        if not stored.exists():
            unfinished = f"{SETTINGS_FILE}.unfinished"
            if folder.exists() and any(path.name not in (*_OWN_FILES, unfinished) for path in folder.iterdir()):
                raise InputError(f"{flag} {folder}: the folder holds other files; choose a new or empty one.")
            folder.mkdir(parents=True, exist_ok=True)
            write_json(stored, settings)
            return
        existing = json.loads(stored.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{flag} {folder}: it cannot be used as a folder. {error}") from error
    except json.JSONDecodeError as error:
        raise InputError(f"{stored} is damaged ({error}); choose another {flag}.") from error
    differences = [
        f"{name} is {existing.get(group, {}).get(name)!r} there and {settings[group].get(name)!r} here"
        for group in settings
        for name in sorted(settings[group].keys() | existing.get(group, {}).keys())
        if existing.get(group, {}).get(name) != settings[group].get(name)
    ]
    if differences and started:
        raise InputError(
            f"{flag} {folder} holds a run with other settings: {'; '.join(differences)}. "
            "Choose another folder, or the same settings to resume."
        )
    if differences:
        shutil.rmtree(folder / CACHE_FOLDER, ignore_errors=True)
        (folder / STATE_FILE).unlink(missing_ok=True)
        write_json(stored, settings)


def strip_paths(content: Any) -> Any:
    """Return settings as they may be shared: files and folders of this machine by name only."""
    if isinstance(content, dict):
        return {name: strip_paths(value) for name, value in content.items()}
    if isinstance(content, list):
        return [strip_paths(value) for value in content]
    return Path(content).name if isinstance(content, str) and _is_path(content) else content


def absolute_paths(content: Any) -> list[str]:
    """Return the absolute paths among settings."""
    if isinstance(content, dict):
        return [path for value in content.values() for path in absolute_paths(value)]
    if isinstance(content, list):
        return [path for value in content for path in absolute_paths(value)]
    return [content] if isinstance(content, str) and os.path.isabs(content) else []


def _is_path(text: str) -> bool:
    # A Hub id has a separator too, but does not exist on this disk.
    return os.path.isabs(text) or text.startswith(("~", "./", "../")) or ("/" in text and os.path.exists(text))


__all__ = ["CACHE_FOLDER", "SETTINGS_FILE", "RunState", "absolute_paths", "claim", "strip_paths"]
