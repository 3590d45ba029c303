"""The run folder: the settings that claim it, the state of its steps, and settings without local paths."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from accelerate import PartialState
from filelock import FileLock

from ..data.arguments import folder_name
from ..data.host_folders import find_writers
from ..data.processes import check_equal, run_on_all_processes, share_from_main_process
from ..data.run_folders import SETTINGS_FILE, describe_runs, is_output_folder
from ..data.storage import HOLDER_FILE, LOCK_FILE, lock, run_on_main_process, write_json
from ..errors import InputError
from .setting_differences import describe_differences


STATE_FILE = "state.json"
CACHE_FOLDER = "cache"  # resized images and frozen features, deleted when the run is finished
# Settings whose values are names: a class may be called /ok.
_NAMES = frozenset({
    "image_column", "label_column", "mask_column", "group_column", "split_column", "hub_config", "defect_free_label",
    "grade_names",
})  # fmt: skip
_OWN_FILES = (
    SETTINGS_FILE,
    f"{SETTINGS_FILE}.unfinished",
    STATE_FILE,
    f"{STATE_FILE}.unfinished",
    CACHE_FOLDER,
    LOCK_FILE,
    HOLDER_FILE,
)


class RunState:
    """
    Finished steps of a run with what they recorded, and complete checkpoints of its phases.

    Kept in `state.json`; only the main process writes it, atomically, when a step is finished or a checkpoint is
    complete. A checkpoint folder that is not listed is incomplete.

    Args:
        folder: the run's.
        is_main_process: whether it is written.
        content: of the file, where it was read elsewhere.
    """

    def __init__(self, folder: Path, is_main_process: bool = True, content: dict[str, Any] | None = None) -> None:
        self._path, self._writes = folder / STATE_FILE, is_main_process
        try:
            if content is None:
                content = {"steps": {}, "checkpoints": {}}
                if self._path.exists():
                    content = json.loads(self._path.read_text(encoding="utf-8"))
            self._steps: dict[str, dict[str, Any]] = content["steps"]
            self._checkpoints: dict[str, list[dict[str, Any]]] = content["checkpoints"]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise InputError(
                f"{self._path} is damaged or not of a run ({error}); choose another --output_dir."
            ) from error

    @property
    def content(self) -> dict[str, Any]:
        """What the file holds: `steps` and `checkpoints`."""
        return {"steps": self._steps, "checkpoints": self._checkpoints}

    @property
    def is_empty(self) -> bool:
        """Whether nothing has been trained yet."""
        return not self._checkpoints and not self._steps.keys() - {"cache", "frozen_features"}

    def record(self, step: str) -> dict[str, Any] | None:
        """Return what a finished step recorded, None while it is unfinished."""
        return self._steps.get(step)

    def is_finished(self, *steps: str) -> bool:
        """Return whether all of these steps are finished."""
        return all(step in self._steps for step in steps)

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
            write_json(self._path, self.content)


def claim(
    folder: Path,
    settings: dict[str, dict[str, Any]],
    *,
    flag: str = "--output_dir",
    ignored: Collection[str] = (),
) -> FileLock:
    """
    Lock a folder and write the settings into it; in a used one, require that they are the same.

    Settings of a run that failed before it trained or wrote anything are replaced. A folder that is refused is left
    as it was.

    Args:
        folder: the run's folder.
        settings: everything about the run, by group; kept as JSON, what JSON does not know as text.
        flag: what the folder is called in messages.
        ignored: names of settings that may differ.

    Returns:
        The lock, to be released when the run is finished.

    Raises:
        InputError: the folder holds something else or a run with other settings, each difference named, another
            process uses it, or it cannot be written to.
    """
    if "::" in str(folder.absolute()):
        raise InputError(f"{flag} {folder}: datasets cannot read tables in a folder with :: in its path; rename it.")
    settings = json.loads(json.dumps(settings, default=str))  # so that they compare equal to the stored ones
    was_there = folder.exists()
    lock_file = folder / LOCK_FILE
    had_lock = lock_file.exists()
    held = lock(folder, flag)
    try:
        _check_and_write_settings(folder, settings, flag, ignored)
    except InputError:
        held.release()
        if not had_lock:
            lock_file.unlink(missing_ok=True)
            (folder / HOLDER_FILE).unlink(missing_ok=True)
        if not was_there:
            folder.rmdir()
        raise
    return held


def check_claimable(folder: Path, settings: dict[str, dict[str, Any]], *, flag: str = "--output_dir") -> None:
    """
    Check early that a folder holds no run with other settings; settings that are left out may be any.

    Raises:
        InputError: it holds something else, or a run with other settings, each difference named.
    """
    if not folder.is_dir():
        return
    settings = json.loads(json.dumps(settings, default=str))
    try:
        existing = _read_settings(folder, settings, flag) or settings
    except OSError as error:
        raise _unusable(folder, error, flag) from error
    differences = describe_differences(existing, settings, {group: sorted(settings[group]) for group in settings})
    if differences and not _is_replaceable(folder):
        raise _other_settings(folder, differences, flag)


def claim_on_hosts(
    folder: Path,
    settings: dict[str, dict[str, Any]],
    *,
    flag: str = "--output_dir",
    ignored: Collection[str] = (),
) -> FileLock | None:
    """
    Claim a folder as [`claim`] does for all processes of a job, and on each host that does not share it its own one.

    The main process's folder is that of the run. The others hold what their processes read and write meanwhile, until
    [`leave_host`].

    Returns:
        The lock, None in processes that write nothing.

    Raises:
        InputError: as [`claim`], with the host where it is not the main process's, or the processes have other
            settings or other images.
    """
    decisive = {
        group: {name: value for name, value in values.items() if name not in ignored}
        for group, values in settings.items()
    }
    check_equal(json.loads(json.dumps(decisive, default=str)))
    held = run_on_main_process(lambda: claim(folder, settings, flag=flag, ignored=ignored))
    index, writers = PartialState().process_index, find_writers(folder)
    writes_own = index != 0 and writers[index] == index

    def claim_own() -> FileLock | None:
        if not writes_own:
            return held
        if (folder / STATE_FILE).exists():
            raise InputError(f"{flag} {folder} holds a run of this host; start here as the first host, or move it.")
        return claim(folder, settings, flag=flag, ignored=ignored)

    return run_on_all_processes(claim_own)


def leave_host(folder: Path, held: FileLock | None) -> None:
    """Delete the folder of a host that does not share the run's, whose process's lock is given; else do nothing."""
    if held is not None and not PartialState().is_main_process:
        held.release()
        shutil.rmtree(folder)


def read_state(folder: Path) -> RunState:
    """Return the state that the main process reads, in all processes."""
    content = share_from_main_process(lambda: RunState(folder).content)
    return RunState(folder, PartialState().is_main_process, content)


def _check_and_write_settings(
    folder: Path, settings: dict[str, dict[str, Any]], flag: str, ignored: Collection[str]
) -> None:
    try:
        existing = _read_settings(folder, settings, flag)
        if existing is None:
            write_json(folder / SETTINGS_FILE, settings)
            return
    except OSError as error:
        raise _unusable(folder, error, flag) from error
    names = {group: sorted((settings[group].keys() | existing[group].keys()) - set(ignored)) for group in settings}
    differences = describe_differences(existing, settings, names)
    if differences and _is_replaceable(folder):
        shutil.rmtree(folder / CACHE_FOLDER, ignore_errors=True)
        (folder / STATE_FILE).unlink(missing_ok=True)
        write_json(folder / SETTINGS_FILE, settings)
    elif differences:
        raise _other_settings(folder, differences, flag)


def _read_settings(folder: Path, settings: dict[str, dict[str, Any]], flag: str) -> dict[str, dict[str, Any]] | None:
    """Return the stored settings of the same groups, None where the folder is as good as empty."""
    stored = folder / SETTINGS_FILE
    if not stored.exists():
        if not _is_unused(folder):
            raise InputError(f"{flag} {folder}: the folder holds other files; choose a new or empty one.")
        return None
    try:
        existing = json.loads(stored.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{stored} is damaged ({error}); choose another {flag}.") from error
    if existing.keys() != settings.keys():
        raise InputError(f"{flag} {folder} holds the files of another command; choose a new or empty folder.")
    return existing


def _is_unused(folder: Path) -> bool:
    return all(path.name in _OWN_FILES or _is_empty(path) for path in folder.iterdir())


def _is_replaceable(folder: Path) -> bool:
    """Return whether a run failed before it trained or wrote anything."""
    return _is_unused(folder) and RunState(folder).is_empty


def _unusable(folder: Path, error: OSError, flag: str) -> InputError:
    return InputError(f"{flag} {folder}: it cannot be used as a folder. {error}")


def _other_settings(folder: Path, differences: list[str], flag: str) -> InputError:
    return InputError(
        f"{flag} {folder} holds a run with other settings: {'; '.join(differences)}. "
        f"Give another {flag}, or the same settings to resume."
    )


def _is_empty(path: Path) -> bool:
    return path.is_dir() and not any(one.is_file() for one in path.rglob("*"))


def check_run(run: Path, files: Sequence[str]) -> None:
    """
    Check that a folder holds a run of `kgl train` with these files.

    Raises:
        InputError: there is no such folder, it is one classifier of a run, or a file is missing.
    """
    if not run.is_dir():
        raise InputError(f"{run}: there is no such folder; give the --output_dir of a run.")
    if not is_output_folder(run) and is_output_folder(run.absolute().parent):
        raise InputError(f"{run}: this is one classifier of a run; give the folder of the run, {run.parent}.")
    if not is_output_folder(run):
        if (runs := describe_runs(run)) is not None:
            raise InputError(f"{runs}.")
        raise InputError(
            f"{run}: this is no run of kgl train, {SETTINGS_FILE} is missing; give the --output_dir of one."
        )
    missing = [name for name in files if not (run / name).is_file()]
    if missing:
        raise InputError(_unfinished(run, missing[0]))


def read_finished_report(run: Path) -> dict[str, Any]:
    """
    Return the content of a finished run's `metrics.json`.

    Raises:
        InputError: as [`check_run`], the run has not finished its report, or another version of kgl wrote it.
    """
    check_run(run, (SETTINGS_FILE, "metrics.json"))
    if RunState(run).record("report") is None:
        raise InputError(_unfinished(run, "its report"))
    path = run / "metrics.json"
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is damaged ({error}); train again into another --output_dir.") from error
    if not {"settings", "results", "validation"} <= report.keys():
        raise InputError(of_another_version(run, path.name))
    return report


def _unfinished(run: Path, missing: str) -> str:
    """Return the message of a run in which something is missing."""
    return (
        f"{run}: this is no finished run of kgl train, {missing} is missing; give its kgl train command again, which "
        "finishes it."
    )


def of_another_version(run: Path, what: str) -> str:
    """Return the message of a file of a run that this version cannot read."""
    return (
        f"{run}: {what} was changed, or written by another version of kgl; train again with this one into another "
        "--output_dir."
    )


def strip_paths(content: Any) -> Any:
    """Return settings as they may be shared: files and folders of this machine by name only."""
    if isinstance(content, dict):
        return {name: value if name in _NAMES else strip_paths(value) for name, value in content.items()}
    if isinstance(content, list):
        return [strip_paths(value) for value in content]
    return folder_name(Path(content).absolute()) if isinstance(content, str) and _is_path(content) else content


def absolute_paths(content: Any) -> list[str]:
    """Return the absolute paths among settings."""
    if isinstance(content, dict):
        return [path for name, value in content.items() if name not in _NAMES for path in absolute_paths(value)]
    if isinstance(content, list):
        return [path for value in content for path in absolute_paths(value)]
    return [content] if isinstance(content, str) and os.path.isabs(content) else []


def _is_path(text: str) -> bool:
    # A Hub id has a separator too, but does not exist on this disk.
    return os.path.isabs(text) or text.startswith(("~", "./", "../")) or ("/" in text and os.path.exists(text))


__all__ = [
    "CACHE_FOLDER",
    "SETTINGS_FILE",
    "RunState",
    "absolute_paths",
    "check_claimable",
    "check_run",
    "claim",
    "claim_on_hosts",
    "leave_host",
    "of_another_version",
    "read_finished_report",
    "read_state",
    "strip_paths",
]
