"""Facts about published dataset layouts, and the endings of tables."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


TABLE_ENDINGS = (".csv", ".tsv", ".txt", ".jsonl", ".json", ".parquet", ".xlsx")
OTHER_SPREADSHEETS = (".xls", ".xlsm", ".xlsb", ".ods", ".fods", ".numbers")  # refused with advice


@dataclass(frozen=True)
class Layout:
    """
    Facts about one published layout.

    Args:
        markers: glob patterns below its folder; a folder with a match for any of them has this layout.
        defect_free_label: its class without defects, None where every class is a defect.
        duplicate_distance: bits of 256 within which its images are near-duplicates (measured in
            docs/data_formats.md), None for the general default.
    """

    markers: tuple[str, ...]
    defect_free_label: str | None
    duplicate_distance: int | None = None


LAYOUTS = {
    "kolektorsdd": Layout(("kos*/Part*_label.bmp",), "good", 60),
    "kolektorsdd2": Layout(("[Tt]rain/*_GT.png",), "good"),
    "dagm": Layout(("Class*/Train/Label/*_label.*", "Train/Label/*_label.*"), "good"),
    "magnetic_tile": Layout(("MT_*/Imgs/exp*_num_*.jpg",), "Free", 60),
    "neu_det": Layout(("IMAGES/rolled-in_scale_*.jpg", "IMAGES/pitted_surface_*.jpg"), None, 60),
}


def detect_layout(root: Path) -> str | None:
    """Return the name of the published layout of a folder, None where it has none of them."""
    for name, layout in LAYOUTS.items():
        if any(next(root.glob(marker), None) is not None for marker in layout.markers):
            return name
    return None


__all__ = ["LAYOUTS", "OTHER_SPREADSHEETS", "TABLE_ENDINGS", "Layout", "detect_layout"]
