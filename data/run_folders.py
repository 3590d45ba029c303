"""Folders that kgl wrote, recognised by the settings in them: they are no images to learn from."""

from __future__ import annotations

from pathlib import Path

from ..errors import format_names
from .images import is_hidden


SETTINGS_FILE = "run.json"  # in every output folder of kgl
_REPORT_FILE = "metrics.json"  # in a finished run of kgl train alone
_MAX_NAMED = 3


def is_output_folder(folder: Path) -> bool:
    """Return whether a command of kgl wrote the folder."""
    return (folder / SETTINGS_FILE).is_file()


def is_finished_run(folder: Path) -> bool:
    """Return whether the folder is a finished run of `kgl train`."""
    return is_output_folder(folder) and (folder / _REPORT_FILE).is_file()


def find_output_folders(folder: Path) -> list[Path]:
    """Return the subfolders that a command of kgl wrote, finished runs of `kgl train` first."""
    found = [path for path in _subfolders(folder) if is_output_folder(path)]
    return sorted(found, key=lambda path: (not is_finished_run(path), path.name))


def describe_runs(folder: Path) -> str | None:
    """Return that a folder holds runs, and one to give in its place; None where it holds no finished run."""
    found = find_output_folders(folder)
    if not found or not is_finished_run(found[0]):
        return None
    return f"{folder} holds runs of kgl; give one of them, such as {found[0]}"


def describe_output_folder(folder: Path) -> str | None:
    """Return why a folder that kgl wrote, or one that holds such folders, is no folder of images; None for others."""
    if is_output_folder(folder):
        what = "a run of kgl train" if is_finished_run(folder) else "an output folder of kgl"
        return f"it is {what}, no folder of images; give its images"
    # `runs/NAME` lies among the classes where kgl train was called within the folder of images.
    found = find_output_folders(folder) + [one for path in _subfolders(folder) for one in find_output_folders(path)]
    if not found:
        return None
    named = format_names([path.relative_to(folder).as_posix() for path in found], _MAX_NAMED)
    return (
        f"it holds output folders of kgl ({named}), which are no classes; give the folder of images, or, where they "
        "lie among its classes, move them elsewhere"
    )


def _subfolders(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    return [path for path in folder.iterdir() if path.is_dir() and not is_hidden(path.name)]


__all__ = [
    "SETTINGS_FILE",
    "describe_output_folder",
    "describe_runs",
    "find_output_folders",
    "is_finished_run",
    "is_output_folder",
]
