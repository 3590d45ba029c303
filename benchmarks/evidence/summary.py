"""Tables over several datasets and budgets: the headline, differences over all places, and the goal."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from kgl.benchmarks.evidence.formatting import format_difference, markdown_table
from kgl.benchmarks.evidence.records import confidence_interval, paired_differences, pivot_metric
from kgl.benchmarks.evidence.tables import (
    CONTROLS,
    better_plain_map,
    has_all,
    metric_title,
    places,
    shared_seeds,
)


GOAL_CONTROLS = ("plain, twice as long", "blank mask")  # to be exceeded in AP and accuracy
GOAL_DATASETS = ("kolektorsdd_long", "magnetic_tile_long", "neu_det_long")
GOAL_BUDGETS = (8, 16)
GOAL_RATIO = 1.5  # heat map over plain training's better map
TILES = ("magnetic_tile", "magnetic_tile_long", "magnetic_tile_defect_long")
SCOPES = ("everywhere", "8 and 16", "goal", "not tiles")
MIN_SHARED = 5  # seeds of a place that counts in means over places
HEADLINE = {  # control: its name for a reader who does not know the arms
    "plain": "plain training",
    "plain, twice as long": "plain training, twice as long",
    "blank mask": "blank mask",
    "shuffled prior": "another image's prior",
    "guided, true masks": "true masks",
}
OVERALL = ("ap", "auroc", "accuracy", "balanced_accuracy")


def in_scope(place: tuple[str, int], scope: str) -> bool:
    """Return whether a dataset and budget belong to a scope of `SCOPES`."""
    dataset, budget = place
    return {
        "everywhere": True,
        "8 and 16": budget in GOAL_BUDGETS,
        "goal": budget in GOAL_BUDGETS and dataset in GOAL_DATASETS,
        "not tiles": dataset not in TILES,
    }[scope]


def differences_over_places(runs: pd.DataFrame, control: str, metric: str, scope: str) -> pd.DataFrame:
    """
    Return the default minus a control: a row per seed, a column per place of the scope.

    Places are those with at least five shared seeds, seeds those that all these places share.
    """
    if metric not in runs or not {"guided", control} <= set(runs["arm"]):
        return pd.DataFrame()
    by_arm = runs.pivot(index=["dataset", "budget", "seed"], columns="arm", values=metric)
    by_place = (by_arm["guided"] - by_arm[control]).unstack(["dataset", "budget"])
    enough = by_place.columns[by_place.count() >= MIN_SHARED]
    return by_place[[place for place in enough if in_scope(place, scope)]].dropna()


def overall_table(runs: pd.DataFrame, scopes: Sequence[str]) -> str:
    """
    Return the default minus each control; each seed counts once, as its mean over places, which are not independent.

    Scopes: `everywhere`; `8 and 16` images per class; of these, those that the `goal` names; `not tiles`.
    """
    rows = []
    for control in CONTROLS:
        for scope in scopes:
            row = {}
            for metric in OVERALL:
                differences = differences_over_places(runs, control, metric, scope)
                if differences.empty:
                    continue
                seeds, count = differences.shape
                row |= {"minus": control, "where": scope, "places": str(count), "seeds": str(seeds)}
                row[metric_title(metric)] = format_difference(differences.mean(axis=1))
            rows += [row] if row else []
    return markdown_table(rows, text_columns=2)


def headline_table(runs: pd.DataFrame) -> str:
    """Return the default minus each control, the mean over the places of the goal."""
    rows = []
    for control, title in HEADLINE.items():
        by_metric = {metric: differences_over_places(runs, control, metric, "goal") for metric in OVERALL}
        if not any(differences.empty for differences in by_metric.values()):
            cells = {metric_title(name): format_difference(one.mean(axis=1)) for name, one in by_metric.items()}
            rows.append({"guided minus": title} | cells)
    return markdown_table(rows)


def goal_table(runs: pd.DataFrame) -> str:
    """
    Return the default with the budgets of the goal, a column per part of it, and at how many places each is reached.

    First the places that the goal names, then others. Places with a missing part are left out.
    """
    parts = [(metric, control) for metric in ("ap", "accuracy") for control in GOAL_CONTROLS]
    rows, reached = [], {True: [], False: []}  # reached: AP, accuracy and map, place by place, of the goal and others
    for place, of_place in sorted(places(runs), key=lambda one: (not in_scope(one[0], "goal"), one[0])):
        if not in_scope(place, "8 and 16") or not {"guided", "plain", *GOAL_CONTROLS} <= set(of_place["arm"]):
            continue
        guided, plain = shared_seeds(of_place, "guided", "plain")
        better = better_plain_map(plain, "ap")
        if better is None or not has_all(guided, "saliency_ap"):
            continue
        differences = {
            (metric, control): paired_differences(pivot_metric(of_place, metric), "guided", control)
            for metric, control in parts
        }
        ratio = guided["saliency_ap"].mean() / better.mean()
        clear = [
            all(_exceeds_zero(differences[metric, control]) for control in GOAL_CONTROLS)
            for metric in ("ap", "accuracy")
        ]
        reached[in_scope(place, "goal")].append((*clear, ratio >= GOAL_RATIO))
        row = {"dataset": place[0], "per class": str(place[1]), "seeds": str(len(guided))}
        for metric, control in parts:
            values = differences[metric, control]
            row[f"{metric_title(metric)} minus {control}"] = format_difference(values, len(guided))
        rows.append(row | {f"{metric_title('saliency_ap')} / plain's better map": f"{ratio:.2f}"})
    return "\n\n".join([markdown_table(rows), _describe_goal(reached)])


def _exceeds_zero(values: pd.Series) -> bool:
    interval = confidence_interval(values)
    return interval is not None and interval[0] > 0


def _describe_goal(reached: dict[bool, list[tuple[bool, bool, bool]]]) -> str:
    parts = []
    for of_goal, of_places in reached.items():
        ap, accuracy, heat_map = (sum(one[part] for one in of_places) for part in range(3))
        where = f"the {len(of_places)} places of the goal" if of_goal else f"{len(of_places)} other places"
        parts.append(f"of {where}, AP at {ap}, accuracy at {accuracy}, heat map at {heat_map}")
    return f"Parts reached (interval above 0 against both controls; map better by half): {'; '.join(parts)}."
