"""
Draw guided arms minus their controls, paired by seed.

    python benchmarks/evidence/differences.py --output docs/evidence_differences.png

One row per dataset and budget of `benchmarks/results/evidence.jsonl`, of the default or, where the row says so, of the
paper's convex schedule; a dot is the mean over the seeds that both arms have, a bar Student's 95 % interval. Left AP
and accuracy, right the heat map's pixel AP per image. Controls with fewer than three seeds are not drawn.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kgl.benchmarks.evidence.curves import GRAD_CAM, STYLES, add_legend, source_of
from kgl.benchmarks.evidence.records import (
    confidence_interval,
    paired_differences,
    pivot_metric,
    read_runs,
)
from kgl.benchmarks.evidence.tables import GUIDED, matching_control, metric_title, places
from kgl.benchmarks.measure import RESULTS


COLOURS = {arm: style[:2] for arm, style in STYLES.items()} | {
    "shuffled prior": ("#E69F00", "<"),
    "self-distillation": ("#0072B2", ">"),
}
CONTROLS = ("plain, twice as long", "blank mask", "shuffled prior", "self-distillation", "guided, true masks")
PANELS = {
    "ap": CONTROLS,
    "accuracy": CONTROLS,
    "saliency_image_ap": (GRAD_CAM, "shuffled prior", "guided, true masks"),
}


def differences(runs: pd.DataFrame, guided: str, metric: str, control: str) -> pd.Series:
    """Return a guided arm's metric minus that of the control with the same schedule, of one place."""
    arm, control_metric = source_of(matching_control(guided, control), metric)
    return paired_differences(pivot_metric(runs, metric), guided, arm, pivot_metric(runs, control_metric))


def draw_panel(axes: Axes, rows: list[tuple[pd.DataFrame, str]], metric: str, controls: tuple[str, ...]) -> None:
    """Draw a row per place and guided arm from the top, and in it each control at its own height."""
    for index, control in enumerate(controls):
        colour, marker = COLOURS[control]
        height = (index - (len(controls) - 1) / 2) * 0.15
        for row, (runs, guided) in enumerate(rows):
            values = differences(runs, guided, metric, control)
            interval = confidence_interval(values)
            if interval is None:
                continue
            axes.errorbar(
                values.mean(), row + height, xerr=interval[1] - values.mean(), label=control, color=colour,
                marker=marker, markersize=4, linewidth=1.2, capsize=2,
            )  # fmt: skip
    axes.axvline(0, color="#000000", linewidth=0.8)
    axes.grid(alpha=0.3, axis="x")
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(axis="y", length=0)


def draw_figure(runs: pd.DataFrame) -> Figure:
    """Return a figure with a panel per metric."""
    rows = {
        f"{dataset.removesuffix('_long')}, {budget} per class{guided.removeprefix('guided')}": (of_place, guided)
        for (dataset, budget), of_place in places(runs)
        for guided in GUIDED
        if any(confidence_interval(differences(of_place, guided, "ap", control)) for control in CONTROLS)
    }
    figure, panels = plt.subplots(
        1, len(PANELS), sharey=True, figsize=(12, 1.6 + 0.62 * len(rows)), layout="constrained"
    )
    for axes, (metric, controls) in zip(panels, PANELS.items(), strict=True):
        draw_panel(axes, list(rows.values()), metric, controls)
        axes.set_title(metric_title(metric), fontsize=10)
    figure.suptitle("guided minus control", fontsize=10)
    panels[0].set_yticks(range(len(rows)), list(rows))
    panels[0].invert_yaxis()
    add_legend(figure, list(panels), columns=len(COLOURS))
    return figure


def main() -> None:
    """Draw all runs of the results file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="a .png file")
    options = parser.parse_args()
    draw_figure(read_runs(RESULTS / "evidence.jsonl")).savefig(options.output, dpi=110)


if __name__ == "__main__":
    main()
