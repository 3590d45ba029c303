"""
Learning curves of the evidence bench: AP, and maps' pixel AP, over images a class and over steps.

    python benchmarks/evidence_curves.py --output docs/evidence_curves.png

Lines are means over seeds, bars Student's 95 % intervals. A column a dataset's test folds (`results/evidence.jsonl`),
over the budget; the last one magnetic tiles' validation fold (`results/search.jsonl`), 16 a class, over all steps of
training, primaries' included. Nothing is drawn of fewer than three seeds.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from evidence_tables import Runs, all_have, interval, read, values_of
from matplotlib.axes import Axes


RESULTS = Path(__file__).parent / "results"
FREE = "plain's Grad-CAM++"  # the map that guidance has to beat, no arm of its own
# Colours that the colour-blind tell apart (Okabe and Ito).
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
    FREE: ("#000000", "x", ":"),
}


def draw_curve(axes: Axes, points: dict[float, np.ndarray], arm: str, shift: float) -> None:
    """Means of the seeds' figures over `points`' keys, moved aside by a factor so that bars stay apart."""
    colour, marker, line = STYLES[arm]
    style = {"color": colour, "marker": marker, "linestyle": line, "markersize": 4, "linewidth": 1.2, "capsize": 2}
    at = sorted(points)
    means = [points[one].mean() for one in at]
    halves = [0 if (around := interval(points[one])) is None else around[1] - points[one].mean() for one in at]
    places = [one * shift for one in at]
    axes.errorbar(places, means, halves, label=arm, **style)


def source_of(name: str, figure: str) -> tuple[str, str]:
    """The arm, and the figure of its runs, that is compared under this name."""
    return ("plain", figure.replace("saliency_", "gradcam_")) if name == FREE else (name, figure)


def over_budgets(axes: Axes, by_budget: dict[int, Runs], figure: str) -> None:
    """A curve an arm over images a class, of the seeds (three or more) that all arms with as many have."""
    sources = {name: source_of(name, figure) for name in STYLES if name != FREE or figure.startswith("saliency_")}
    drawn: dict[int, dict[str, dict[int, float]]] = {}
    for budget, runs in by_budget.items():
        found = {
            name: {seed: figures[wanted] for seed, figures in runs.get(arm, {}).items() if wanted in figures}
            for name, (arm, wanted) in sources.items()
        }
        drawn[budget] = {name: seeds for name, seeds in found.items() if len(seeds) >= 3}
    shared = {budget: set.intersection(*map(set, runs.values())) for budget, runs in drawn.items() if runs}
    shared = {budget: seeds for budget, seeds in shared.items() if len(seeds) >= 3}
    if not shared:
        axes.set_visible(False)
        return
    there = [name for name in sources if any(name in drawn[budget] for budget in shared)]
    for at, name in enumerate(there):
        points = {
            budget: np.array([drawn[budget][name][seed] for seed in sorted(seeds)])
            for budget, seeds in shared.items()
            if name in drawn[budget]
        }
        draw_curve(axes, points, name, 1.02 ** (at - len(there) / 2))
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(shared) / 1.4, max(shared) * 1.4)
    axes.set_xticks(sorted(shared), [f"{budget}\n{len(shared[budget])} seeds" for budget in sorted(shared)])
    axes.set_xlabel("images of each defect class")


def over_steps(axes: Axes, lengths: list[Runs], figure: str) -> None:
    """A curve an arm over all steps of training, its primary's included; plain's is also that of twice as long."""
    lengths = [
        {arm: runs[arm] for arm in STYLES if len(runs.get(arm, {})) >= 3 and all_have(runs[arm], figure)}
        for runs in lengths
    ]
    if not any(lengths):
        axes.set_visible(False)
        return
    ticks = set()
    for at, arm in enumerate(STYLES):
        points = {}
        for runs in lengths:
            for name in (arm, "plain, twice as long") if arm == "plain" else (arm,):
                if name in runs:
                    points[next(iter(runs[name].values()))["steps"]] = values_of(runs[name], figure)
        if points and arm != "plain, twice as long":
            draw_curve(axes, points, arm, 1.02 ** (at - 2))
            ticks |= points.keys()
    axes.set_xscale("log")
    axes.set_xticks(sorted(ticks), [str(int(tick)) for tick in sorted(ticks)])
    axes.set_xticks([], minor=True)
    axes.set_xlabel("steps, all phases")


def main() -> None:
    """Draw all that there are runs of."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args()
    searched = read(RESULTS / "search.jsonl")
    tested = read(RESULTS / "evidence.jsonl")
    datasets = sorted({name for (name, _), runs in tested.items() if any(len(seeds) >= 3 for seeds in runs.values())})
    figures = {
        "ap": "AP", "saliency_ap": "pixel AP of H, pooled", "saliency_image_ap": "pixel AP of H, an image",
    }  # fmt: skip
    grid, rows = plt.subplots(
        len(figures), len(datasets) + 1, figsize=(3.3 * (len(datasets) + 1), 8.4), squeeze=False, layout="constrained"
    )
    for row, (figure, called) in zip(rows, figures.items(), strict=True):
        row[0].set_ylabel(called)
        for axes, dataset in zip(row, datasets, strict=False):
            over_budgets(axes, {budget: runs for (name, budget), runs in tested.items() if name == dataset}, figure)
        lengths = [searched["magnetic_tile", 16], searched["magnetic_tile_long", 16]]
        over_steps(row[-1], lengths, figure)
        for axes in row:
            low, high = axes.get_ylim()
            wider = max(0, 0.1 - (high - low)) / 2  # differences of a thousandth look like nothing, as they should
            axes.set_ylim(max(0, low - wider), min(1.02, high + wider))
            axes.grid(alpha=0.3)
            axes.spines[["top", "right"]].set_visible(False)
    for axes, dataset in zip(rows[0], datasets, strict=False):
        axes.set_title(f"{dataset.removesuffix('_long')}, test", fontsize=10)
    rows[0][-1].set_title("magnetic_tile, validation", fontsize=10)
    drawn = [axes.get_legend_handles_labels() for row in rows for axes in row]
    legend = {name: handle for handles, names in drawn for handle, name in zip(handles, names, strict=True)}
    ordered = [name for name in STYLES if name in legend]
    grid.legend([legend[name] for name in ordered], ordered, loc="outside lower center", ncols=5, frameon=False)
    grid.savefig(options.output, dpi=110)


if __name__ == "__main__":
    main()
