"""Read and pair the runs of the evidence bench."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats


MIN_SEEDS = 3  # below, there is no interval
_KEYS = ["dataset", "budget", "arm", "seed"]


def read_lines(path: Path) -> list[dict[str, Any]]:
    """
    Return the runs of a `.jsonl` file.

    Raises:
        ValueError: a line is incomplete, as after a run that was killed while writing.
    """
    runs = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            runs.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is incomplete: delete that line ({error}).") from error
    return runs


def stored_lines(path: Path) -> list[dict[str, Any]]:
    """Return the runs of a `.jsonl` file, none where it does not exist yet."""
    return read_lines(path) if path.exists() else []


def append_lines(path: Path, *lines: dict[str, Any]) -> None:
    """Append runs to a `.jsonl` file."""
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def read_runs(path: Path) -> pd.DataFrame:
    """Return one row per run: `dataset`, `budget`, `arm`, `seed`, and a column per metric, NaN where not measured."""
    rows = [
        {key: line[key] for key in _KEYS}
        | {name: value for name, value in line["metrics"].items() if not isinstance(value, list)}
        for line in read_lines(path)
    ]
    return pd.DataFrame(rows).drop_duplicates(_KEYS, keep="last")


def pivot_metric(runs: pd.DataFrame, metric: str) -> pd.DataFrame:
    """Return a metric of one dataset and budget: a row per seed, a column per arm, NaN where not measured."""
    if metric not in runs:
        return pd.DataFrame(index=runs["seed"].unique(), columns=runs["arm"].unique(), dtype=float)
    return runs.pivot(index="seed", columns="arm", values=metric)


def values_by_seed(by_seed: pd.DataFrame, arm: str) -> pd.Series:
    """Return an arm's column of [`pivot_metric`] where it was measured; empty for an arm without runs."""
    return by_seed[arm].dropna() if arm in by_seed else pd.Series(dtype=float)


def paired_differences(ours: pd.DataFrame, arm: str, control: str, theirs: pd.DataFrame | None = None) -> pd.Series:
    """
    Return the arm's metric minus the control's, indexed by the seeds that have both.

    Args:
        ours: the metric by [`pivot_metric`].
        arm: its name.
        control: the name of another arm.
        theirs: the metric of the control, where it is another one.
    """
    return (values_by_seed(ours, arm) - values_by_seed(ours if theirs is None else theirs, control)).dropna()


def confidence_interval(values: pd.Series | np.ndarray) -> tuple[float, float] | None:
    """Return Student's 95 % interval of the mean; None below three values."""
    if len(values) < MIN_SEEDS:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # equal values have an interval of no width
        interval = stats.ttest_1samp(np.asarray(values), 0).confidence_interval()
    return float(interval.low), float(interval.high)
