"""
Whether the thresholds of `kgl threshold`, chosen on validation images, keep their promise on test images.

    python benchmarks/threshold.py --cache_dir CACHE [--splits 10] [--data ...] [--into docs/training.md]
        [--figure docs/threshold.png]

Frozen heads with the default settings are trained once per data set and split (KolektorSDD at 320 x 128 pixels); the
runs stay in the cache folder. Then the functions of the command choose other thresholds, and nothing is written into
the runs. `fewer` chooses on validation images drawn at random, as many defects as named and good ones in proportion.
One JSON line per data set and split; lines that the results file already holds are not measured again.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

from kgl.benchmarks.evidence.formatting import format_mean, markdown_table, replace_block
from kgl.benchmarks.evidence.plan import SHARED
from kgl.benchmarks.evidence.records import append_lines, stored_lines
from kgl.benchmarks.measure import RESULTS
from kgl.evaluation.calibration import choose_operating_point
from kgl.evaluation.operating_points import choose_operating_points
from kgl.evaluation.results import operating_rates
from kgl.evaluation.validation_scores import VALIDATION_FILE
from kgl.training.arguments import OperatingArguments


ROOT = Path(__file__).parents[1]
OUTPUT = RESULTS / "threshold.jsonl"
DATA = {"magnetic-tile": "magnetic tiles", "circuit-board": "circuit boards", "kolektorsdd": "KolektorSDD"}
SETTINGS = {"kolektorsdd": ["--image_height", "320", "--image_width", "128"]}
RECALLS = (0.8, 0.9, 0.95, 0.99)
MISS_COSTS = (5.0, 20.0, 100.0)
BANDS = ((0.8, 0.95), (0.8, 1.0), (0.9, 0.99))  # recall of the threshold, and with the images to look at again
FEWER = (6, 12, 25)  # validation defects
_DRAWS = 50


def image_folder(data: str, cache_dir: Path) -> Path:
    """Return a data set's folder; the boards' published splits are merged by links, so that splits can be drawn."""
    folder = SHARED / "data" / data
    if data != "circuit-board":
        return folder
    merged = cache_dir / data
    for path in sorted(folder.glob("*/*/*.jpg")):
        link = merged / path.parent.name / f"{path.parents[1].name}_{path.name}"
        link.parent.mkdir(parents=True, exist_ok=True)
        if not link.exists():
            link.symlink_to(path)
    return merged


def train(images: list[str], seed: int, output: Path) -> None:
    """Train a run with a split seed; a finished one is left as it is."""
    command = [sys.executable, str(ROOT / "train.py"), *images, "--split_seed", str(seed), "--output_dir", str(output)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)


def measure(run: Path, seed: int) -> dict[str, Any]:
    """
    Return what thresholds of a finished run find on its test images.

    Returns:
        Numbers of `validation` and `test` images; by wanted recall the rates on both (`recalls`); by miss cost the
        costs of the new, the stored and the best threshold (`costs`); `bands`; recall on the test images by number of
        validation defects and wanted recall (`fewer`); and how often the heat map's threshold marks an image (`heat`).
    """
    points = {recall: choose_operating_points(run, OperatingArguments(recall)) for recall in RECALLS}
    predictions, good = points[RECALLS[0]].predictions, points[RECALLS[0]].configs["final"].defect_free_label
    validation = pd.read_csv(run / VALIDATION_FILE, dtype={"label": str}, keep_default_na=False)
    scores = predictions["final_defect_score"].map(float).to_numpy()
    defective, known = ((table["label"] != good).to_numpy() for table in (predictions, validation))
    stored = points[RECALLS[0]].before["results"]["final"]
    return {
        "validation": _counts(known),
        "test": _counts(defective),
        "defect_ap": stored["defect_ap"] if "defect_ap" in stored else stored["ap"],
        "recalls": {f"{recall:g}": _rates(one) for recall, one in points.items()},
        "costs": {f"{cost:g}": _costs(run, cost, scores, defective) for cost in MISS_COSTS},
        "bands": {f"{recall:g} {wide:g}": _band(run, recall, wide) for recall, wide in BANDS},
        "fewer": _fewer(validation["final_defect_score"].to_numpy(), known, scores, defective, seed),
        "heat": _heat(stored, points[RECALLS[0]].configs["final"].saliency_threshold),
    }


def _counts(defective: np.ndarray) -> dict[str, int]:
    return {"defective": int(defective.sum()), "good": int((~defective).sum())}


def _rates(points: Any) -> dict[str, float]:
    point, result = points.after["validation"]["final"]["operating_point"], points.after["results"]["final"]
    return {
        "validation_recall": point["recall"],
        "validation_false_alarm_rate": point["false_alarm_rate"],
        "recall": result["recall_at_operating_point"],
        "false_alarm_rate": result["false_alarm_rate_at_operating_point"],
    }


def _heat(stored: dict[str, Any], threshold: dict[str, Any]) -> dict[str, float]:
    """Return the shares of good images with a marked cell, and of defective ones whose defect is marked."""
    found = {"found": stored["saliency_found_rate"]} if "saliency_found_rate" in stored else {}
    return {
        "validation": threshold["false_alarm_rate"], "good_images": threshold["good_images"],
        "test": stored["saliency_false_alarm_rate"],
    } | found  # fmt: skip


def _costs(run: Path, miss_cost: float, scores: np.ndarray, defective: np.ndarray) -> dict[str, float]:
    """Return the cost of 100 test images in false alarms: at the new, the stored and the best possible threshold."""
    points = choose_operating_points(run, OperatingArguments(miss_cost=miss_cost))
    best = operating_rates(defective, scores, choose_operating_point(scores, defective, miss_cost=miss_cost))
    results = {"chosen": points.after["results"]["final"], "stored": points.before["results"]["final"], "best": best}
    costs = {}
    for name, result in results.items():
        counts = result["decisions_at_operating_point"]
        cost = miss_cost * counts["defective"]["called_good"] + counts["good"]["called_defective"]
        costs[name] = 100 * cost / len(scores)
    return costs


def _band(run: Path, recall: float, wide: float) -> dict[str, int] | None:
    """Return numbers of test images; None where validation images do not tell both thresholds apart."""
    points = choose_operating_points(run, OperatingArguments(recall, look_again_recall=wide))
    counts = points.after["results"]["final"]["decisions_at_operating_point"]
    if "look_again" not in counts["good"]:
        return None
    return {
        "good_in_band": counts["good"]["look_again"],
        "false_alarms": counts["good"]["called_defective"],
        "defects_in_band": counts["defective"]["look_again"],
        "missed": counts["defective"]["called_good"],
    }


def _fewer(
    validation: np.ndarray, known: np.ndarray, scores: np.ndarray, defective: np.ndarray, seed: int
) -> dict[str, dict[str, float]]:
    """Return the mean recall on test images of thresholds chosen on fewer validation images."""
    generator, found = np.random.default_rng(seed), {}
    for number in (number for number in FEWER if number < known.sum()):
        recalls = {f"{recall:g}": [] for recall in RECALLS}
        for _ in range(_DRAWS):
            share = number / known.sum()
            kinds = [(np.flatnonzero(known), number), (np.flatnonzero(~known), max(1, round(share * (~known).sum())))]
            rows = np.concatenate([generator.permutation(of_kind)[:count] for of_kind, count in kinds])
            for recall in RECALLS:
                point = choose_operating_point(validation[rows], known[rows], recall)
                rates = operating_rates(defective, scores, point)
                recalls[f"{recall:g}"].append(rates["recall_at_operating_point"])
        found[str(number)] = {recall: float(np.mean(of_draws)) for recall, of_draws in recalls.items()}
    return found


def expected_recall(wanted: float, defects: int) -> float:
    """Return the recall to expect of further defects like the validation ones: that of ranks, `k / (n + 1)`."""
    return float(np.ceil(wanted * defects - 1e-9) / (defects + 1))


def _grouped(lines: list[dict[str, Any]]) -> list[tuple[str, list[dict[str, Any]]]]:
    return [(name, group) for name in DATA if (group := [line for line in lines if line["data"] == name])]


def _range(values: list[int]) -> str:
    return f"{min(values)}" if min(values) == max(values) else f"{min(values)} to {max(values)}"


def recall_table(lines: list[dict[str, Any]]) -> str:
    """Return a table of wanted recall against what is found, a row per data set and wanted recall."""
    rows = []
    for name, group in _grouped(lines):
        defects = [line["validation"]["defective"] for line in group]
        for recall in map("{:g}".format, RECALLS):
            found = pd.DataFrame([line["recalls"][recall] for line in group])
            expected = np.mean([expected_recall(float(recall), number) for number in defects])
            rows.append({
                "dataset": DATA[name], "validation defects": _range(defects), "wanted recall": recall,
                "of validation defects": f"{found['validation_recall'].mean():.3f}",
                "to be expected": f"{expected:.3f}",
                "of test defects": format_mean(found["recall"]),
                "splits that keep it": f"{(found['recall'] >= float(recall)).sum()} of {len(found)}",
                "false alarms, validation": f"{found['validation_false_alarm_rate'].mean():.3f}",
                "false alarms, test": format_mean(found["false_alarm_rate"]),
            })  # fmt: skip
    return markdown_table(rows)


def heat_table(lines: list[dict[str, Any]]) -> str:
    """Return a table of how often the heat map's threshold of 5 % marks images, a row per data set."""
    rows = []
    for name, group in _grouped(lines):
        heat = pd.DataFrame([line["heat"] for line in group])
        rows.append({
            "dataset": DATA[name], "splits": str(len(heat)),
            "good validation images": _range(list(heat["good_images"])),
            "of them marked": f"{heat['validation'].mean():.3f}", "good test images marked": format_mean(heat["test"]),
            "defects marked": format_mean(heat["found"]) if "found" in heat else "",
        })  # fmt: skip
    return markdown_table(rows)


def cost_table(lines: list[dict[str, Any]]) -> str:
    """Return a table of the costs of 100 test images, a row per data set and miss cost."""
    rows = []
    for name, group in _grouped(lines):
        for miss_cost in map("{:g}".format, MISS_COSTS):
            costs = pd.DataFrame([line["costs"][miss_cost] for line in group])
            rows.append(
                {"dataset": DATA[name], "a miss costs": miss_cost}
                | {f"{title} threshold": f"{costs[column].mean():.1f}" for title, column in (
                    ("stored", "stored"), ("`--miss_cost`", "chosen"), ("best possible", "best"),
                )}
                | {"splits that it makes cheaper, dearer":
                   f"{(costs['chosen'] < costs['stored']).sum()}, {(costs['chosen'] > costs['stored']).sum()}"}
            )  # fmt: skip
    return markdown_table(rows)


def band_table(lines: list[dict[str, Any]]) -> str:
    """Return a table of the images to look at again, a row per data set and pair of recalls; all splits together."""
    rows = []
    for name, group in _grouped(lines):
        for band in (f"{recall:g} {wide:g}" for recall, wide in BANDS):
            counts = [(line["bands"][band], line["test"]) for line in group if line["bands"][band] is not None]
            recall, wide = band.split()
            row = {"dataset": DATA[name], "wanted recall": recall, "with look again": wide}
            row["splits with a band"] = f"{len(counts)} of {len(group)}"
            if counts:
                sums = pd.DataFrame([one for one, _ in counts]).sum()
                good, defective = (sum(test[kind] for _, test in counts) for kind in ("good", "defective"))
                not_found = sums["defects_in_band"] + sums["missed"]
                row["test images in it"] = _percent(sums["good_in_band"] + sums["defects_in_band"], good + defective)
                row["good images in it"] = _percent(sums["good_in_band"], good)
                row["missed defects in it"] = _percent(sums["defects_in_band"], not_found)
                row["all errors in it"] = _percent(sums["defects_in_band"], not_found + sums["false_alarms"])
                row["found or looked at again"] = _percent(defective - sums["missed"], defective)
            rows.append(row)
    return markdown_table(rows)


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "-"


def draw_recalls(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw recall on test images over the number of validation defects, with what ranks let expect."""
    figure, axis = plt.subplots(figsize=(7, 4.4), layout="constrained")
    markers = dict(zip(DATA, "osD", strict=True))
    numbers = np.arange(4, 80)
    for recall, colour in zip(RECALLS, ("#3b82a0", "#2f855a", "#b7791f", "#c2410c"), strict=True):
        key = f"{recall:g}"
        axis.plot(numbers, [expected_recall(recall, int(one)) for one in numbers], ":", color=colour, linewidth=1)
        axis.axhline(recall, color=colour, linewidth=0.6)
        for name, group in _grouped(lines):
            places = {np.mean([line["validation"]["defective"] for line in group]): [
                line["recalls"][key]["recall"] for line in group
            ]}  # fmt: skip
            for number in map(str, FEWER):
                drawn = [line["fewer"][number][key] for line in group if number in line["fewer"]]
                if len(drawn) == len(group):
                    places[int(number)] = drawn
            points = sorted((number, np.mean(found)) for number, found in places.items())
            label = f"{DATA[name]}" if recall == RECALLS[0] else None
            axis.plot(*zip(*points, strict=True), marker=markers[name], color=colour, markersize=6, label=label)
    for recall in RECALLS:
        axis.text(81, recall, f"{recall:g} wanted", va="center", fontsize=8)
    axis.set(xscale="log", xlim=(4, 80), xlabel="validation defects that chose the threshold")
    axis.set(ylabel="recall on test images")
    axis.set_xticks([5, 10, 20, 40, 80], ["5", "10", "20", "40", "80"])
    axis.set_xticks([], minor=True)
    legend = axis.legend(loc="lower right", fontsize=8)
    for handle in legend.legend_handles:
        handle.set_color("black")
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure what is missing, and write tables and figure where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache_dir", type=Path, required=True)
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--into", type=Path, help="a page with markers to fill")
    parser.add_argument("--figure", type=Path, help="an image file")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    lines = stored_lines(options.output)
    done = {(line["data"], line["seed"]) for line in lines}
    backbone = ["--backbone", str(SHARED / "models/resnet-18")]
    for seed in range(options.splits):
        for data in options.data:
            if (data, seed) in done:
                continue
            run = options.cache_dir / f"{data}_{seed}"
            images = [str(image_folder(data, options.cache_dir)), *SETTINGS.get(data, []), *backbone]
            train(images, seed, run)
            lines.append({"data": data, "seed": seed} | measure(run, seed))
            append_lines(options.output, lines[-1])
            print(json.dumps(lines[-1]), flush=True)
    if options.figure is not None:
        draw_recalls(lines, options.figure)
    if options.into is not None:
        text = options.into.read_text(encoding="utf-8")
        for block, table in (
            ("threshold recalls", recall_table(lines)),
            ("threshold costs", cost_table(lines)),
            ("look again", band_table(lines)),
            ("heat threshold", heat_table(lines)),
        ):
            text = replace_block(text, block, table)
        options.into.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
