"""
Run `make demo` over several seeds, with its backbone and with others, and write the table of `docs/results.md`.

    python benchmarks/demo.py [--seeds 5] [--arms ...] [--into docs/results.md]

A seed makes other surfaces, another split and other choices of cells. One JSON line per arm and seed; lines that the
results file already holds are skipped. The pretraining was chosen with seed 101, which is not among these.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from sklearn.metrics import roc_curve
from transformers import ResNetBackbone, ResNetConfig
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.benchmarks.evidence.formatting import markdown_table, replace_block
from kgl.benchmarks.evidence.plan import SHARED
from kgl.benchmarks.evidence.records import append_lines, stored_lines
from kgl.benchmarks.measure import RESULTS
from kgl.data.synthetic import CLASSES
from kgl.training.arguments import KGL_TINY
from kgl.training.model_init import locate_backbone


ROOT = Path(__file__).parents[1]
RECIPE = "recipes/demo.yaml"
OUTPUT = RESULTS / "demo.jsonl"
ARMS = {
    "kgl-tiny": "`make demo`: `kgl-tiny`",
    "random": "the same network, random weights",
    "resnet-18": "ResNet-18 (ImageNet)",
}
RECALL = 0.95
# Column of the table -> how its value is read from a line.
COLUMNS = {
    "defect AUROC": "defect_auroc",
    "class recall, least": "least_class_recall",
    "false alarms at 95 % recall": "false_alarms_at_recall",
    "at the threshold: found": "recall_at_operating_point",
    "false alarms": "false_alarm_rate_at_operating_point",
    "`H`, cell AP": "saliency_cell_image_ap",
    "good images with a box": "saliency_false_alarm_rate",
}


def make_backbone(arm: str, seed: int, folder: Path) -> str:
    """Return the backbone of an arm; one with random weights is written into the folder."""
    if arm == "kgl-tiny":
        return KGL_TINY
    if arm == "resnet-18":
        return str(SHARED / "models/resnet-18")
    shipped = locate_backbone(KGL_TINY)
    torch.manual_seed(seed)
    ResNetBackbone(ResNetConfig.from_pretrained(shipped)).save_pretrained(folder)
    ViTImageProcessorPil.from_pretrained(shipped).save_pretrained(folder)
    return str(folder)


def run(arm: str, seed: int) -> dict[str, Any]:
    """Run the demo's recipe with other seeds and an arm's backbone, and return its line."""
    with tempfile.TemporaryDirectory() as folder:
        backbone, output = make_backbone(arm, seed, Path(folder) / "backbone"), Path(folder) / "run"
        command = [sys.executable, str(ROOT / "train.py"), str(ROOT / RECIPE), "--backbone", backbone]
        command += ["--seed", str(seed), "--split_seed", str(seed), "--output_dir", str(output)]
        started = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        seconds = time.perf_counter() - started
        report = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
        predictions = pd.read_csv(output / "predictions.csv")
    final = report["results"]["final"]
    kept = {name: round(final[name], 4) for name in COLUMNS.values() if name in final}
    kept |= {name: round(final[name], 4) for name in ("ap", "defect_ap", "accuracy", "saliency_cell_ap")}
    return {"arm": arm, "seed": seed, "seconds": round(seconds)} | kept | measure(predictions)


def measure(predictions: pd.DataFrame) -> dict[str, Any]:
    """
    Return what `metrics.json` does not have: recall of each class, and false alarms at a recall of the test defects.

    Args:
        predictions: columns `label`, `final_predicted_label` and `final_defect_score`.
    """
    right = predictions["final_predicted_label"] == predictions["label"]
    recall = right.groupby(predictions["label"]).mean().round(4)
    defective = predictions["label"] != CLASSES[0]
    false_alarms, found, _ = roc_curve(defective, predictions["final_defect_score"], drop_intermediate=False)
    return {
        "class_recall": recall.to_dict(),
        "least_class_recall": float(recall.min()),
        "false_alarms_at_recall": round(float(false_alarms[found >= RECALL].min()), 4),
    }


def table(lines: list[dict[str, Any]]) -> str:
    """Return the Markdown table of all arms: medians over the seeds, with the least and the highest value."""
    frame, rows = pd.DataFrame(lines), []
    for arm, title in ARMS.items():
        of_arm = frame[frame["arm"] == arm]
        if of_arm.empty:
            continue
        row = {"backbone": title} | {column: _spread(of_arm[name]) for column, name in COLUMNS.items()}
        rows.append(row | {"seeds": len(of_arm)})
    return markdown_table(rows)


def class_table(lines: list[dict[str, Any]]) -> str:
    """Return the Markdown table of the recall of each class, in the same way."""
    rows = []
    for arm, title in ARMS.items():
        recalls = pd.DataFrame([line["class_recall"] for line in lines if line["arm"] == arm])
        if not recalls.empty:
            rows.append({"backbone": title} | {name: _spread(recalls[name]) for name in CLASSES})
    return markdown_table(rows)


def _spread(values: pd.Series) -> str:
    return f"{values.median():.2f} ({values.min():.2f} .. {values.max():.2f})"


def main() -> None:
    """Run what is missing and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--into", type=Path, help="Markdown file with the markers `demo` and `demo classes`.")
    options = parser.parse_args()
    lines = stored_lines(OUTPUT)
    done = {(line["arm"], line["seed"]) for line in lines}
    for seed in range(options.seeds):
        for arm in options.arms:
            if (arm, seed) not in done:
                lines.append(run(arm, seed))
                print(lines[-1], flush=True)
                append_lines(OUTPUT, lines[-1])
    if options.into is not None:
        text = options.into.read_text(encoding="utf-8")
        text = replace_block(text, "demo", table(lines))
        options.into.write_text(replace_block(text, "demo classes", class_table(lines)), encoding="utf-8")


if __name__ == "__main__":
    main()
