"""Tables of single datasets and budgets: means over seeds, and differences from the controls."""

from __future__ import annotations

import numpy as np
import pandas as pd

from kgl.benchmarks.evidence.formatting import format_difference, format_mean, markdown_table
from kgl.benchmarks.evidence.records import MIN_SEEDS, paired_differences, pivot_metric, values_by_seed
from kgl.evaluation.metrics import METRIC_TITLES


CLASSIFICATION = (
    "ap", "auroc", "accuracy", "balanced_accuracy", "defect_ap", "f1_max", "recall_at_false_alarm_rate",
)  # fmt: skip
MAPS = (
    "map_ap", "map_image_ap", "map_cell_ap", "map_pointing", "map_entropy", "map_area90", "gradcam_ap",
    "gradcam_image_ap", "gradcam_cell_ap", "gradcam_pointing", "saliency_ap", "saliency_image_ap",
    "saliency_cell_ap", "saliency_pointing", "saliency_entropy", "saliency_area90",
)  # fmt: skip
COMPARED = ("ap", "auroc", "accuracy", "balanced_accuracy", "defect_ap", "map_ap", "saliency_ap")
LEVELS = ("ap", "accuracy", "balanced_accuracy", "recall_at_false_alarm_rate")
GUIDED = ("guided", "guided, convex")
CONTROLS = ("plain", "plain, twice as long", "blank mask", "shuffled prior", "guided, true masks")
OTHER_CONTROLS = ("plain, early-stopped", "self-distillation", "guided, paper", "guided, head alone")
MAP_CONTROLS = ("plain", "shuffled prior", "guided, paper", "guided, head alone", "guided, true masks")
CONVEX_CONTROLS = {  # the same controls with the paper's schedule
    "blank mask": "blank mask, convex",
    "shuffled prior": "shuffled prior, convex",
    "guided, true masks": "true masks, convex",
}


def metric_title(metric: str) -> str:
    """Return a metric's title; Grad-CAM++ maps have the metrics of class maps."""
    if metric.startswith("gradcam_"):
        return METRIC_TITLES[metric.replace("gradcam_", "map_")].replace("Class map", "Grad-CAM++")
    return METRIC_TITLES[metric]


def places(runs: pd.DataFrame) -> list[tuple[tuple[str, int], pd.DataFrame]]:
    """Return the runs of each place, a dataset and budget, sorted."""
    return list(runs.groupby(["dataset", "budget"]))


def arms_of(runs: pd.DataFrame) -> list[str]:
    """Return the arms in the order of their first run."""
    return list(runs["arm"].unique())


def shared_seeds(runs: pd.DataFrame, arm: str, other: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return both arms' runs of one place, of the seeds that both have, in the order of the seeds."""
    ours, theirs = (runs[runs["arm"] == name].set_index("seed").sort_index() for name in (arm, other))
    seeds = ours.index.intersection(theirs.index)
    return ours.loc[seeds], theirs.loc[seeds]


def has_all(runs: pd.DataFrame, metric: str) -> bool:
    """Return whether the metric was measured in all of the runs."""
    return metric in runs and not runs[metric].isna().any()


def means_table(runs: pd.DataFrame, metrics: tuple[str, ...], costs: bool = False) -> str:
    """
    Return a row per arm and a column per metric that some arm has in all its runs.

    Args:
        runs: of one place.
        metrics: keys of the metrics.
        costs: add phases and steps of all trainings, and the median over seeds of the last one's time over plain's.
    """
    by_arm = {arm: runs[runs["arm"] == arm] for arm in arms_of(runs)}
    measured = [metric for metric in metrics if any(has_all(of_arm, metric) for of_arm in by_arm.values())]
    rows = []
    for arm, of_arm in by_arm.items():
        row = {"arm": arm, "seeds": str(len(of_arm))}
        for metric in measured:
            row[metric_title(metric)] = format_mean(of_arm[metric]) if has_all(of_arm, metric) else ""
        if costs:
            ours, plain = shared_seeds(runs, arm, "plain")
            time = f"{(ours['seconds'] / plain['seconds']).median():.2f}" if len(ours) >= MIN_SEEDS else ""
            row |= {"phases": f"{of_arm['phases'].iloc[0]:g}", "steps": f"{of_arm['steps'].iloc[0]:g}", "time": time}
        rows.append(row)
    return markdown_table(rows)


def differences_table(runs: pd.DataFrame, control: str) -> str:
    """Return each arm of one place minus a control, over the seeds that both have."""
    by_metric = {metric: pivot_metric(runs, metric) for metric in COMPARED}
    measured = {metric: by_seed for metric, by_seed in by_metric.items() if len(values_by_seed(by_seed, control))}
    rows = []
    for arm in arms_of(runs):
        ours, _ = shared_seeds(runs, arm, control)
        if arm == control or ours.empty:
            continue
        row = {f"minus {control}": arm, "seeds": str(len(ours))}
        for metric, by_seed in measured.items():
            row[metric_title(metric)] = format_difference(paired_differences(by_seed, arm, control))
        rows.append(row)
    return markdown_table(rows)


def controls_table(
    runs: pd.DataFrame, metric: str, controls: tuple[str, ...], arms: tuple[str, ...] = ("guided",)
) -> str:
    """Return an arm's metric and its difference from each control, in every place with three or more seeds."""
    rows = []
    for (dataset, budget), of_place in places(runs):
        by_seed = pivot_metric(of_place, metric)
        for arm in arms:
            values = values_by_seed(by_seed, arm)
            if len(values) < MIN_SEEDS:
                continue
            row = {"dataset": dataset, "per class": str(budget), "arm": arm, "seeds": str(len(values))}
            row["mean"] = format_mean(values)
            for control in controls:
                differences = paired_differences(by_seed, arm, matching_control(arm, control))
                enough = len(differences) >= MIN_SEEDS
                row[f"minus {control}"] = format_difference(differences, len(values)) if enough else ""
            rows.append(row)
    return markdown_table(rows, text_columns=3)


def matching_control(arm: str, control: str) -> str:
    """Return the name of the control with the same schedule as the arm."""
    return CONVEX_CONTROLS.get(control, control) if arm == "guided, convex" else control


def levels_table(runs: pd.DataFrame) -> str:
    """Return the means over seeds of plain training and of the default, side by side."""
    arms = ("plain", "guided")
    rows = []
    for (dataset, budget), of_place in places(runs):
        of_arms = [of_place[of_place["arm"] == arm] for arm in arms]
        if any(of_arm.empty for of_arm in of_arms):
            continue
        row = {"dataset": dataset.removesuffix("_long"), "per class": str(budget)}
        for metric in LEVELS:
            complete = all(has_all(of_arm, metric) for of_arm in of_arms)
            means = ", ".join(f"{of_arm[metric].mean():.3f}" for of_arm in of_arms) if complete else ""
            row[f"{metric_title(metric)}: {', '.join(arms)}"] = means
        rows.append(row)
    return markdown_table(rows)


def maps_table(runs: pd.DataFrame) -> str:
    """Return the default's heat map against the better map of plain training."""
    rows = []
    for (dataset, budget), of_place in places(runs):
        guided, plain = shared_seeds(of_place, "guided", "plain")
        if guided.empty:
            continue
        row = {"dataset": dataset, "per class": str(budget), "seeds": str(len(guided))}
        for metric in ("ap", "image_ap", "pointing"):
            title, better = metric_title(f"saliency_{metric}"), better_plain_map(plain, metric)
            cells = ["", "", ""]
            if better is not None and has_all(guided, f"saliency_{metric}"):
                ours = guided[f"saliency_{metric}"]
                cells = [format_mean(ours), format_difference(ours - better), f"{ours.mean() / better.mean():.2f}"]
            names = (title, f"{title}: minus plain's better map", f"{title}: ratio")
            row |= dict(zip(names, cells, strict=True))
        rows.append(row)
    return markdown_table(rows)


def better_plain_map(plain: pd.DataFrame, metric: str) -> pd.Series | None:
    """
    Return the metric of plain training's better map by mean: the class map, or the priors' method (Grad-CAM++).

    None where it was not measured for both in all runs.
    """
    columns = [f"{name}_{metric}" for name in ("map", "gradcam")]
    if plain.empty or not all(has_all(plain, column) for column in columns):
        return None
    return max((plain[column] for column in columns), key=np.mean)
