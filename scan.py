"""Every picture decoded once before anything is trained: can it be used, what is it, and which ones show the same."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from datasets import Dataset
from PIL import Image as PILImage
from PIL import ImageOps, UnidentifiedImageError
from tqdm.auto import tqdm

from .duplicates import perceptual_hash
from .schema import content, mask_array, undecoded


LEAST_SIDE = 8
_FEW = 2000  # no progress bar below

_EXIF_ORIENTATION = 0x0112


@dataclass(frozen=True)
class Oddity:
    """Something about the data that its owner should know: what, and the files it is about."""

    kind: str
    files: tuple[str, ...]
    note: str = ""

    def __str__(self) -> str:
        return f"{', '.join(self.files)}{f' ({self.note})' if self.note else ''}"


@dataclass
class Scan:
    """
    What pictures are, one entry a row: `problems` is None where a row can be used and says why it cannot otherwise.

    `hashes` is `(N, 4)` uint64, `sizes` `(width, height)` upright, `modes` Pillow's, `marked` whether a row's mask
    shows a defect, None where it has none.
    """

    problems: list[str | None]
    digests: list[str]
    hashes: np.ndarray
    sizes: list[tuple[int, int]]
    modes: list[str]
    marked: list[bool | None]
    oddities: list[Oddity]


def scan_pictures(pictures: Dataset) -> Scan:
    """Decode every picture and mask once, one at a time; nothing is raised for a bad one."""
    problems, digests, sizes, modes, markings, oddities = [], [], [], [], [], []
    hashes = np.zeros((len(pictures), 4), dtype=np.uint64)
    rows = undecoded(pictures.select_columns(["image", "mask", "file_name"]))
    for index, row in enumerate(tqdm(rows, "Looking at every picture", disable=len(rows) < _FEW)):
        name, raw, picture, turned, problem, marked = row["file_name"], b"", None, False, None, None
        try:
            if row["image"] is None:
                raise ValueError("no picture")
            raw = content(row["image"])
            picture, turned = _opened(raw)
            _check_usable(picture)
            grey = picture if picture.mode == "L" else picture.convert("RGB").convert("L")
            hashes[index] = perceptual_hash(grey)
        except Exception as error:  # whatever Pillow's many decoders raise for a damaged file
            problem = _said(error)
        else:
            oddities += [Oddity(kind, (name,), note) for kind, note in _peculiar(picture, grey, turned)]
        if problem is None and row["mask"] is not None:
            try:
                mask, mask_turned = _opened(content(row["mask"]))
                marked = bool(mask_array(mask, (mask.height, mask.width)).any())
            except Exception as error:  # as above
                problem = f"its mask: {_said(error)}"
            else:
                if turned != mask_turned:
                    problem = "the picture or its mask is turned by an EXIF tag, and the other one is not"
                elif mask.size != picture.size:
                    oddities.append(Oddity("mask of another size", (name,), f"{mask.size} against {picture.size}"))
        markings.append(marked)
        problems.append(problem)
        digests.append(hashlib.sha1(raw).hexdigest())
        sizes.append(picture.size if picture is not None else (0, 0))
        modes.append(picture.mode if picture is not None else "")
    return Scan(problems, digests, hashes, sizes, modes, markings, oddities)


def find_duplicates(pictures: Dataset, near: np.ndarray, splits: list[str]) -> list[Oddity]:
    """
    Pictures that show the same, as lists of file names.

    Args:
        pictures: columns `file_name`, `label`, `group` (as given, not merged yet) and `digest`.
        near: `(N,)`, what [`~kgl.duplicates.near_duplicates`] says of them.
        splits: the published split of each picture, or one word for all where none is.
    """
    names, labels, groups, digests = (pictures[column][:] for column in ("file_name", "label", "group", "digest"))
    classes = pictures.features["label"].names
    found = []

    def note(kind: str, rows: Iterable[int], note: str = "") -> None:
        found.append(Oddity(kind, tuple(names[row] for row in rows), note))

    def note_leak(rows: list[int], what: str) -> None:
        straddled = sorted({splits[row] for row in rows})
        if len(straddled) > 1:
            note("published split leaks", rows, f"{what} in {' and '.join(straddled)}")

    for kind, values in (("equal", digests), ("near", near.tolist())):
        for rows in _shared(values):
            of_classes = sorted({classes[labels[row]] for row in rows})
            if kind == "equal":
                note("pictures of equal bytes", rows)
            elif len({digests[row] for row in rows}) == 1:
                continue  # said already
            elif len({groups[row] for row in rows}) > 1:
                note("near-duplicates", rows)
            if len(of_classes) > 1:
                note(f"{kind} pictures of different classes", rows, ", ".join(of_classes))
            note_leak(rows, f"{kind} pictures")
    for rows in _shared(groups):
        note_leak(rows, "one group")
    return found


def load_picture(path: Path) -> PILImage.Image:
    """
    A file's picture, upright and in RGB.

    Raises:
        ValueError: there is none that could be used, as [`scan_pictures`] has it; the message says why.
    """
    try:
        picture, _ = _opened(path.read_bytes())
        _check_usable(picture)
        return picture.convert("RGB")
    except Exception as error:  # whatever Pillow's many decoders raise for a damaged file
        raise ValueError(_said(error)) from error


def _opened(raw: bytes) -> tuple[PILImage.Image, bool]:
    """A picture, upright, and whether it had to be turned."""
    if not raw:
        raise ValueError("empty file")
    with warnings.catch_warnings():
        warnings.simplefilter("error", PILImage.DecompressionBombWarning)
        try:
            with PILImage.open(io.BytesIO(raw)) as picture:
                if any(";16" in str(tile) for tile in picture.tile):  # colours, of which Pillow drops the lower half
                    raise ValueError("16 bits a channel: convert it to 8")
                picture.load()
                if picture.getexif().get(_EXIF_ORIENTATION, 1) in range(2, 9):
                    return ImageOps.exif_transpose(picture), True
                return picture, False
        except PILImage.DecompressionBombWarning as error:
            raise ValueError(str(error)) from error


def _said(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return "not a picture"
    return " ".join(str(error).split()) or type(error).__name__


def _check_usable(picture: PILImage.Image) -> None:
    if picture.mode.startswith(("I", "F")):
        raise ValueError(f"mode {picture.mode}: convert it to 8 bits a channel")
    if min(picture.size) < LEAST_SIDE:
        raise ValueError(f"{picture.width} x {picture.height} pixels: nothing to see below {LEAST_SIDE}")


def _peculiar(picture: PILImage.Image, grey: PILImage.Image, turned: bool) -> Iterable[tuple[str, str]]:
    if picture.mode not in ("L", "RGB", "1"):
        yield "converted to RGB", picture.mode
    if turned:
        yield "turned upright by its EXIF tag", ""
    low, high = grey.getextrema()
    if low == high:
        yield "one grey value only", str(low)


def _shared(values: list[object]) -> list[list[int]]:
    """Rows of every value that more than one row has."""
    rows: dict[object, list[int]] = {}
    for row, value in enumerate(values):
        rows.setdefault(value, []).append(row)
    return [of_value for of_value in rows.values() if len(of_value) > 1]


__all__ = [
    "LEAST_SIDE",
    "Oddity",
    "Scan",
    "find_duplicates",
    "load_picture",
    "scan_pictures",
]
