"""A run's folder: claimed by its settings, and written so that a kill at any moment leaves nothing half-done."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from filelock import FileLock, Timeout
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .errors import InputError


_MARKER = "whole.json"  # the last file written into a checkpoint, and the first one removed


def write_json(path: Path, content: Any) -> None:
    """Whole or not at all."""
    write_text(path, json.dumps(content, indent=2) + "\n")


def write_text(path: Path, text: str) -> None:
    """Whole or not at all, in UTF-8."""
    unfinished = path.with_name(f"{path.name}.unfinished")
    unfinished.write_text(text, encoding="utf-8")
    unfinished.replace(path)


def without_paths(content: Any) -> Any:
    """Settings as they may be shared: of files and folders of this machine only their names."""
    if isinstance(content, dict):
        return {name: without_paths(value) for name, value in content.items()}
    if isinstance(content, list):
        return [without_paths(value) for value in content]
    return Path(content).name if isinstance(content, str) and _is_path(content) else content


def paths_in(content: Any) -> list[str]:
    """The absolute paths among settings."""
    if isinstance(content, dict):
        return [path for value in content.values() for path in paths_in(value)]
    if isinstance(content, list):
        return [path for value in content for path in paths_in(value)]
    return [content] if isinstance(content, str) and os.path.isabs(content) else []


def _is_path(text: str) -> bool:
    # A Hub id has a separator too, but is nothing on this disk.
    return os.path.isabs(text) or text.startswith(("~", "./", "../")) or ("/" in text and os.path.exists(text))


def save_whole(dataset: Dataset, folder: Path) -> None:
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


def last_whole_checkpoint(folder: Path) -> tuple[Path | None, float]:
    """The newest checkpoint that was written to its end and not begun to be deleted, and the seconds up to it."""
    whole = sorted(folder.glob(f"checkpoint-*/{_MARKER}"), key=lambda path: _step_of(path.parent))
    if not whole:
        return None, 0.0
    return whole[-1].parent, json.loads(whole[-1].read_text())["seconds"]


class WholeCheckpoints(TrainerCallback):
    """
    Marks every checkpoint once all of it is written, with the seconds of training up to it, and then deletes old ones.

    The Trainer would delete before the new checkpoint can be marked: a kill in between would leave none.
    """

    def __init__(self, keep: int | None, seconds_before: float) -> None:
        self._keep = keep
        self._started = time.perf_counter() - seconds_before

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Called by the Trainer after it has written a checkpoint."""
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir)
        seconds = time.perf_counter() - self._started
        write_json(folder / f"checkpoint-{state.global_step}" / _MARKER, {"seconds": seconds})
        if self._keep is not None:
            for old in sorted(folder.glob("checkpoint-*"), key=_step_of)[: -self._keep]:
                (old / _MARKER).unlink(missing_ok=True)
                shutil.rmtree(old)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


__all__ = [
    "WholeCheckpoints",
    "claim",
    "last_whole_checkpoint",
    "lock",
    "paths_in",
    "save_whole",
    "without_paths",
    "write_json",
    "write_text",
]
