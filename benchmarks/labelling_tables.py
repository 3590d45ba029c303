"""
Write the tables of `label_choice.py`, `label_errors.py` and `curve_forecast.py`, and the figure of the first.

    python benchmarks/labelling_tables.py [--into docs/labelling.md] [--figure docs/label_choice.png]

Intervals are Student's 95 % over repetitions, or seeds; repetitions that share a test fold are not independent. Bold
where the interval of a difference excludes 0; it is not corrected for the number of arms.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from kgl.benchmarks.evidence.formatting import format_difference, format_mean, markdown_table, replace_block
from kgl.benchmarks.evidence.records import read_lines
from kgl.benchmarks.label_choice import CONTROLS
from kgl.benchmarks.label_choice import OUTPUT as CHOICES
from kgl.benchmarks.label_errors import OUTPUT as ERRORS
from kgl.benchmarks.measure import RESULTS


TILES = "magnetic-tile"
FORECASTS = RESULTS / "curve_forecast.json"


def read_choices(path: Path) -> pd.DataFrame:
    """Return one row per task, repetition, arm and round."""
    return pd.DataFrame(
        {key: line[key] for key in ("task", "repetition", "arm")} | {"round": number} | one
        for line in read_lines(path)
        for number, one in enumerate(line["rounds"])
    )


def choice_table(choices: pd.DataFrame) -> str:
    """Return a table of the mean AP over the rounds after the start, and its differences from both controls."""
    rows = []
    for task, of_task in choices[choices["round"] > 0].groupby("task", sort=False):
        by_arm = of_task.groupby(["repetition", "arm"])["ap"].mean().unstack()
        bought = of_task[of_task["round"] == of_task["round"].max()].groupby("arm")["defects"].mean()
        for arm in of_task["arm"].unique():
            row = {"dataset": task, "chosen by": arm, "AP": f"{by_arm[arm].mean():.3f}"}
            for control in CONTROLS:
                known = control in by_arm and arm != control
                differences = (by_arm[arm] - by_arm[control]).dropna() if known else pd.Series(dtype=float)
                row[f"minus {control}"] = format_difference(differences) if len(differences) else ""
            row["repetitions"], row["defects labelled"] = str(by_arm[arm].count()), f"{bought[arm]:.0f}"
            rows.append(row)
    return markdown_table(rows, text_columns=2)


def draw_choices(choices: pd.DataFrame, path: Path) -> None:
    """Draw AP over the labels bought, a panel per task."""
    tasks = choices["task"].unique()
    figure, axes = plt.subplots(1, len(tasks), figsize=(4.2 * len(tasks), 3.6), squeeze=False, layout="constrained")
    for axis, task in zip(axes[0], tasks, strict=True):
        for arm, of_arm in choices[choices["task"] == task].groupby("arm", sort=False):
            means = of_arm.groupby("round")[["labels", "ap"]].mean()
            axis.plot(means["labels"], means["ap"], "--o" if arm in CONTROLS else "-o", markersize=3, label=arm)
        axis.set(title=task, xlabel="labelled images", ylabel="AP")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    figure.savefig(path, dpi=110)


def errors_table(path: Path) -> str:
    """Return a table of precision and recall of the list, a row per share of wrong labels, heads and part."""
    lines = [line for line in read_lines(path) if line["share"] > 0]
    runs = pd.DataFrame(
        {"data": line["data"], "share": line["share"], "heads": line["heads"], "part": part} | metrics
        for line in lines
        for part, metrics in line["parts"].items()
    )
    rows = []
    for (data, share, heads, part), group in runs.groupby(["data", "share", "heads", "part"], sort=False):
        listed = f"{group['listed'].mean():.0f}"
        rows.append(
            {"dataset": data, "labels flipped": f"{share:.0%}", "heads": heads, "reasons": part, "listed": listed}
            | {title: format_mean(group[name]) for title, name in (
                ("precision", "precision"), ("recall", "recall"),
                ("precision as far as there are flips", "precision_at_flips"), ("AP", "ap"),
            )}
        )  # fmt: skip
    return markdown_table(rows, text_columns=4)


def conflicts_table(path: Path) -> str:
    """Return a table of the ranks of the published conflicts, a column per kind of heads."""
    lines = [line for line in read_lines(path) if line["share"] == 0 and line["data"] == TILES]
    files = list(lines[0]["ranks_of_conflicts"]) if lines else []
    titles = [f"rank, {line['heads']} ({line['listed']} listed)" for line in lines]
    ranks = [line["ranks_of_conflicts"] for line in lines]
    rows = [
        {"tile of": file} | {title: str(one[file]) for title, one in zip(titles, ranks, strict=True)} for file in files
    ]
    return markdown_table(rows)


def forecast_table(path: Path) -> str:
    """Return a table of forecasts and measured gains."""
    lines = json.loads(path.read_text())["results"]
    rows = [
        {
            "curve": line["curve"],
            "metric": line["metric"],
            "labels per class": f"{line['from']} to {line['to']}",
            "forecast": f"{line['forecast']:+.3f} ({line['interval'][0]:+.3f} .. {line['interval'][1]:+.3f})",
            "measured": f"{line['measured']:+.3f}",
            "inside": "yes" if line["inside"] else "no",
        }
        for line in lines
    ]
    inside = np.mean([line["inside"] for line in lines])
    return f"{markdown_table(rows, text_columns=3)}\n\n{inside:.0%} of {len(lines)} lie inside the interval."


def main() -> None:
    """Print the tables, or write them into a page, and draw the figure where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, help="a page with markers to fill")
    parser.add_argument("--figure", type=Path, help="an image file for AP over labels")
    options = parser.parse_args()
    blocks = {}
    if CHOICES.exists():
        choices = read_choices(CHOICES)
        blocks["label choice"] = choice_table(choices)
        if options.figure is not None:
            draw_choices(choices, options.figure)
    if ERRORS.exists():
        blocks |= {"label errors": errors_table(ERRORS), "label conflicts": conflicts_table(ERRORS)}
    if FORECASTS.exists():
        blocks["curve forecast"] = forecast_table(FORECASTS)
    if options.into is None:
        print(*blocks.values(), sep="\n\n")
        return
    text = options.into.read_text()
    for name, block in blocks.items():
        text = replace_block(text, name, block)
    options.into.write_text(text)


if __name__ == "__main__":
    main()
