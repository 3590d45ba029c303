"""
Draw learning curves of the evidence bench: AP and pixel AP of the heat map over images per class and over steps.

    python benchmarks/evidence/curves.py --output docs/evidence_curves.png

Lines are means over seeds, bars Student's 95 % intervals. One column per dataset's test folds
(`benchmarks/results/evidence.jsonl`) over the budget; the last column is the magnetic tiles' validation fold
(`search.jsonl`), 16 images per class, over all training steps, the primary's included. Points need three seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from kgl.benchmarks.evidence.records import (
    MIN_SEEDS,
    confidence_interval,
    pivot_metric,
    read_runs,
    values_by_seed,
)
from kgl.benchmarks.evidence.tables import has_all, metric_title
from kgl.benchmarks.measure import RESULTS


GRAD_CAM = "plain's Grad-CAM++"  # a map of the plain arm, not an arm
# Colours that colour-blind readers can tell apart (Okabe and Ito 2008).
STYLES = {
    "plain": ("#000000", "o", "-"),
    "plain, twice as long": ("#999999", "s", "-"),
    "blank mask": ("#56B4E9", "v", "-"),
    "guided": ("#D55E00", "D", "-"),
    "guided, head alone": ("#CC79A7", "P", "-"),
    "guided, true masks": ("#009E73", "^", "-"),
    "blank mask, convex": ("#56B4E9", "v", "--"),
    "guided, convex": ("#D55E00", "D", "--"),
    "true masks, convex": ("#009E73", "^", "--"),
    GRAD_CAM: ("#000000", "x", ":"),
}
METRICS = ("ap", "saliency_ap", "saliency_image_ap")
MIN_HEIGHT = 0.1  # of a vertical axis: differences of a thousandth should look like none


def source_of(name: str, metric: str) -> tuple[str, str]:
    """Return the arm and its metric that are drawn under a name of `STYLES`."""
    return ("plain", metric.replace("saliency_", "gradcam_")) if name == GRAD_CAM else (name, metric)


def draw_curve(axes: Axes, points: dict[float, pd.Series], name: str, shift: float) -> None:
    """Draw means and intervals of the seeds' values over `points`' keys, times `shift` so that bars stay apart."""
    colour, marker, line = STYLES[name]
    style = {"color": colour, "marker": marker, "linestyle": line, "markersize": 4, "linewidth": 1.2, "capsize": 2}
    positions = sorted(points)
    means = [points[position].mean() for position in positions]
    intervals = [confidence_interval(points[position]) for position in positions]
    errors = [0 if interval is None else interval[1] - mean for interval, mean in zip(intervals, means, strict=True)]
    axes.errorbar([position * shift for position in positions], means, errors, label=name, **style)


def draw_over_budgets(axes: Axes, runs: pd.DataFrame, metric: str) -> None:
    """
    Draw a curve per arm over images per class; hides the axes where there is nothing to draw.

    At each budget all curves are means over the same seeds: those of every arm that has at least three.
    """
    names = [name for name in STYLES if name != GRAD_CAM or metric.startswith("saliency_")]
    points: dict[str, dict[float, pd.Series]] = {name: {} for name in names}
    ticks = {}
    for budget, of_budget in runs.groupby("budget"):
        found = {}
        for name in names:
            arm, arm_metric = source_of(name, metric)
            values = values_by_seed(pivot_metric(of_budget, arm_metric), arm)
            if len(values) >= MIN_SEEDS:
                found[name] = values
        shared = pd.DataFrame(found).dropna()
        if len(shared) < MIN_SEEDS:
            continue
        ticks[budget] = f"{budget}\n{len(shared)} seeds"
        for name in shared:
            points[name][budget] = shared[name]
    if not ticks:
        axes.set_visible(False)
        return
    drawn = [name for name in names if points[name]]
    for index, name in enumerate(drawn):
        draw_curve(axes, points[name], name, 1.02 ** (index - len(drawn) / 2))
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(ticks) / 1.4, max(ticks) * 1.4)
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.set_xlabel("images per defect class")


def draw_over_steps(axes: Axes, lengths: list[pd.DataFrame], metric: str) -> None:
    """
    Draw a curve per arm over the steps of all its trainings; hides the axes where there is nothing to draw.

    Args:
        axes: to draw on.
        lengths: the runs of one place at each length of a phase; plain training's curve includes the doubled length.
        metric: to draw.
    """
    points: dict[str, dict[float, pd.Series]] = {name: {} for name in STYLES if name != "plain, twice as long"}
    for runs in lengths:
        for arm, of_arm in runs.groupby("arm"):
            curve = "plain" if arm == "plain, twice as long" else arm
            if curve in points and len(of_arm) >= MIN_SEEDS and has_all(of_arm, metric):
                points[curve][of_arm["steps"].iloc[0]] = of_arm[metric]
    ticks = sorted({steps for curve in points.values() for steps in curve})
    if not ticks:
        axes.set_visible(False)
        return
    for index, arm in enumerate(STYLES):
        if points.get(arm):
            draw_curve(axes, points[arm], arm, 1.02 ** (index - 2))
    axes.set_xscale("log")
    axes.set_xticks(ticks, [str(int(tick)) for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("steps of all phases")


def draw_figure(tested: pd.DataFrame, searched: pd.DataFrame) -> Figure:
    """Return a figure with a row per metric and a column per dataset, the search last."""
    counts = tested.groupby(["dataset", "budget", "arm"]).size()
    datasets = sorted(counts[counts >= MIN_SEEDS].index.unique("dataset"))
    columns = len(datasets) + 1
    figure, rows = plt.subplots(
        len(METRICS), columns, figsize=(3.3 * columns, 8.4), squeeze=False, layout="constrained"
    )
    of_sixteen = searched[searched["budget"] == 16]
    lengths = [of_sixteen[of_sixteen["dataset"] == name] for name in ("magnetic_tile", "magnetic_tile_long")]
    for row, metric in zip(rows, METRICS, strict=True):
        row[0].set_ylabel(metric_title(metric))
        for axes, dataset in zip(row, datasets, strict=False):
            draw_over_budgets(axes, tested[tested["dataset"] == dataset], metric)
        draw_over_steps(row[-1], lengths, metric)
        for axes in row:
            low, high = axes.get_ylim()
            margin = max(0, MIN_HEIGHT - (high - low)) / 2
            axes.set_ylim(max(0, low - margin), min(1.02, high + margin))
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
    for axes, dataset in zip(rows[0], datasets, strict=False):
        axes.set_title(f"{dataset.removesuffix('_long')}, test", fontsize=10)
    rows[0][-1].set_title("magnetic_tile, validation", fontsize=10)
    add_legend(figure, [axes for row in rows for axes in row], columns=5)
    return figure


def add_legend(figure: Figure, panels: list[Axes], columns: int) -> None:
    """Add one legend of all panels below them, names of `STYLES` in their order first."""
    handles: dict[str, object] = {}
    for axes in panels:
        handles |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    names = [name for name in STYLES if name in handles] + [name for name in handles if name not in STYLES]
    figure.legend([handles[name] for name in names], names, loc="outside lower center", ncols=columns, frameon=False)


def main() -> None:
    """Draw all runs of the results files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="a .png file")
    options = parser.parse_args()
    figure = draw_figure(read_runs(RESULTS / "evidence.jsonl"), read_runs(RESULTS / "search.jsonl"))
    figure.savefig(options.output, dpi=110)


if __name__ == "__main__":
    main()
