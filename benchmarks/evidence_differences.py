"""
What guidance is worth, in one picture: the default less its controls, paired by seed.

    python benchmarks/evidence_differences.py --output docs/evidence_differences.png

A row a data set and budget of `results/evidence.jsonl`, a dot the mean over the seeds that both have, bars Student's
95 % intervals. Left AP and accuracy, right the pixel AP of H, each picture counting alike. A control with fewer than
three seeds is not drawn.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from evidence_curves import FREE, RESULTS, STYLES
from evidence_tables import Runs, interval, paired, read
from matplotlib.axes import Axes


COLOURS = {arm: style[:2] for arm, style in STYLES.items()} | {
    "shuffled prior": ("#E69F00", "<"),
    "self-distillation": ("#0072B2", ">"),
}
OF_LABELS = ("plain, twice as long", "blank mask", "shuffled prior", "self-distillation", "guided, true masks")
PANELS = {
    "AP": ("ap", OF_LABELS),
    "accuracy": ("accuracy", OF_LABELS),
    "pixel AP of H, a picture": ("saliency_picture_ap", (FREE, "shuffled prior", "guided, true masks")),
}


def differences(runs: Runs, figure: str, control: str) -> np.ndarray:
    """The default's figure less the control's, of the seeds that have both."""
    arm, theirs = ("plain", figure.replace("saliency_", "gradcam_")) if control == FREE else (control, figure)
    return paired(runs.get("guided", {}), runs.get(arm, {}), figure, theirs)


def draw_panel(axes: Axes, by_task: list[Runs], figure: str, controls: tuple[str, ...]) -> None:
    """A row a task, from the top; a control's dots at its own height in it."""
    for at, control in enumerate(controls):
        colour, marker = COLOURS[control]
        height = (at - (len(controls) - 1) / 2) * 0.15
        for row, runs in enumerate(by_task):
            values = differences(runs, figure, control)
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
    by_task = {
        name: runs
        for name, runs in sorted(read(RESULTS / "evidence.jsonl").items())
        if any(interval(differences(runs, "ap", control)) for control in OF_LABELS)
    }
    grid, panels = plt.subplots(
        1, len(PANELS), sharey=True, figsize=(12, 1.6 + 0.62 * len(by_task)), layout="constrained"
    )
    for axes, (called, (figure, controls)) in zip(panels, PANELS.items(), strict=True):
        draw_panel(axes, list(by_task.values()), figure, controls)
        axes.set_title(f"guided less control: {called}", fontsize=10)
    names = [f"{dataset.removesuffix('_long')}, {budget} a class" for dataset, budget in by_task]
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    drawn = [axes.get_legend_handles_labels() for axes in panels]
    legend = {name: handle for handles, labels in drawn for handle, name in zip(handles, labels, strict=True)}
    grid.legend(legend.values(), legend.keys(), loc="outside lower center", ncols=len(legend), frameon=False)
    grid.savefig(options.output, dpi=110)


if __name__ == "__main__":
    main()
