"""The columns every data set here has, how its rows are told apart, and its masks as arrays."""

from __future__ import annotations

import hashlib
import io
from typing import Any

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, Value
from datasets.utils.file_utils import xopen
from PIL import Image as PILImage
from torch.nn import functional as F

from .errors import InputError


def defect_dataset(
    *,
    images: list[Any],
    labels: list[str],
    names: list[str],
    file_names: list[str],
    masks: list[Any] | None = None,
    groups: list[str] | None = None,
) -> Dataset:
    """
    Rows of the data contract.

    Args:
        images: paths, or what `datasets.Image` takes otherwise.
        labels: the name of each one's class.
        names: of the classes, in the order of their indices.
        file_names: what each picture is called in messages; unique.
        masks: paths, encoded pictures or None; none where left out.
        groups: what never straddles a split; each picture by itself where left out.

    Raises:
        InputError: a file's name is no text.
    """
    unspeakable = [ascii(name) for name in file_names if not _is_text(name)]
    if unspeakable:
        raise InputError(f"Names of files that are no UTF-8, rename them: {', '.join(unspeakable)}.")
    features = Features(
        image=Image(), label=ClassLabel(names=names), mask=Image(), group=Value("string"), file_name=Value("string")
    )
    columns = {
        "image": images,
        "label": labels,
        "mask": [None] * len(images) if masks is None else masks,
        "group": file_names if groups is None else groups,
        "file_name": file_names,
    }
    return Dataset.from_dict(columns, features=features)


def undecoded(dataset: Dataset | IterableDataset) -> Dataset | IterableDataset:
    """The data set with its pictures and masks as `{"bytes", "path"}`, to be decoded by [`decoded`]."""
    for column in ("image", "mask"):
        if column in dataset.features:
            dataset = dataset.cast_column(column, Image(decode=False))
    return dataset


def decoded(encoded: dict[str, Any] | None) -> PILImage.Image | None:
    """The picture of an undecoded value."""
    return None if encoded is None else Image().decode_example(encoded)


def content(encoded: dict[str, Any]) -> bytes:
    """The bytes of an undecoded picture."""
    if encoded["bytes"]:
        return encoded["bytes"]
    with xopen(encoded["path"], "rb") as file:  # in an archive or on the Hub too
        return file.read()


def png(pixels: np.ndarray) -> dict[str, Any]:
    """Pixels `(H, W)` or `(H, W, 3)` uint8 as an undecoded picture."""
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, format="PNG")
    return {"bytes": buffer.getvalue(), "path": None}


def fingerprint(dataset: Dataset) -> str:
    """Changes whenever a picture, the name of its class, its mask or the order does."""
    rows = undecoded(dataset.select_columns(["digest", "label", "mask"]))
    return rows_digest(rows[:], dataset.features["label"].names)


def rows_digest(rows: dict[str, list[Any]], names: list[str]) -> str:
    """
    A SHA-1 of rows' pictures, the names of their classes, their masks and their order.

    Args:
        rows: columns of the data contract, undecoded; a `digest` stands for the picture where there is one.
        names: of the classes.
    """
    whole = hashlib.sha1()
    pictures = digests_of(rows)
    masks = rows.get("mask", [None] * len(pictures))
    for picture, label, mask in zip(pictures, rows["label"], masks, strict=True):
        whole.update(repr((picture, names[label], mask and _digest(mask))).encode())
    return whole.hexdigest()


def digests_of(rows: dict[str, list[Any]]) -> list[str]:
    """Each picture's SHA-1, of undecoded rows: their `digest` where they have one."""
    return rows["digest"] if "digest" in rows else [_digest(image) for image in rows["image"]]


def without_masks(pictures: Dataset) -> Dataset:
    """The same pictures, no mask known."""
    unmarked = pictures.remove_columns("mask").add_column("mask", [None] * len(pictures), feature=Image())
    return unmarked.select_columns(pictures.column_names)


def masks_in(pictures: Dataset) -> int:
    """How many of the pictures have a mask."""
    return sum(mask is not None for mask in undecoded(pictures)["mask"][:])


def mask_array(mask: PILImage.Image | None, size: tuple[int, int]) -> np.ndarray | None:
    """
    A mask as `(H, W)` bool at `size = (H, W)`, or None.

    Grey masks count from half-way up, as JPEG's need; those of small numbers (0 and 1, or a class a number) and of a
    palette count where they are not 0.
    """
    if mask is None:
        return None
    height, width = size
    values = np.asarray(mask if mask.mode in ("1", "L", "P") else mask.convert("L"))
    numbered = mask.mode in ("1", "P") or values.max(initial=0) < 16
    marked = PILImage.fromarray((values > (0 if numbered else 127)).astype(np.uint8) * 255)
    return np.asarray(marked.resize((width, height), PILImage.Resampling.BOX)) > 127


def mask_on_grid(masks: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Masks `(N, H, W)` bool on a coarser grid, `(N, h, w)` bool: a cell is defect where any of its pixels is."""
    pixels = torch.from_numpy(masks).float().unsqueeze(1)
    return F.adaptive_max_pool2d(pixels, tuple(grid))[:, 0].numpy() > 0


def _is_text(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)  # how Python keeps bytes that are none


def _digest(encoded: dict[str, Any]) -> str:
    return hashlib.sha1(content(encoded)).hexdigest()


__all__ = [
    "content",
    "decoded",
    "defect_dataset",
    "digests_of",
    "fingerprint",
    "mask_array",
    "mask_on_grid",
    "masks_in",
    "png",
    "rows_digest",
    "undecoded",
    "without_masks",
]
