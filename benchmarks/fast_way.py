"""
Compare the default with fine-tuning as a user starts them: seconds to the finished report, and AP on test images.

    python benchmarks/fast_way.py [--choices 5] [--arms ...] [--into docs/results.md]

Each choice of 64 magnetic tiles, 32 good and 32 defective ones, of 256 x 256 pixels, is trained on by every way. The
seconds are those of `kgl train` on a folder of the 64 images alone, which splits them itself, from command to
finished report. AP is that of a second run, in which all 64 train and a fold of the other tiles is the test. One JSON
line per choice and arm; lines that the results file already holds are skipped.
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

import numpy as np
import pandas as pd
from datasets import Dataset

from kgl.benchmarks.evidence.formatting import format_difference, markdown_table, write_block
from kgl.benchmarks.evidence.plan import SHARED, TASKS
from kgl.benchmarks.evidence.records import append_lines, stored_lines
from kgl.benchmarks.evidence.task_data import defect_free_class, load_images
from kgl.benchmarks.measure import RESULTS, hardware
from kgl.data.splits import select_few_labels


ROOT = Path(__file__).parents[1]
OUTPUT = RESULTS / "fast_way.jsonl"
TASK, SIZE, PER_CLASS = "tiles_defect", 256, 32
ARMS = {
    "default": [],
    "with a fine-tuned stage": ["--fine_tune", "true"],
    "all fine-tuned, the paper's head": ["--fine_tune", "true", "--head", "avg_max"],
}


def write_images(folder: Path, images: Dataset) -> None:
    """Write images of the size into a subfolder per class."""
    names = images.features["label"].names
    for row in images.select_columns(["image", "label", "index"]):
        path = folder / names[row["label"]] / f"{row['index']:04d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        row["image"].resize((SIZE, SIZE)).save(path)


def train(images: Path, output: Path, settings: list[str]) -> float:
    """Run the command with a way's settings on a folder, and return its seconds."""
    command = [sys.executable, str(ROOT / "train.py"), str(images), "--output_dir", str(output)]
    command += ["--backbone", str(SHARED / "models/resnet-18")]
    command += ["--image_height", str(SIZE), "--image_width", str(SIZE), *settings]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - started


def run(arm: str, choice: int) -> dict[str, Any]:
    """Train one way on one choice of images, alone and with test images, and return its line."""
    images = load_images(TASK)
    test = np.asarray(images["fold"][:]) == choice % TASKS[TASK].folds
    pool = images.select(np.flatnonzero(~test))
    chosen = select_few_labels(pool, PER_CLASS, PER_CLASS, defect_free_class(TASK), choice)
    with tempfile.TemporaryDirectory() as folder:
        alone, split = Path(folder) / "alone", Path(folder) / "split"
        write_images(alone, chosen)
        write_images(split / "train", chosen)
        write_images(split / "test", images.select(np.flatnonzero(test)))
        seconds = train(alone, Path(folder) / "run_alone", ARMS[arm])
        train(split, Path(folder) / "run_split", [*ARMS[arm], "--validation_share", "0"])
        report = json.loads((Path(folder) / "run_split" / "metrics.json").read_text(encoding="utf-8"))
    metrics = {name: report["results"]["final"][name] for name in ("ap", "auroc")}
    return {"arm": arm, "choice": choice, "seconds": seconds, "hardware": hardware()} | metrics


def table(lines: list[dict[str, Any]]) -> str:
    """Return a Markdown table of seconds and AP of every way, and of the default's AP minus that of the others."""
    frame, rows = pd.DataFrame(lines), []
    ap = frame.pivot(index="choice", columns="arm", values="ap")
    for arm in [arm for arm in ARMS if arm in ap]:
        seconds = frame.loc[frame["arm"] == arm, "seconds"]
        row = {"way": arm, "seconds, median": f"{seconds.median():.0f}", "slowest": f"{seconds.max():.0f}"}
        difference = "" if arm == "default" else format_difference((ap["default"] - ap[arm]).dropna())
        rows.append(row | {"AP": f"{ap[arm].mean():.3f}", "AP of the default minus this": difference})
    return markdown_table(rows)


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--choices", type=int, default=5)
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS))
    parser.add_argument("--into", type=Path, help="a page with the marker `fast way`")
    options = parser.parse_args()
    lines = stored_lines(OUTPUT)
    done = {(line["arm"], line["choice"]) for line in lines}
    for choice in range(options.choices):
        for arm in [arm for arm in options.arms if (arm, choice) not in done]:
            lines.append(run(arm, choice))
            print(lines[-1], flush=True)
            append_lines(OUTPUT, lines[-1])
    if options.into is not None:
        write_block(options.into, "fast way", table(lines))


if __name__ == "__main__":
    main()
