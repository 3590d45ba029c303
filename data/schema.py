"""The dataset schema: columns, digests and fingerprints."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, Image, Value

from ..errors import InputError
from .images import image_bytes, without_decoding


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
    Return rows of the data contract.

    Args:
        images: paths, arrays, or anything else that `datasets.Image` encodes.
        labels: the class name of each image.
        names: all class names, in the order of their indices.
        file_names: a unique name for each image, for messages.
        masks: as `images`, None for an image without a mask.
        groups: the group of each image, which stays in one split; each image is its own by default.

    Raises:
        InputError: a file name is not UTF-8.
    """
    non_utf8_names = [ascii(name) for name in file_names if not _is_utf8(name)]
    if non_utf8_names:
        raise InputError(f"File names that are not UTF-8; rename them: {', '.join(non_utf8_names)}.")
    features = Features(
        image=Image(), label=ClassLabel(names=names), mask=Image(), group=Value("string"), file_name=Value("string")
    )
    columns = {
        "image": [_absolute(image) for image in images],
        "label": labels,
        "mask": [None] * len(images) if masks is None else [_absolute(mask) for mask in masks],
        "group": file_names if groups is None else groups,
        "file_name": file_names,
    }
    return Dataset.from_dict(columns, features=features)


def dataset_fingerprint(dataset: Dataset) -> str:
    """Return a digest of the images, their class names, their masks and their order."""
    rows = without_decoding(dataset.select_columns(["digest", "label", "mask"]))
    return digest_rows(rows[:], dataset.features["label"].names)


def digest_rows(rows: dict[str, list[Any]], names: list[str]) -> str:
    """
    Return a SHA-1 of the rows' images, their class names, their masks and their order.

    Args:
        rows: undecoded columns of the data contract; the column `digest` is used in place of the image if present.
        names: all class names, in the order of their indices.
    """
    digest = hashlib.sha1()
    images = image_digests(rows)
    masks = rows.get("mask", [None] * len(images))
    for image, label, mask in zip(images, rows["label"], masks, strict=True):
        digest.update(repr((image, names[label], mask and _digest(mask))).encode())
    return digest.hexdigest()


def image_digests(rows: dict[str, list[Any]]) -> list[str]:
    """Return the SHA-1 of each undecoded image, from the column `digest` if present."""
    return rows["digest"] if "digest" in rows else [_digest(image) for image in rows["image"]]


def _absolute(image: Any) -> Any:
    # A relative path that starts like an address (a::b) would be opened as one.
    return str(Path(image).absolute()) if isinstance(image, str) else image


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)  # how Python keeps undecodable bytes


def _digest(encoded: dict[str, Any]) -> str:
    return hashlib.sha1(image_bytes(encoded)).hexdigest()


__all__ = ["dataset_fingerprint", "defect_dataset", "digest_rows", "image_digests"]
