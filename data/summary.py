"""Dataset summary: splits, classes, sizes and data issues, before anything is trained."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from datasets import Dataset

from ..errors import InputError, format_count
from .arguments import DataArguments
from .defect_free import DefectFreeClass
from .loading import LoadedDataset, read_images, split_images
from .masks import count_masks
from .validation import ISSUE_ADVICE, DataIssue, Inspection


_MIN_SQUEEZE = 2  # ratio of aspect ratios from which it is warned of
_MULTIPLE = 16  # that suggested sides are of


def summarize_dataset(args: DataArguments) -> dict[str, Any]:
    """
    Return the dataset summary as a dictionary for JSON.

    Unusable images are among its `issues`. Where the dataset cannot be split, `split_error` stands in the place of
    `splits`.

    Raises:
        InputError: the dataset cannot be read at all.
    """
    return summarize_images(read_images(replace(args, on_bad_image="skip")), args)


def summarize_images(loaded: LoadedDataset, args: DataArguments) -> dict[str, Any]:
    """Return the dataset summary of what [`~kgl.data.loading.read_images`] read."""
    summary = {
        "dataset": loaded.dataset,
        "source": loaded.source,
        "defect_free_label": loaded.defect_free.label,
        "defect_free_origin": loaded.defect_free.origin,
        "duplicate_distance": loaded.duplicate_distance,
        "source_splits": {name: summarize_split(split) for name, split in loaded.splits.items()},
        **summarize_inspection(loaded.inspection),
        "issues": [asdict(issue) for issue in loaded.issues],
    }
    try:
        split = split_images(loaded, args)
    except InputError as error:
        return summary | {"split_error": str(error), "notes": loaded.notes}
    # Training splits have no masks unless they are trained on, so their number would mislead.
    splits = {name: summarize_split(rows) | {"masks": None} for name, rows in split.splits.items()}
    return summary | {"splits": splits, "notes": split.notes}


def summarize_split(split: Dataset) -> dict[str, Any]:
    """Return the number of images, of each class, of groups and of masks."""
    counts = Counter(split["label"][:])
    return {
        "images": len(split),
        "classes": {name: counts[index] for index, name in enumerate(split.features["label"].names)},
        "groups": len(set(split["group"][:])),
        "masks": count_masks(split),
    }


def summarize_inspection(inspection: Inspection) -> dict[str, Any]:
    """Return the minimum, median and maximum of widths and heights, and the number of images of each Pillow mode."""
    usable = zip(inspection.sizes, inspection.problems, strict=True)
    widths, heights = np.asarray([size for size, problem in usable if problem is None]).T
    return {
        "widths": [int(value) for value in np.quantile(widths, (0, 0.5, 1), method="nearest")],
        "heights": [int(value) for value in np.quantile(heights, (0, 0.5, 1), method="nearest")],
        "modes": dict(Counter(mode for mode in inspection.modes if mode)),
    }


def format_summary(summary: dict[str, Any], max_listed: int) -> str:
    """Return [`summarize_dataset`]'s result as text, with at most `max_listed` issues of each kind."""
    lines = [f"{summary['dataset']}, {summary['source']}"]
    lines += _format_splits("As in the source", summary["source_splits"])
    if "splits" in summary:
        lines += _format_splits("As used for training", summary["splits"])
    else:
        lines.append(f"Cannot be split: {summary['split_error']}")
    lines += summary["notes"]
    lines.append(f"Defect-free class: {DefectFreeClass(summary['defect_free_label'], summary['defect_free_origin'])}")
    lines.append(f"Near-duplicates: at most {summary['duplicate_distance']} of 256 bits apart (--duplicate_distance)")
    for side in ("widths", "heights"):
        lines.append(f"{side.capitalize()}: {' / '.join(map(str, summary[side]))} pixels (min / median / max)")
    lines.append("Modes: " + ", ".join(f"{count} {mode}" for mode, count in summary["modes"].items()))
    issues_of_kind: dict[str, list[DataIssue]] = {}
    for issue in summary["issues"]:
        issues_of_kind.setdefault(issue["kind"], []).append(DataIssue(**issue))
    for kind, issues in issues_of_kind.items():
        lines.append(f"Issue, {kind}: {len(issues)}{f' ({ISSUE_ADVICE[kind]})' if kind in ISSUE_ADVICE else ''}")
        lines += [f"  {issue.shortened()}" for issue in issues[:max_listed]]
        if len(issues) > max_listed:
            lines.append(
                f"  and {len(issues) - max_listed} more (--listed {len(issues)}, or --output FILE.json for all)"
            )
    if not issues_of_kind:
        lines.append("No issues.")
    return "\n".join(lines)


def _format_splits(title: str, splits: dict[str, Any]) -> list[str]:
    lines = [f"{title}:"]
    for name, split in splits.items():
        classes = ", ".join(f"{count} {label}" for label, count in split["classes"].items())
        groups = format_count(split["groups"], "group")
        masks = "" if split["masks"] is None else f", {format_count(split['masks'], 'mask')}"
        lines.append(f"  {name}: {format_count(split['images'], 'image')} ({classes}), {groups}{masks}")
    return lines


def squeeze_warning(loaded: LoadedDataset, size: tuple[int, int]) -> str | None:
    """
    Return a sentence on images whose shape is far from the one that they are resized to, with the settings that keep
    it; None where the median aspect ratios differ by less than a factor of 2 or are unknown.

    Args:
        loaded: the images.
        size: height and width that they are resized to.
    """
    sizes = [loaded.inspection.sizes[row] for row in loaded.inspection.usable]
    ratios = [width / height for width, height in sizes if height > 0]  # of streamed images there are no sizes
    if not ratios:
        return None
    ratio, (height, width) = float(np.median(ratios)), size
    if max(ratio * height / width, width / height / ratio) < _MIN_SQUEEZE:
        return None
    sides = (max(1, round((height * width * one) ** 0.5 / _MULTIPLE)) * _MULTIPLE for one in (ratio, 1 / ratio))
    shape = f"{ratio:.1f} times as wide as high" if ratio > 1 else f"{1 / ratio:.1f} times as high as wide"
    return (
        f"The images are {shape} (median) and are resized to {width} x {height} pixels (width x height), which "
        "squeezes fine defects; --image_width {} --image_height {} keeps their shape.".format(*sides)
    )


def print_loaded_dataset(loaded: LoadedDataset, size: tuple[int, int]) -> None:
    """
    Print where a dataset comes from, its defect-free class, its splits, and what its owner should know.

    Args:
        loaded: the dataset.
        size: height and width that its images are resized to.
    """
    print(f"Data: {loaded.source} ({loaded.dataset}). Defect-free class: {loaded.defect_free}.")
    for name, split in loaded.splits.items():
        summary = summarize_split(split)
        classes = ", ".join(f"{count} {label}" for label, count in summary["classes"].items())
        masks = f"; {summary['masks']} with a mask" if summary["masks"] else ""
        print(f"  {name}: {format_count(summary['images'], 'image')} ({classes}{masks})")
    squeezed = squeeze_warning(loaded, size)
    for warning in loaded.warnings + ([] if squeezed is None else [squeezed]):
        print(f"  {warning}")


__all__ = ["format_summary", "print_loaded_dataset", "squeeze_warning", "summarize_dataset", "summarize_images"]
