"""
Write the tables and the figure of the second edition: every fold a test fold in turn.

    python benchmarks/evidence/second_edition.py [--into docs/evidence.md] [--figure docs/evidence_seconds.png]

A pair is a fold and a choice of training images (a seed; seeds of one fold differ in both images and weights). The
interval of a difference is Student's 95 % over the folds, each the mean of its pairs; in brackets, beside it, how many
of the pairs are above 0. Bold where the interval excludes 0. Intervals are not corrected for the number of places. In
the summary the places of a fold are averaged before.
"""

from __future__ import annotations

import argparse
from collections.abc import Collection
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from kgl.benchmarks.evidence.formatting import format_difference, markdown_table, replace_block
from kgl.benchmarks.evidence.records import confidence_interval, pivot_metric, read_lines, read_runs
from kgl.benchmarks.evidence.tables import places
from kgl.benchmarks.measure import RESULTS


RUNS, SEARCH = RESULTS / "second_edition.jsonl", RESULTS / "head_search.jsonl"
CHECK = RESULTS / "patchcore_check.jsonl"
FOLDS = 4
BUDGET_SHOWN = 8  # in the figure
DEFAULT = "default"
GOAL = [(dataset, budget) for dataset in ("tiles", "tiles_defect", "boards") for budget in (8, 16)]
# On frozen features and labels.
FROZEN = ("another image's map", "frozen regression", "regression, chosen", "own saliency", "default, true masks")
# Methods that only tell good from defective are compared by the AP of defects.
GOOD_PARTS_ONLY = ("nearest neighbours", "mahalanobis", "noise head alone", "patchcore")
HEADLINE = (
    "another image's map", "regression, chosen", "own saliency", "nearest neighbours", "patchcore", "plain",
    "default and plain",
)  # fmt: skip
FINE_TUNED = ("plain", "guided, paper", "default, fine-tuned", "default and plain")
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


def differences(of_place: pd.DataFrame, arm: str) -> pd.Series:
    """Return the default minus an arm, indexed by seed; empty where the arm did not run."""
    values = pivot_metric(of_place, metric_of(arm, of_place))
    return (values[DEFAULT] - values[arm]).dropna() if arm in values else pd.Series(dtype=float)


def rivals_of(runs: pd.DataFrame, kind: tuple[str, ...]) -> list[str]:
    """Return the arms of one kind, in the order of the runs."""
    return [arm for arm in runs["arm"].unique() if arm in kind]


def differences_table(runs: pd.DataFrame, arms: list[str]) -> str:
    """Return a table of the default minus arms, a row per place."""
    rows = []
    for (dataset, budget), of_place in places(runs):
        row = {"dataset": dataset, "per class": str(budget)}
        metric = metric_of(arms[0], of_place)
        default = pivot_metric(of_place, metric)[DEFAULT].dropna()
        row["pairs"], row["AP of the default"] = str(len(default)), f"{default.mean():.3f}"
        for arm in arms:
            pairs = differences(of_place, arm)
            won = f" [{(pairs > 0).sum()}/{len(pairs)}]"
            row[f"minus {arm}"] = f"{format_difference(by_fold(pairs))}{won}" if len(pairs) else ""
        if any(row[f"minus {arm}"] for arm in arms):
            rows.append(row)
    return markdown_table(rows, text_columns=2)


def summary_table(runs: pd.DataFrame, arms: Collection[str] | None = None) -> str:
    """Return a table of the default minus arms, by default all: means over two groups of places, counts of places."""
    rows, of_places = [], dict(places(runs))
    rivals = [arm for kind in (FROZEN, GOOD_PARTS_ONLY, FINE_TUNED) for arm in rivals_of(runs, kind)]
    for arm in rivals if arms is None else [one for one in rivals if one in arms]:
        pairs = {place: differences(of_place, arm) for place, of_place in of_places.items()}
        folds = {place: by_fold(one) for place, one in pairs.items() if len(one)}
        row = {"the default minus": arm}
        for title, wanted in (
            ("tiles and boards, 8 and 16", GOAL),
            ("KolektorSDD, 2 to 8", [place for place in folds if place[0] == "kolektorsdd"]),
        ):
            known = [folds[place] for place in wanted if place in folds]
            row[title] = format_difference(pd.concat(known, axis=1).mean(axis=1)) if known else ""
        intervals = [confidence_interval(one) for one in folds.values()]
        above = sum(interval is not None and interval[0] > 0 for interval in intervals)
        below = sum(interval is not None and interval[1] < 0 for interval in intervals)
        row["places above / open / below"] = f"{above} / {len(folds) - above - below} / {below}"
        rows.append(row)
    return markdown_table(rows)


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


def seconds_table(runs: pd.DataFrame) -> str:
    """Return a table of the median seconds that fitting takes, a row per place: the default, fine-tuned arms."""
    rows = []
    for (dataset, budget), of_place in places(runs):
        seconds = pivot_metric(of_place, "seconds").median()
        row = {"dataset": dataset, "per class": str(budget)}
        row |= {arm: f"{seconds[arm]:.0f}" if arm in seconds else "" for arm in (DEFAULT, *FINE_TUNED)}
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


def check_table(path: Path) -> str:
    """Return a table of the AP of the bench's PatchCore and of anomalib's, on the same maps."""
    lines = pd.DataFrame(read_lines(path))
    rows = [
        {"PatchCore": title}
        | {f"seed {line['seed']}": f"{line[column]:.3f}" for _, line in lines.iterrows()}
        | {"mean": f"{lines[column].mean():.3f}"}
        for title, column in (("of the bench", "ap"), ("anomalib's", "ap_of_anomalib"))
    ]
    return markdown_table(rows)


def draw_seconds(runs: pd.DataFrame, path: Path) -> None:
    """Draw AP over the seconds that fitting takes, a panel per dataset with good images; features are not counted."""
    runs = runs[runs["arm"] != "another image's map"]  # it takes the fitted heads of the default
    with_good = [
        (place, of_place)
        for place, of_place in places(runs)
        if place[1] == BUDGET_SHOWN and of_place["arm"].isin(GOOD_PARTS_ONLY).any()
    ]
    figure, axes = plt.subplots(
        1, len(with_good), figsize=(3.2 * len(with_good), 3.4), squeeze=False, layout="constrained", sharex=True
    )
    styles = {arm: f"C{index % 10}{'os'[index // 10]}" for index, arm in enumerate(runs["arm"].unique())}
    labelled = {}
    for axis, ((dataset, budget), of_place) in zip(axes[0], with_good, strict=True):
        metric = metric_of(GOOD_PARTS_ONLY[0], of_place)
        for arm, of_arm in of_place.groupby("arm", sort=False):
            seconds, ap = of_arm["seconds"].median(), of_arm[metric].mean()
            labelled[arm] = axis.plot(seconds, ap, styles[arm][2], color=styles[arm][:2])[0]
        axis.set(title=f"{dataset}, {budget} per class", xscale="log", xlabel="seconds (median)")
    axes[0][0].set_ylabel("AP, defects against good")
    figure.legend(labelled.values(), labelled.keys(), loc="outside lower center", ncols=5, fontsize=8)
    figure.savefig(path, dpi=110)
    plt.close(figure)


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
    blocks = {
        "second summary": summary_table(runs),
        "second headline": summary_table(runs, HEADLINE),
        "second differences": differences_table(runs, rivals_of(runs, FROZEN)),
        "second good parts": differences_table(runs, rivals_of(runs, GOOD_PARTS_ONLY)),
        "second fine-tuned": differences_table(runs, rivals_of(runs, FINE_TUNED)),
        "second seconds": seconds_table(runs),
        "second maps": maps_table(runs),
    }
    if SEARCH.exists():
        blocks["head search"] = search_table(SEARCH)
    if CHECK.exists():
        blocks["patchcore check"] = check_table(CHECK)
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
