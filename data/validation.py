"""Inspect every image once before training: usable or not, and data issues."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from datasets import Dataset
from PIL import Image as PILImage
from tqdm.auto import tqdm

from .duplicates import perceptual_hash
from .images import check_usable, decoder_message, image_bytes, open_upright, without_decoding
from .masks import mask_to_array


_FEW = 2000  # no progress bar below


@dataclass(frozen=True)
class DataIssue:
    """Something about the data that its owner should know: what, and the files it is about."""

    kind: str
    files: tuple[str, ...]
    note: str = ""

    def __str__(self) -> str:
        return f"{', '.join(self.files)}{f' ({self.note})' if self.note else ''}"


@dataclass
class Inspection:
    """
    What images are, one entry a row: `problems` is None where a row can be used and says why it cannot otherwise.

    `hashes` is `(N, 4)` uint64, `sizes` `(width, height)` upright, `modes` Pillow's, `marked` whether a row's mask
    shows a defect, None where it has none.
    """

    problems: list[str | None]
    digests: list[str]
    hashes: np.ndarray
    sizes: list[tuple[int, int]]
    modes: list[str]
    marked: list[bool | None]
    oddities: list[DataIssue]


def inspect_images(images: Dataset) -> Inspection:
    """Decode every image and mask once, one at a time; nothing is raised for a bad one."""
    problems, digests, sizes, modes, markings, oddities = [], [], [], [], [], []
    hashes = np.zeros((len(images), 4), dtype=np.uint64)
    rows = without_decoding(images.select_columns(["image", "mask", "file_name"]))
    for index, row in enumerate(tqdm(rows, "Looking at every image", disable=len(rows) < _FEW)):
        name, raw, image, turned, problem, marked = row["file_name"], b"", None, False, None, None
        try:
            if row["image"] is None:
                raise ValueError("no image")
            raw = image_bytes(row["image"])
            image, turned = open_upright(raw)
            check_usable(image)
            grey = image if image.mode == "L" else image.convert("RGB").convert("L")
            hashes[index] = perceptual_hash(grey)
        except Exception as error:  # whatever Pillow's many decoders raise for a damaged file
            problem = decoder_message(error)
        else:
            oddities += [DataIssue(kind, (name,), note) for kind, note in _image_warnings(image, grey, turned)]
        if problem is None and row["mask"] is not None:
            try:
                mask, mask_turned = open_upright(image_bytes(row["mask"]))
                marked = bool(mask_to_array(mask, (mask.height, mask.width)).any())
            except Exception as error:  # as above
                problem = f"its mask: {decoder_message(error)}"
            else:
                if turned != mask_turned:
                    problem = "the image or its mask is turned by an EXIF tag, and the other one is not"
                elif mask.size != image.size:
                    oddities.append(DataIssue("mask of another size", (name,), f"{mask.size} against {image.size}"))
        markings.append(marked)
        problems.append(problem)
        digests.append(hashlib.sha1(raw).hexdigest())
        sizes.append(image.size if image is not None else (0, 0))
        modes.append(image.mode if image is not None else "")
    return Inspection(problems, digests, hashes, sizes, modes, markings, oddities)


def find_duplicate_issues(images: Dataset, near: np.ndarray, splits: list[str]) -> list[DataIssue]:
    """
    Images that show the same, as lists of file names.

    Args:
        images: columns `file_name`, `label`, `group` (as given, not merged yet) and `digest`.
        near: `(N,)`, what [`~kgl.data.duplicates.find_near_duplicates`] says of them.
        splits: the published split of each image, or one word for all where none is.
    """
    names, labels, groups, digests = (images[column][:] for column in ("file_name", "label", "group", "digest"))
    classes = images.features["label"].names
    found = []

    def note(kind: str, rows: Iterable[int], note: str = "") -> None:
        found.append(DataIssue(kind, tuple(names[row] for row in rows), note))

    def note_leak(rows: list[int], what: str) -> None:
        straddled = sorted({splits[row] for row in rows})
        if len(straddled) > 1:
            note("published split leaks", rows, f"{what} in {' and '.join(straddled)}")

    for kind, values in (("equal", digests), ("near", near.tolist())):
        for rows in _shared(values):
            of_classes = sorted({classes[labels[row]] for row in rows})
            if kind == "equal":
                note("images of equal bytes", rows)
            elif len({digests[row] for row in rows}) == 1:
                continue  # said already
            elif len({groups[row] for row in rows}) > 1:
                note("near-duplicates", rows)
            if len(of_classes) > 1:
                note(f"{kind} images of different classes", rows, ", ".join(of_classes))
            note_leak(rows, f"{kind} images")
    for rows in _shared(groups):
        note_leak(rows, "one group")
    return found


def _image_warnings(image: PILImage.Image, grey: PILImage.Image, turned: bool) -> Iterable[tuple[str, str]]:
    if image.mode not in ("L", "RGB", "1"):
        yield "converted to RGB", image.mode
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


__all__ = ["DataIssue", "Inspection", "find_duplicate_issues", "inspect_images"]
