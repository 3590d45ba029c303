"""The dataset schema: columns, digests and fingerprints."""

from __future__ import annotations

import hashlib
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
    Rows of the data contract.

    Args:
        images: paths, or what `datasets.Image` takes otherwise.
        labels: the name of each one's class.
        names: of the classes, in the order of their indices.
        file_names: what each image is called in messages; unique.
        masks: paths, encoded images or None; none where left out.
        groups: what never straddles a split; each image by itself where left out.

    Raises:
        InputError: a file's name is no text.
    """
    non_utf8_names = [ascii(name) for name in file_names if not _is_utf8(name)]
    if non_utf8_names:
        raise InputError(f"Names of files that are no UTF-8, rename them: {', '.join(non_utf8_names)}.")
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


def dataset_fingerprint(dataset: Dataset) -> str:
    """Changes whenever an image, the name of its class, its mask or the order does."""
    rows = without_decoding(dataset.select_columns(["digest", "label", "mask"]))
    return digest_rows(rows[:], dataset.features["label"].names)


def digest_rows(rows: dict[str, list[Any]], names: list[str]) -> str:
    """
    A SHA-1 of rows' images, the names of their classes, their masks and their order.

    Args:
        rows: columns of the data contract, undecoded; a `digest` stands for the image where there is one.
        names: of the classes.
    """
    whole = hashlib.sha1()
    images = image_digests(rows)
    masks = rows.get("mask", [None] * len(images))
    for image, label, mask in zip(images, rows["label"], masks, strict=True):
        whole.update(repr((image, names[label], mask and _digest(mask))).encode())
    return whole.hexdigest()


def image_digests(rows: dict[str, list[Any]]) -> list[str]:
    """Each image's SHA-1, of undecoded rows: their `digest` where they have one."""
    return rows["digest"] if "digest" in rows else [_digest(image) for image in rows["image"]]


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)  # how Python keeps bytes that are none


def _digest(encoded: dict[str, Any]) -> str:
    return hashlib.sha1(image_bytes(encoded)).hexdigest()


__all__ = ["dataset_fingerprint", "defect_dataset", "digest_rows", "image_digests"]
