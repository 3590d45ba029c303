"""Dataset summary: counts, classes, sizes, splits and data issues."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from ..errors import InputError
from .arguments import DataArguments
from .loading import defect_free_label, duplicate_distance, read_images, split_images
from .masks import count_masks
from .validation import DataIssue, Inspection


def summarize_dataset(args: DataArguments) -> dict[str, Any]:
    """
    Counts, classes, sizes, groups, splits, and everything odd.

    Images that cannot be used are among the oddities; `no_split` says why there is no split where there is none.

    Raises:
        InputError: there is nothing to read at all.
    """
    images, scan, oddities = read_images(replace(args, on_bad_image="skip"))
    findings = {
        "defect_free": defect_free_label(args),
        "duplicate_distance": duplicate_distance(args),
        "splits_that_it_comes_with": {name: summarize_split(split) for name, split in images.items()},
        **summarize_inspection(scan),
        "oddities": [asdict(one) for one in add_class_issues(oddities, images)],
    }
    try:
        splits = split_images(images, args)
    except InputError as error:
        return findings | {"no_split": str(error)}
    # Masks are left out of the training split unless it is trained on them: their number would mislead.
    return findings | {"splits": {name: summarize_split(split) | {"masks": None} for name, split in splits.items()}}


def summarize_split(split: Dataset) -> dict[str, Any]:
    names = split.features["label"].names
    counts = Counter(split["label"][:])
    return {
        "images": len(split),
        "classes": {name: counts[index] for index, name in enumerate(names)},
        "groups": len(set(split["group"][:])),
        "masks": count_masks(split),
    }


def summarize_inspection(scan: Inspection) -> dict[str, Any]:
    sizes = [size for size, problem in zip(scan.sizes, scan.problems, strict=True) if problem is None]
    widths, heights = (np.asarray(side) for side in zip(*sizes, strict=True))
    return {
        "widths": [int(value) for value in np.quantile(widths, (0, 0.5, 1), method="nearest")],
        "heights": [int(value) for value in np.quantile(heights, (0, 0.5, 1), method="nearest")],
        "modes": dict(Counter(mode for mode in scan.modes if mode)),
    }


def add_class_issues(oddities: list[DataIssue], images: DatasetDict) -> list[DataIssue]:
    """What was found, and classes that are too small to learn from."""
    train = images["train"]
    counts = Counter(train["label"])
    small = [name for index, name in enumerate(train.features["label"].names) if counts[index] < 2]
    return [*oddities, *(DataIssue("class of fewer than two images", (name,)) for name in small)]


def format_summary(findings: dict[str, Any], listed: int) -> str:
    """[`summarize_dataset`] in words."""
    lines = []
    for title, splits in (("As it comes", "splits_that_it_comes_with"), ("To train, validate and test", "splits")):
        if splits not in findings:
            continue
        lines.append(f"{title}:")
        for name, split in findings[splits].items():
            classes = ", ".join(f"{count} {label}" for label, count in split["classes"].items())
            groups = f"{split['groups']} independent groups"
            if split["masks"] is not None:
                groups += f", {split['masks']} with a mask"
            lines.append(f"  {name}: {split['images']} images ({classes}); {groups}")
    if "no_split" in findings:
        lines.append(f"No split: {findings['no_split']}")
    good = findings["defect_free"]
    distance = findings["duplicate_distance"]
    lines.append(f"Images at most {distance} of 256 bits apart show the same (--duplicate_distance)")
    lines.append(f"Class without defects: {good or 'none is named (--defect_free_label)'}")
    for side in ("widths", "heights"):
        lines.append(f"{side.capitalize()}: {' / '.join(map(str, findings[side]))} pixels (least, median, most)")
    lines.append("Modes: " + ", ".join(f"{count} {mode}" for mode, count in findings["modes"].items()))
    by_kind: dict[str, list[DataIssue]] = {}
    for one in findings["oddities"]:
        by_kind.setdefault(one["kind"], []).append(DataIssue(**one))
    for kind, of_kind in by_kind.items():
        lines.append(f"Odd, {kind}: {len(of_kind)}")
        lines += [f"  {one}" for one in of_kind[:listed]]
        if len(of_kind) > listed:
            lines.append(f"  and {len(of_kind) - listed} more")
    if not by_kind:
        lines.append("Nothing odd.")
    return "\n".join(lines)


def print_dataset_summary(data) -> None:
    names = data.splits["train"].features["label"].names
    for name, split in data.splits.items():
        labels = split["label"]
        print(f"{name}: {len(split)} images ({', '.join(f'{labels.count(i)} {n}' for i, n in enumerate(names))})")


__all__ = ["print_dataset_summary", "format_summary", "summarize_dataset"]
