"""Environments of processes that have a few packages only."""

from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement


def link_packages(names: tuple[str, ...], folder: Path) -> Path:
    """Make a folder for PYTHONPATH with nothing but these distributions and those they require."""
    wanted, done = list(names), set()
    while wanted:
        name = wanted.pop()
        if name.lower() in done:
            continue
        done.add(name.lower())
        package = distribution(name)
        for top in {file.parts[0] for file in package.files} - {".."}:
            if not (folder / top).exists():
                (folder / top).symlink_to(package.locate_file(top))
        required = [Requirement(line) for line in package.requires or []]
        wanted += [one.name for one in required if one.marker is None or one.marker.evaluate({"extra": ""})]
    return folder
