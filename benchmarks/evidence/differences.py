"""
What guidance is worth, in one image: guided arms less their controls, paired by seed.

    python benchmarks/evidence_differences.py --output docs/evidence_differences.png

A row a dataset and budget of `results/evidence.jsonl`, of the default or, where it says so, of the paper's convex
schedule; a dot is the mean over the seeds that both have, a bar Student's 95 % interval. Left AP and accuracy, right
the pixel AP of H, each image counting alike. A control with fewer than three seeds is not drawn.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from evidence_curves import FREE, RESULTS, STYLES, source_of
from evidence_tables import GUIDED, Runs, interval, paired, read, under_schedule_of
from matplotlib.axes import Axes


COLOURS = {arm: style[:2] for arm, style in STYLES.items()} | {
    "shuffled prior": ("#E69F00", "<"),
    "self-distillation": ("#0072B2", ">"),
}
OF_LABELS = ("plain, twice as long", "blank mask", "shuffled prior", "self-distillation", "guided, true masks")
PANELS = {
    "AP": ("ap", OF_LABELS),
    "accuracy": ("accuracy", OF_LABELS),
    "pixel AP of H, an image": ("saliency_image_ap", (FREE, "shuffled prior", "guided, true masks")),
}


def differences(runs: Runs, guided: str, figure: str, control: str) -> np.ndarray:
    """A guided arm's figure less the control's under its schedule, of the seeds that have both."""
    arm, theirs = source_of(under_schedule_of(guided, control), figure)
    return paired(runs.get(guided, {}), runs.get(arm, {}), figure, theirs)


def draw_panel(axes: Axes, rows: list[tuple[Runs, str]], figure: str, controls: tuple[str, ...]) -> None:
    """A row a task and guided arm, from the top; a control's dots at its own height in it."""
    for at, control in enumerate(controls):
        colour, marker = COLOURS[control]
        height = (at - (len(controls) - 1) / 2) * 0.15
        for row, (runs, guided) in enumerate(rows):
            values = differences(runs, guided, figure, control)
            around = interval(values)
            if around is None:
                continue
            mean = values.mean()
            axes.errorbar(
                mean, row + height, xerr=around[1] - mean, label=control, color=colour, marker=marker,
                markersize=4, linewidth=1.2, capsize=2,
            )  # fmt: skip
    axes.axvline(0, color="#000000", linewidth=0.8)
    axes.grid(alpha=0.3, axis="x")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def main() -> None:
    """Draw all that there are runs of."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    rows = {
        f"{dataset.removesuffix('_long')}, {budget} a class{guided.removeprefix('guided')}": (runs, guided)
        for (dataset, budget), runs in sorted(read(RESULTS / "evidence.jsonl").items())
        for guided in GUIDED
        if any(interval(differences(runs, guided, "ap", control)) for control in OF_LABELS)
    }
    grid, panels = plt.subplots(
        1, len(PANELS), sharey=True, figsize=(12, 1.6 + 0.62 * len(rows)), layout="constrained"
    )
    for axes, (called, (figure, controls)) in zip(panels, PANELS.items(), strict=True):
        draw_panel(axes, list(rows.values()), figure, controls)
        axes.set_title(f"guided less control: {called}", fontsize=10)
    panels[0].set_yticks(range(len(rows)), list(rows))
    panels[0].invert_yaxis()
    drawn = [axes.get_legend_handles_labels() for axes in panels]
    legend = {name: handle for handles, labels in drawn for handle, name in zip(handles, labels, strict=True)}
    grid.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=len(legend), frameon=False)
    grid.savefig(options.output, dpi=110)


if __name__ == "__main__":
    main()
