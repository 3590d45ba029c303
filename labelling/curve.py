"""How many labels are needed: results over nested budgets of labels, on repeated splits, and a forecast."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from datasets import Dataset
from scipy import stats

from ..data.progress import progress_bar
from ..data.splits import group_folds, select_few_labels
from ..data.storage import write_json, write_text
from ..errors import InputError
from ..evaluation.curve_report import CURVE_FILE, add_to_report, draw_curve
from ..evaluation.metrics import DefectClassification
from .labelled_images import LabelledImages, compute_features, fit_and_predict
from .output import CACHE, delete_cache, read_lines
from .power_law import PowerLaw


SMALLEST = 2  # labels per defect class
GOOD_PER_DEFECT = 4  # as in the evidence
FLAT = 0.01  # a gain of twice as many labels below it counts as flat
_SEARCHED = 10  # doublings of the largest budget in the search for it
DRAWS = 1000
_FITS = "fits.jsonl"
# Metric -> whether more is better.
RISING = {"ap": True, "recall_at_false_alarm_rate": True, "false_alarm_rate_at_zero_missed": False}


@dataclass(frozen=True)
class Repetition:
    """A leak-free split: row numbers of the images to choose the labels from, and of the test images."""

    number: int
    pool: np.ndarray
    test: np.ndarray


def repeated_splits(labelled: LabelledImages, repetitions: int) -> list[Repetition]:
    """
    Return splits with groups kept whole: each fold of a shuffle in turn, then those of the next shuffle.

    Raises:
        InputError: a class has fewer groups than there are folds.
    """
    folds, seed = labelled.data_args.num_folds, labelled.data_args.split_seed
    found: list[Repetition] = []
    while len(found) < repetitions:
        shuffle = group_folds(labelled.images, folds, seed + len(found) // folds, "--num_folds")
        found += [Repetition(len(found) + index, *fold) for index, fold in enumerate(shuffle)]
    return found[:repetitions]


def label_budgets(labels: np.ndarray, defect_free_id: int | None, splits: list[Repetition]) -> tuple[list[int], int]:
    """
    Return the budgets of labels per defect class, each twice the one before, and the class that limits them.

    Raises:
        InputError: some split has fewer images of a class to choose from than the smallest budget.
    """
    classes = [label for label in np.unique(labels) if label != defect_free_id]
    counts = {label: min(int((labels[one.pool] == label).sum()) for one in splits) for label in classes}
    scarcest = min(counts, key=lambda label: counts[label])
    if counts[scarcest] < SMALLEST:
        return [], int(scarcest)
    doublings = int(np.log2(counts[scarcest] / SMALLEST))
    return [SMALLEST * 2**power for power in range(doublings + 1)], int(scarcest)


def good_per_defect(labelled: LabelledImages) -> float:
    """Return how many defect-free images go with one of each defect class: the run's own ratio where it has one."""
    few = labelled.data_args.train_per_class, labelled.data_args.train_defect_free
    return GOOD_PER_DEFECT if None in few else few[1] / few[0]


def curve_settings(labelled: LabelledImages, repetitions: int, heads: str) -> dict[str, Any]:
    """Return what decides a curve, as JSON values."""
    data = labelled.data_args
    return labelled.settings() | {
        "num_folds": data.num_folds,
        "split_seed": data.split_seed,
        "good_per_defect": good_per_defect(labelled),
        "repetitions": repetitions,
        "heads": heads,
    }


def run_curve(labelled: LabelledImages, output: Path, repetitions: int, heads: str) -> dict[str, Any]:
    """
    Fit the classifier's heads to every budget of every split, and write `curve.csv`, `curve.png` and `curve.json`.

    Finished fits are kept in `output`. Given a run, the curve is added to its report too.

    Returns:
        The content of `curve.json`.

    Raises:
        InputError: the images are too few.
    """
    splits = repeated_splits(labelled, repetitions)
    names = labelled.loaded.class_names
    budgets, scarcest = label_budgets(labelled.labels, labelled.defect_free_id, splits)
    if not budgets:
        raise InputError(
            f"Too few images of {names[scarcest]}: the smallest budget takes {SMALLEST} training images of each class "
            "with a defect, beside the test images. Add images."
        )
    lines = read_lines(output / _FITS)
    wanted = [(split, budget) for split in splits for budget in budgets]
    done = {(line["repetition"], line["per_class"]) for line in lines}
    missing = [(split, budget) for split, budget in wanted if (split.number, budget) not in done]
    if missing:
        print(
            f"{len(missing)} of {len(wanted)} fits to do: {len(budgets)} budgets of labels, {len(splits)} splits each."
        )
        with (output / _FITS).open("a", encoding="utf-8") as file:
            for line in _fit_all(labelled, missing, len(wanted), output, heads):
                file.write(json.dumps(line) + "\n")
                file.flush()
                lines.append(line)
    curve = summarize_curve(pd.DataFrame(lines), names[scarcest], heads, labelled.data_args.num_folds)
    curve["left_out"] = labelled.left_out
    write_text(output / "curve.csv", _table(curve).to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    draw_curve(curve, output / "curve.png")
    if labelled.run is not None:
        add_to_report(curve, labelled.run.folder)
    write_json(output / CURVE_FILE, curve)
    delete_cache(output)
    return curve


def _fit_all(
    labelled: LabelledImages, wanted: list[tuple[Repetition, int]], total: int, output: Path, heads: str
) -> Iterator[dict[str, Any]]:
    """Yield the results of each fit."""
    model, features = compute_features(labelled, output / CACHE)
    labels, groups, good = labelled.labels, labelled.groups, labelled.defect_free_id
    ratio, metric = good_per_defect(labelled), DefectClassification(keep_in_memory=True)
    rows = labelled.images.select_columns("label").add_column("row", list(range(len(labels))))
    for split, budget in progress_bar(wanted, "Fits", total=total, initial=total - len(wanted)):
        pool = rows.select(split.pool)
        train = _choose(pool, budget, max(1, round(ratio * budget)), labelled)
        # More test images than cells are kept of are thinned out alike in every budget.
        test = split.test[np.isin(split.test, features.cell_rows)]
        seed = labelled.seed + split.number
        probabilities = fit_and_predict(model, features, labels, groups, train, test, seed, heads)
        results = metric.compute(predictions=probabilities, references=labels[test], defect_free_id=good)
        known = RISING if good is not None else ["ap"]
        yield {
            "repetition": split.number,
            "per_class": budget,
            "good": int((labels[train] == good).sum()) if good is not None else 0,
            "images": len(train),
            **{name: results[name] for name in known},
        }


def _choose(pool: Dataset, per_class: int, good: int, labelled: LabelledImages) -> np.ndarray:
    """Return the row numbers of a budget; a larger one contains a smaller one."""
    chosen = select_few_labels(pool, per_class, good, labelled.loaded.defect_free_label, labelled.data_args.split_seed)
    return np.asarray(chosen["row"][:])


def summarize_curve(fits: pd.DataFrame, scarcest: str, heads: str, num_folds: int) -> dict[str, Any]:
    """
    Return means with intervals, the power law, its forecast and where it flattens, as JSON values.

    The splits share images, so intervals as of independent ones would be too narrow: they are widened as Nadeau and
    Bengio (2003) correct the variance, by the ratio of test to training images.

    Args:
        fits: one row per fit: `repetition`, `per_class`, `good`, `images`, and the metrics of [`RISING`] that it has.
        scarcest: the class that limits the budgets.
        heads: that were fitted.
        num_folds: one of them is the test split.
    """
    budgets = sorted(fits["per_class"].unique().tolist())
    sizes = fits.groupby("per_class")[["good", "images"]].mean().round().astype(int)
    curve: dict[str, Any] = {
        "per_class": budgets,
        "good": sizes["good"].tolist(),
        "images": sizes["images"].tolist(),
        "repetitions": int(fits["repetition"].nunique()),
        "scarcest_class": scarcest,
        "heads": heads,
        "metrics": {},
    }
    for name, rising in RISING.items():
        if name in fits:
            values = fits.pivot(index="repetition", columns="per_class", values=name).to_numpy()
            widening = np.sqrt(1 + len(values) / (num_folds - 1))
            curve["metrics"][name] = _summarize_metric(np.asarray(budgets), values, rising, widening)
    return curve


def _summarize_metric(budgets: np.ndarray, values: np.ndarray, rising: bool, widening: float) -> dict[str, Any]:
    """Return the summary of a metric's values `(R, B)`, the deviations of its intervals times `widening`."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # equal values have an interval of no width
        intervals = stats.ttest_1samp(values, 0).confidence_interval()
    mean = values.mean(axis=0)
    low, high = (np.clip(mean + widening * (limit - mean), 0, 1) for limit in (intervals.low, intervals.high))
    summary: dict[str, Any] = {
        "mean": mean.tolist(),
        "interval": np.stack([low, high], axis=1).tolist(),
        "values": values.tolist(),
    }
    if len(budgets) < 3:  # as many as the law has parameters
        return summary | {"law": None}
    upright = values if rising else 1 - values
    law = PowerLaw.fit(budgets, upright.mean(axis=0, keepdims=True))
    draws = np.random.default_rng(0).integers(len(values), size=(DRAWS, len(values)))
    resampled = PowerLaw.fit(budgets, upright[draws].mean(axis=1))
    last, sign = int(budgets[-1]), 1 if rising else -1
    gain = sign * law.gain(last)[0]
    interval = gain + widening * (np.quantile(sign * resampled.gain(last), (0.025, 0.975)) - gain)
    return summary | {
        "law": {"a": float(law.a[0]), "b": float(law.b[0]), "c": float(law.c[0])},
        "forecast": {
            "from": last,
            "to": 2 * last,
            "gain": float(gain),
            "interval": interval.tolist(),
        },
        **_flat_from(law, resampled, budgets, widening),
    }


def _flat_from(law: PowerLaw, resampled: PowerLaw, budgets: np.ndarray, widening: float) -> dict[str, Any]:
    """
    Return `flat_from`, the number of labels from which a doubling gains less than [`FLAT`], None if none is near, and
    its `flat_from_interval`, whose ends may be None as well.
    """
    sizes = [*budgets.tolist(), *(int(budgets[-1]) * 2**power for power in range(1, _SEARCHED + 1))]
    gains = np.concatenate([law.gain(size) for size in sizes])
    spread = widening * (np.stack([resampled.gain(size) for size in sizes], axis=1) - gains)
    # After the last one that is not flat: widened gains need not fall all the way, as those of a law do.
    rises = np.column_stack([np.ones(len(spread) + 1, dtype=bool), np.vstack([gains, gains + spread]) >= FLAT])
    first, *of_draws = len(sizes) - rises[:, ::-1].argmax(axis=1)
    ends = np.quantile(of_draws, (0.025, 0.975), method="closest_observation")
    found = [None if index == len(sizes) else sizes[index] for index in (first, *ends)]
    return {"flat_from": found[0], "flat_from_interval": found[1:]}


def _table(curve: dict[str, Any]) -> pd.DataFrame:
    table = pd.DataFrame({name: curve[name] for name in ("per_class", "good", "images")})
    for name, metric in curve["metrics"].items():
        table[name] = metric["mean"]
        table[[f"{name}_low", f"{name}_high"]] = metric["interval"]
    return table


__all__ = ["Repetition", "curve_settings", "label_budgets", "repeated_splits", "run_curve", "summarize_curve"]
