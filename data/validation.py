"""Inspection of every image before training: unusable images and other data issues."""

from __future__ import annotations

import hashlib
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image as PILImage
from torch.utils.data import DataLoader

from .duplicates import HASH_BITS, perceptual_hash
from .images import check_usable, decoder_message, image_bytes, open_upright, without_decoding
from .masks import mask_to_array
from .progress import progress_bar


UNUSABLE = "unusable"
SPLIT_LEAK = "source split leaks"
CONFLICTING_LABELS = "identical images with different labels"
NEAR_CONFLICTING_LABELS = "near-duplicates with different labels"
MASK_CONTRADICTS_LABEL = "mask contradicts label"
LARGE_MASK = "mask covers more than half"
MAX_FILES_SHOWN = 4
# What kinds of issues mean for the figures, and what to do.
ISSUE_ADVICE = {
    SPLIT_LEAK: "figures of the test images come out too good; remove one side, or give images without splits",
    CONFLICTING_LABELS: "no classifier can be right on all of them; `kgl audit` shows them, correct or remove them",
    NEAR_CONFLICTING_LABELS: "one label may be wrong, and then figures are too low; `kgl audit` shows them to correct",
    MASK_CONTRADICTS_LABEL: "figures of the label or of the heat map are wrong; correct one of the two",
    LARGE_MASK: "figures of the heat map mean little if it is inverted; look at the mask",
}
_SECONDS_WITHOUT_BAR = 1
_MIN_IMAGES_FOR_WORKERS = 256
_BATCH = 16  # images that one process decodes at a time


@dataclass(frozen=True)
class DataIssue:
    """Something that the owner of the data should know: its kind, the files (or the class) with it, and a note."""

    kind: str
    files: tuple[str, ...]
    note: str = ""

    def __str__(self) -> str:
        return f"{', '.join(self.files)}{f' ({self.note})' if self.note else ''}"

    def shortened(self) -> str:
        """Return the text with at most [`MAX_FILES_SHOWN`] files."""
        hidden = len(self.files) - MAX_FILES_SHOWN
        if hidden <= 0:
            return str(self)
        return str(replace(self, files=(*self.files[:MAX_FILES_SHOWN], f"{hidden} more")))


@dataclass
class Inspection:
    """
    What was found in images, one entry per image.

    Args:
        problems: why an image is unusable, None where it is usable.
        digests: SHA-1 of the files.
        hashes: perceptual hashes, `(N, 4)` uint64.
        sizes: `(width, height)` after EXIF rotation; `(0, 0)` where it could not be decoded.
        modes: Pillow's, empty where it could not be decoded.
        mask_shows_defect: whether any pixel of the mask is defect, None without a mask.
        issues: warnings about single images.
    """

    problems: list[str | None]
    digests: list[str]
    hashes: np.ndarray
    sizes: list[tuple[int, int]]
    modes: list[str]
    mask_shows_defect: list[bool | None]
    issues: list[DataIssue]

    @property
    def usable(self) -> np.ndarray:
        """Row numbers of the usable images, ascending."""
        return np.flatnonzero([problem is None for problem in self.problems])


@dataclass(frozen=True)
class _Inspected:
    """One image's entries of [`Inspection`]."""

    problem: str | None
    digest: str
    hash: np.ndarray
    size: tuple[int, int]
    mode: str
    mask_shows_defect: bool | None
    issues: list[DataIssue]


def inspect_images(images: Dataset) -> Inspection:
    """
    Decode every image and mask once. Unusable ones are reported and raise nothing.

    From 256 images on, as many processes take part as torch has threads (`OMP_NUM_THREADS`), on Linux, where they
    start fast and import nothing again.

    Args:
        images: columns `image`, `mask` and `file_name`.
    """
    rows = without_decoding(images.select_columns(["image", "mask", "file_name"]))
    workers = torch.get_num_threads() if sys.platform == "linux" and len(rows) >= _MIN_IMAGES_FOR_WORKERS else 1
    loader = DataLoader(
        rows,
        batch_size=_BATCH,
        collate_fn=_inspect_rows,
        num_workers=workers if workers > 1 else 0,
        multiprocessing_context="fork" if workers > 1 else None,
        generator=torch.Generator(),  # not the global one, whose state would change
    )
    inspected: list[_Inspected] = []
    with progress_bar(title="Inspecting images", total=len(rows), delay=_SECONDS_WITHOUT_BAR) as bar:
        for batch in loader:
            inspected += batch
            bar.update(len(batch))
    return Inspection(
        problems=[one.problem for one in inspected],
        digests=[one.digest for one in inspected],
        hashes=np.array([one.hash for one in inspected], dtype=np.uint64).reshape(-1, HASH_BITS // 64),
        sizes=[one.size for one in inspected],
        modes=[one.mode for one in inspected],
        mask_shows_defect=[one.mask_shows_defect for one in inspected],
        issues=[issue for one in inspected for issue in one.issues],
    )


def _inspect_rows(rows: list[dict[str, Any]]) -> list[_Inspected]:
    return [_inspect_row(row) for row in rows]


def _inspect_row(row: dict[str, Any]) -> _Inspected:
    name, raw, image, rotated, problem, shows_defect = row["file_name"], b"", None, False, None, None
    hashed, issues = np.zeros(HASH_BITS // 64, dtype=np.uint64), []
    try:
        if row["image"] is None:
            raise ValueError("no image")
        raw = image_bytes(row["image"])
        image, rotated = open_upright(raw)
        check_usable(image)
        grey = image if image.mode == "L" else image.convert("RGB").convert("L")
        hashed = perceptual_hash(grey)
    except Exception as error:  # Pillow's decoders raise many kinds of errors for damaged files
        problem = decoder_message(error)
    else:
        issues += [DataIssue(kind, (name,), note) for kind, note in _image_warnings(image, grey, rotated)]
    if problem is None and row["mask"] is not None:
        try:
            mask, mask_rotated = open_upright(image_bytes(row["mask"]))
            share = mask_to_array(mask, (mask.height, mask.width)).mean()
            shows_defect = bool(share > 0)
        except Exception as error:  # as above
            problem = f"its mask: {decoder_message(error)}"
        else:
            if share > 0.5:
                issues.append(DataIssue(LARGE_MASK, (name,), f"{share:.0%}"))
            if rotated != mask_rotated:
                problem = "an EXIF tag rotates either the image or its mask, but not both"
            elif mask.size != image.size:
                sizes = (f"{one.width} x {one.height}" for one in (mask, image))
                issues.append(DataIssue("mask size differs", (name,), "mask {}, image {}".format(*sizes)))
    return _Inspected(
        problem=problem,
        digest=hashlib.sha1(raw).hexdigest(),
        hash=hashed,
        size=image.size if image is not None else (0, 0),
        mode=image.mode if image is not None else "",
        mask_shows_defect=shows_defect,
        issues=issues,
    )


def _image_warnings(image: PILImage.Image, grey: PILImage.Image, rotated: bool) -> Iterator[tuple[str, str]]:
    """Yield `(kind, note)` for each peculiarity of a usable image."""
    if image.mode not in ("L", "RGB", "1"):
        yield "converted to RGB", image.mode
    if rotated:
        yield "rotated by EXIF", ""
    low, high = grey.getextrema()
    if low == high:
        yield "single grey value", str(low)


def find_unusable(file_names: list[str], inspection: Inspection) -> list[DataIssue]:
    """Return the unusable images and why they are."""
    problems = zip(file_names, inspection.problems, strict=True)
    return [DataIssue(UNUSABLE, (name,), problem) for name, problem in problems if problem is not None]


def find_duplicate_issues(images: Dataset, near_duplicates: np.ndarray, splits: list[str]) -> list[DataIssue]:
    """
    Return identical images, near-duplicates across groups, and what of both has several labels or source splits.

    Args:
        images: columns `file_name`, `label`, `group` (as in the source, not merged) and `digest`.
        near_duplicates: `(N,)`, from [`~kgl.data.duplicates.find_near_duplicates`].
        splits: the source split of each image.
    """
    names, labels, groups, digests = (images[column][:] for column in ("file_name", "label", "group", "digest"))
    classes = images.features["label"].names
    issues = []

    def add(kind: str, rows: list[int], note: str = "") -> None:
        issues.append(DataIssue(kind, tuple(names[row] for row in rows), note))

    def add_leak(rows: list[int], what: str) -> None:
        in_splits = sorted({splits[row] for row in rows})
        if len(in_splits) > 1:
            add(SPLIT_LEAK, rows, f"{what} in {' and '.join(in_splits)}")

    for rows in _rows_with_equal(digests):
        add("identical images", rows)
        found_labels = sorted({classes[labels[row]] for row in rows})
        if len(found_labels) > 1:
            add(CONFLICTING_LABELS, rows, ", ".join(found_labels))
        add_leak(rows, "identical images")
    for rows in _rows_with_equal(near_duplicates.tolist()):
        if len({digests[row] for row in rows}) == 1:
            continue  # reported as identical
        if len({groups[row] for row in rows}) > 1:
            add("near-duplicates", rows)
        found_labels = sorted({classes[labels[row]] for row in rows})
        if len(found_labels) > 1:
            add(NEAR_CONFLICTING_LABELS, rows, ", ".join(found_labels))
        add_leak(rows, "near-duplicates")
    for rows in _rows_with_equal(groups):
        add_leak(rows, "one group")
    return issues


def find_mask_issues(images: Dataset, mask_shows_defect: Iterable[bool | None], defect_free: str) -> list[DataIssue]:
    """Return images of the defect-free class whose mask shows a defect, and of other classes whose mask is empty."""
    defect_free_id = images.features["label"].str2int(defect_free)
    rows = zip(images["file_name"][:], images["label"][:], mask_shows_defect, strict=True)
    return [
        DataIssue(MASK_CONTRADICTS_LABEL, (name,), f"{'defect' if shows else 'no defect'} in the mask")
        for name, label, shows in rows
        if shows is not None and shows == (label == defect_free_id)
    ]


def find_small_classes(images: Dataset) -> list[DataIssue]:
    """Return classes with fewer than two images."""
    counts = Counter(images["label"][:])
    names = images.features["label"].names
    small = [name for index, name in enumerate(names) if counts[index] < 2]
    return [DataIssue("class with fewer than two images", (name,)) for name in small]


def _rows_with_equal(values: list[object]) -> list[list[int]]:
    """Return the rows of every value that several rows have."""
    rows: dict[object, list[int]] = {}
    for row, value in enumerate(values):
        rows.setdefault(value, []).append(row)
    return [of_value for of_value in rows.values() if len(of_value) > 1]


__all__ = [
    "CONFLICTING_LABELS",
    "LARGE_MASK",
    "MASK_CONTRADICTS_LABEL",
    "SPLIT_LEAK",
    "UNUSABLE",
    "ISSUE_ADVICE",
    "DataIssue",
    "Inspection",
    "find_duplicate_issues",
    "find_mask_issues",
    "find_small_classes",
    "find_unusable",
    "inspect_images",
]
