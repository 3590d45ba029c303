"""What a run ends with: a table and a grid of pictures that compare the plain classifier with the guided one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from datasets import Dataset
from matplotlib.figure import Figure

from .data import mask_array
from .evaluation import Predictions, enlarge


# Metric -> heading. Time counts what each needs: the guided classifier needs the primary and its priors too.
_COLUMNS = {
    "ap": "AP",
    "auroc": "AUROC",
    "accuracy": "accuracy",
    "defect_ap": "defect AP",
    "map_ap": "class map's pixel AP",
    "saliency_ap": "H's pixel AP",
    "seconds": "seconds",
}


def comparison_table(results: dict[str, dict[str, float]]) -> str:
    """A Markdown table of one row an arm; columns that no arm has are left out."""
    columns = [name for name in _COLUMNS if any(name in row for row in results.values())]
    lines = [
        "| | " + " | ".join(_COLUMNS[name] for name in columns) + " |",
        "| --- |" + " ---: |" * len(columns),
    ]
    for arm, row in results.items():
        cells = [f"{row[name]:.0f}" if name == "seconds" else f"{row[name]:.3f}" for name in columns]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def grid_rows(dataset: Dataset, count: int, defect_free: str | None) -> list[int]:
    """Up to `count` indices of defective pictures, the classes taking turns."""
    names = dataset.features["label"].names
    of_class = {name: [] for name in names if name != defect_free}
    for index, label in enumerate(dataset["label"]):
        if names[label] in of_class:
            of_class[names[label]].append(index)
    turns = [
        index for turn in zip(*(_padded(of_class[name], count) for name in of_class), strict=True) for index in turn
    ]
    return [index for index in turns if index is not None][:count]


def save_grid(
    path: Path,
    dataset: Dataset,
    plain: Predictions,
    guided: Predictions,
    size: tuple[int, int],
    title: str,
) -> None:
    """
    Write a PNG: a row a picture; image, prior, the plain and the guided classifier's class maps, H, and the true mask.

    Args:
        path: the PNG to write.
        dataset: the pictures of the rows, with `saliency_prior` where they were trained on and `mask` where known.
        plain: the primary's predictions for `dataset`.
        guided: the final model's.
        size: `(H, W)` that everything is drawn at.
        title: what stands above it all.
    """
    headings = ["image", "prior", "plain: class map", "guided: class map", "guided: H", "true mask"]
    height, width = size
    figure = Figure(figsize=(1.9 * len(headings), 0.6 + (1.9 * height / width + 0.25) * len(dataset)), dpi=110)
    axes = figure.subplots(len(dataset), len(headings), squeeze=False)
    maps = {
        "plain: class map": enlarge(plain.class_map, size),
        "guided: class map": enlarge(guided.class_map, size),
        "guided: H": enlarge(guided.saliency, size),
    }
    if "saliency_prior" in dataset.column_names:
        maps["prior"] = enlarge(np.asarray(dataset["saliency_prior"]) / 255, size)
    names = dataset.features["label"].names
    heat = None
    for index, row in enumerate(dataset):
        picture = np.asarray(row["image"].convert("L").resize((width, height)))
        for axis, heading in zip(axes[index], headings, strict=True):
            axis.set_axis_off()
            if index == 0:
                axis.set_title(heading, fontsize=9)
            if heading == "true mask":
                mask = mask_array(row["mask"], size)
                if mask is None:
                    axis.text(0.5, 0.5, "none", ha="center", va="center", transform=axis.transAxes)
                else:
                    axis.imshow(mask, cmap="gray", vmin=0, vmax=1)
            elif heading == "prior" and heading not in maps:
                axis.text(0.5, 0.5, "held out", ha="center", va="center", transform=axis.transAxes)
            else:
                axis.imshow(picture, cmap="gray", vmin=0, vmax=255)
            if heading in maps:
                heat = axis.imshow(maps[heading][index], cmap="inferno", vmin=0, vmax=1, alpha=0.6)
        axes[index][0].text(0, -0.04, names[row["label"]], fontsize=8, va="top", transform=axes[index][0].transAxes)
    figure.suptitle(title, fontsize=10)
    figure.tight_layout(rect=(0, 0, 0.94, 1))
    bar = figure.add_axes((0.95, 0.15, 0.012, 0.7))
    figure.colorbar(heat, cax=bar).set_label("saliency, 0..1", fontsize=8)
    figure.savefig(path)


def _padded(indices: list[int], count: int) -> list[int | None]:
    return [*indices[:count], *[None] * (count - len(indices))]


__all__ = ["comparison_table", "grid_rows", "save_grid"]
