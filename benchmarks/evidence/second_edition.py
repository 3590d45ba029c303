"""
Write the tables and the figure of the second edition: frozen arms, every fold a test fold in turn.

    python benchmarks/evidence/second_edition.py [--into docs/evidence.md] [--figure docs/evidence_seconds.png]

A pair is a fold and a choice of training images (a seed; seeds of one fold differ in both images and weights). The
interval of a difference is Student's 95 % over the folds, each the mean of its pairs; in brackets, beside it, how many
of the pairs are above 0. Bold where the interval excludes 0. Intervals are not corrected for the number of places.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from kgl.benchmarks.evidence.formatting import format_difference, markdown_table, replace_block
from kgl.benchmarks.evidence.records import pivot_metric, read_lines, read_runs
from kgl.benchmarks.evidence.tables import places
from kgl.benchmarks.measure import RESULTS


RUNS, SEARCH = RESULTS / "second_edition.jsonl", RESULTS / "head_search.jsonl"
FOLDS = 4
DEFAULT = "default"
# Methods that only tell good from defective are compared by the AP of defects.
GOOD_PARTS_ONLY = ("nearest neighbours", "mahalanobis", "noise head alone", "patchcore")
MAPS = {  # column: arm, metric
    "H of the default": (DEFAULT, "saliency_cell_image_ap"),
    "nearest neighbours": ("nearest neighbours", "saliency_cell_image_ap"),
    "PatchCore": ("patchcore", "saliency_cell_image_ap"),
    "Grad-CAM++ of the regression": ("frozen regression", "map_cell_image_ap"),
    "H taught by Grad-CAM++": ("own saliency", "saliency_cell_image_ap"),
}


def metric_of(arm: str, of_place: pd.DataFrame) -> str:
    """Return the metric that an arm is compared by: AP over the classes, or that of defects against good images."""
    several = "defect_ap" in of_place and of_place["defect_ap"].notna().any()
    return "defect_ap" if several and arm in GOOD_PARTS_ONLY else "ap"


def by_fold(differences: pd.Series) -> pd.Series:
    """Return the mean difference of each fold, of differences indexed by seed."""
    return differences.groupby(differences.index % FOLDS).mean()


def differences_table(runs: pd.DataFrame) -> str:
    """Return a table of the default minus every other arm, a row per place."""
    rows = []
    for (dataset, budget), of_place in places(runs):
        row = {"dataset": dataset, "per class": str(budget)}
        default = pivot_metric(of_place, "ap")[DEFAULT].dropna()
        row["pairs"], row["AP of the default"] = str(len(default)), f"{default.mean():.3f}"
        for arm in [one for one in runs["arm"].unique() if one != DEFAULT]:
            values = pivot_metric(of_place, metric_of(arm, of_place))
            pairs = (values[DEFAULT] - values[arm]).dropna() if arm in values else pd.Series(dtype=float)
            won = f" [{(pairs > 0).sum()}/{len(pairs)}]" if len(pairs) else ""
            row[f"minus {arm}"] = f"{format_difference(by_fold(pairs))}{won}" if len(pairs) else ""
        rows.append(row)
    return markdown_table(rows, text_columns=2)


def maps_table(runs: pd.DataFrame) -> str:
    """Return a table of cell AP per image of each map, and how many images the default marks, a row per place."""
    rows = []
    for (dataset, budget), of_place in places(runs):
        row = {"dataset": dataset, "per class": str(budget)}
        for title, (arm, metric) in MAPS.items():
            values = pivot_metric(of_place, metric)
            row[title] = f"{values[arm].mean():.3f}" if arm in values and values[arm].notna().any() else ""
        for kind in ("good", "defective"):
            marked = pivot_metric(of_place, f"marked_{kind}")
            known = DEFAULT in marked and marked[DEFAULT].notna().any()
            row[f"{kind} images marked"] = f"{marked[DEFAULT].mean():.0%}" if known else ""
        rows.append(row)
    return markdown_table(rows, text_columns=2)


def search_table(path: Path) -> str:
    """Return a table of the candidates for the heads: mean AP alone and fused, mean cell AP, over the tested folds."""
    lines = pd.json_normalize(read_lines(path))
    columns = {"alone": "ap.alone", "equal spreads": "ap.equal spreads", "ranks": "ap.ranks",
               "stacking": "ap.stacking", "cell AP per image": "cell_image_ap"}  # fmt: skip
    means = lines.groupby("candidate", sort=False)[list(columns.values())].mean()
    rows = [
        {"candidate": name} | {title: f"{row[column]:.3f}" for title, column in columns.items()}
        for name, row in means.iterrows()
    ]
    alone = lines["ap.regression"].mean()
    rows.append({"candidate": "regression", "alone": f"{alone:.3f}"} | dict.fromkeys(list(columns)[1:], ""))
    return markdown_table(rows)


def draw_seconds(runs: pd.DataFrame, path: Path) -> None:
    """Draw AP over the seconds that fitting takes, a panel per place; features are computed before and not counted."""
    of_places = list(places(runs))
    figure, axes = plt.subplots(
        1, len(of_places), figsize=(3.2 * len(of_places), 3.4), squeeze=False, layout="constrained"
    )
    for axis, ((dataset, budget), of_place) in zip(axes[0], of_places, strict=True):
        for arm, of_arm in of_place.groupby("arm", sort=False):
            axis.plot(of_arm["seconds"].median(), of_arm[metric_of(arm, of_place)].mean(), "o", label=arm)
        axis.set(title=f"{dataset}, {budget}", xscale="log", xlabel="seconds (median)")
    axes[0][0].set_ylabel("AP (of defects, where an arm knows no classes)")
    handles, labels = axes[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize=8)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Print the tables, or write them into pages, and draw the figure where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="?", default=RUNS)
    parser.add_argument("--into", type=Path, nargs="+", help="pages with markers to fill")
    parser.add_argument("--figure", type=Path, help="an image file for AP over seconds")
    options = parser.parse_args()
    if not options.runs.exists():
        parser.error(f"{options.runs}: no such file.")
    runs = read_runs(options.runs)
    blocks = {"second differences": differences_table(runs), "second maps": maps_table(runs)}
    if SEARCH.exists():
        blocks["head search"] = search_table(SEARCH)
    if options.figure is not None:
        draw_seconds(runs, options.figure)
    if options.into is None:
        print(*blocks.values(), sep="\n\n")
        return
    for page in options.into:
        text = page.read_text()
        for name, block in blocks.items():
            if f"<!-- {name} -->" in text:
                text = replace_block(text, name, block)
        page.write_text(text)


if __name__ == "__main__":
    main()
