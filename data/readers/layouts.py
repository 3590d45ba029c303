"""Facts about published dataset layouts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """
    What is known of a published layout.

    Args:
        marker: a glob pattern that only this layout matches.
        defect_free_label: its class without defects, None where every class is a defect.
        duplicate_distance: bits of 256 within which its images are near-duplicates (measured in docs/data.md); None
            for the general default.
    """

    marker: str
    defect_free_label: str | None
    duplicate_distance: int | None = None


LAYOUTS = {
    "kolektorsdd": Layout("kos*/Part*_label.bmp", "good", 60),
    "kolektorsdd2": Layout("train/*_GT.png", "good"),
    "dagm": Layout("Class*/Train/Label", "good"),
    "magnetic_tile": Layout("MT_*/Imgs", "Free", 60),
    "neu_det": Layout("IMAGES/*_*.jpg", None, 60),
}


def detect_layout(root: Path) -> str | None:
    """The name of the published layout that a folder holds, None where it holds none."""
    for name, layout in LAYOUTS.items():
        if next(root.glob(layout.marker), None) is not None:
            return name
    return None


__all__ = ["LAYOUTS", "Layout", "detect_layout"]
