"""
Measure memory and speed of jobs on images that stay in their shards, against a copy in Arrow files.

    python benchmarks/streaming.py [--images 200000] [--size 64] [--timed 4000] [--rounds 3] [--into docs/scale.md]

Generated grey images are written as parquet shards once. *Streamed* reads them there, *copied* is what
`datasets.load_dataset` makes of them: an Arrow file, mapped into memory. Memory is that of one pass over all images,
in a process of its own: `anonymous` is what it holds itself, `resident` counts pages of mapped files too. Speed is
that of the first `--timed` images, both ways in turns. Jobs: *priors*, saliency priors of a small ResNet; *batches*,
shuffled and augmented training batches without a step. One thread each. One JSON line per pass; passes that the
results file already holds are skipped.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value, disable_progress_bars
from PIL import Image as PILImage
from torch.utils.data import DataLoader
from transformers import ResNetConfig
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.benchmarks.evidence.formatting import markdown_table, replace_block
from kgl.benchmarks.evidence.records import append_lines, stored_lines
from kgl.benchmarks.measure import RESULTS, hardware
from kgl.configuration_kgl import KGLConfig
from kgl.data.readers.columns import Columns
from kgl.data.readers.hub import read_hub_dataset
from kgl.data.shard_files import BUFFERED_GROUPS, shard_blocks
from kgl.data.shard_writer import write_split
from kgl.data.synthetic import generate_surface
from kgl.knowledge.arguments import PriorArguments
from kgl.knowledge.saliency_priors import write_saliency_priors
from kgl.modeling_kgl import KGLForImageClassification
from kgl.training.augmentation import PairedAugmentation
from kgl.training.collator import DefectCollator
from kgl.training.sampler import ShardSampler


OUTPUT = RESULTS / "streaming.jsonl"
FIGURE = Path(__file__).parents[1] / "docs" / "streaming_memory.png"
CLASSES = ("good", "scratch")
ARMS, JOBS = ("streamed", "copied"), ("priors", "batches")
BATCH = 64
_SAMPLE_EVERY = 2.0  # seconds
# As small as the images: the input path is to be seen.
_BACKBONE = ResNetConfig(
    layer_type="basic", embedding_size=8, depths=[1, 1], hidden_sizes=[8, 16], out_features=["stage2"]
)


def generate_rows(count: int, size: int) -> Iterator[dict[str, Any]]:
    """Yield rows of generated images as shards hold them."""
    for index in range(count):
        label = CLASSES[index % len(CLASSES)]
        file = io.BytesIO()
        PILImage.fromarray(generate_surface(label, size, index).image).save(file, "PNG")
        name, content = f"{label}/{index:07d}.png", file.getvalue()
        yield {
            "image": {"bytes": content, "path": name}, "label": label, "mask": None, "group": name, "file_name": name,
            "digest": hashlib.sha1(content).hexdigest(),
        }  # fmt: skip


def write_images(folder: Path, count: int, size: int) -> None:
    """Write the shards."""
    features = Features(
        image=Image(), label=ClassLabel(names=list(CLASSES)), mask=Image(), group=Value("string"),
        file_name=Value("string"), digest=Value("string"),
    )  # fmt: skip
    (folder / "shards" / "data").mkdir(parents=True)
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        images = Dataset.from_generator(
            generate_rows, features=features, gen_kwargs={"count": count, "size": size}, cache_dir=cache
        )
        write_split(images, "train", folder / "shards" / "data")


def memory() -> dict[str, float]:
    """Return resident and anonymous memory of this process in MiB."""
    fields = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return {
        name: int(fields[field].split()[0]) / 1024 for name, field in (("resident", "VmRSS"), ("anonymous", "RssAnon"))
    }


def run_job(job: str, images: Dataset, folder: Path) -> None:
    """Make the priors of images, or all training batches of an epoch."""
    size = {"height": 64, "width": 64}
    image_processor = ViTImageProcessorPil(size=size)
    if job == "priors":
        torch.manual_seed(0)
        config = KGLConfig(
            backbone_config=_BACKBONE.to_dict(), id2label=dict(enumerate(CLASSES)), defect_free_label=CLASSES[0]
        )
        model = KGLForImageClassification(config).eval()
        args = PriorArguments(prior_method="gradcam")
        write_saliency_priors(images, model, image_processor, folder / "priors", BATCH, args)
        return
    blocks = shard_blocks(images)
    sampler = {"shuffle": True} if blocks is None else {"sampler": ShardSampler(blocks, 0, BUFFERED_GROUPS, BATCH)}
    collator = DefectCollator(image_processor, PairedAugmentation())
    for _ in DataLoader(images, BATCH, collate_fn=collator, **sampler):
        pass


def run_pass(arm: str, job: str, folder: Path, count: int | None) -> None:
    """Run a job in this process, and print seconds and memory over time as JSON."""
    torch.set_num_threads(1)
    disable_progress_bars()
    started, samples = time.perf_counter(), []
    images = read_hub_dataset(str(folder / "shards"), None, Columns(), streaming=arm == "streamed").splits["train"]
    images = images if count is None else images.select(range(count))
    opened, done = time.perf_counter() - started, threading.Event()

    def sample() -> None:
        while not done.is_set():
            samples.append({"seconds": time.perf_counter() - started, **memory()})
            done.wait(_SAMPLE_EVERY)

    thread = threading.Thread(target=sample)
    thread.start()
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as own:
        run_job(job, images, Path(own))
    seconds = time.perf_counter() - begun
    done.set()
    thread.join()
    samples.append({"seconds": time.perf_counter() - started, **memory()})
    print(json.dumps({"images": len(images), "opened": opened, "seconds": seconds, "memory": samples}))


def start_pass(arm: str, job: str, folder: Path, count: int | None) -> dict[str, Any]:
    """
    Run a pass in a process of its own and return its measurements.

    Raises:
        RuntimeError: it failed.
    """
    command = [sys.executable, __file__, "--folder", str(folder), "--pass", arm, job]
    command += [] if count is None else ["--timed", str(count)]
    environment = os.environ | {"HF_DATASETS_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    finished = subprocess.run(command, capture_output=True, text=True, env=environment)
    if finished.returncode != 0:
        raise RuntimeError(finished.stderr)
    return json.loads(finished.stdout.splitlines()[-1])


def size_of(folder: Path) -> float:
    """Return the MiB of the files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file()) / 2**20


def measure(folder: Path, count: int, size: int, timed: int, rounds: int) -> Iterator[dict[str, Any]]:
    """Yield the lines of the passes that the results file lacks."""
    known = {(one["arm"], one["job"], one["timed"], one["round"], one["size"]) for one in stored_lines(OUTPUT)}
    passes = [(None, 0, arm, "priors") for arm in ARMS]
    passes += [
        (timed, number, arm, job) for number in range(rounds) for job in JOBS for arm in ARMS[:: (-1) ** number]
    ]
    for limit, number, arm, job in passes:
        if (arm, job, limit, number, size) in known:
            continue
        if not (folder / "shards").exists():
            write_images(folder, count, size)
        line = {"arm": arm, "job": job, "timed": limit, "round": number, "size": size, "hardware": hardware()}
        line |= start_pass(arm, job, folder, limit)
        cache = folder / "cache"
        copied = size_of(cache) if arm == "copied" and cache.exists() else 0.0
        yield line | {"shards_mib": size_of(folder / "shards"), "copy_mib": copied}


def table(lines: list[dict[str, Any]]) -> str:
    """Return a Markdown table of memory, disk and speed of both ways."""
    whole = {line["arm"]: line for line in lines if line["timed"] is None}
    frame = pd.DataFrame([line for line in lines if line["timed"] is not None])
    frame["speed"] = frame["images"] / frame["seconds"]
    rows = []
    for arm in ARMS:
        row = {"images": arm}
        if arm in whole:
            line = whole[arm]
            held = np.asarray([sample["anonymous"] for sample in line["memory"]])
            tenth = max(1, len(held) // 10)
            row |= {
                "copy on the disk": f"{line['copy_mib']:.0f} MiB",
                "first opened": f"{line['opened']:.0f} s",
                "memory, first tenth": f"{held[:tenth].max():.0f} MiB",
                "memory, last tenth": f"{held[-tenth:].max():.0f} MiB",
            }
        for job in JOBS:
            speeds = frame.loc[(frame["arm"] == arm) & (frame["job"] == job), "speed"]
            row[f"{job}, images/s"] = f"{speeds.median():.0f}"
        rows.append(row)
    speed = frame.pivot_table(index="round", columns=["job", "arm"], values="speed")
    ratio = {job: (speed[job]["streamed"] / speed[job]["copied"]).median() for job in JOBS}
    rows.append({"images": "streamed / copied"} | {f"{job}, images/s": f"{ratio[job]:.2f}" for job in JOBS})
    return markdown_table(rows)


def draw(lines: list[dict[str, Any]]) -> None:
    """Plot the memory over the pass over all images."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axis = pyplot.subplots(figsize=(6, 2.8), constrained_layout=True)
    for line in (line for line in lines if line["timed"] is None):
        seconds = np.asarray([sample["seconds"] for sample in line["memory"]]) - line["opened"]
        for kind, style in (("anonymous", "-"), ("resident", ":")):
            values = [sample[kind] for sample in line["memory"]]
            color = {"streamed": "tab:blue", "copied": "tab:orange"}[line["arm"]]
            axis.plot(seconds / 60, values, style, color=color, label=f"{line['arm']}, {kind}")
        axis.set_title(f"Priors of {line['images']:,} images", fontsize=10)
    axis.set(xlabel="minutes", ylabel="MiB", ylim=(0, None))
    axis.legend(fontsize=8)
    figure.savefig(FIGURE, dpi=110)


def main() -> None:
    """Measure what is missing, and write the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--size", type=int, default=64, help="height and width in pixels")
    parser.add_argument("--timed", type=int, help="images of a timed pass (4000)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="for shards and copies; a temporary one by default")
    parser.add_argument("--into", type=Path, help="a page with the marker `streaming`")
    parser.add_argument("--pass", nargs=2, dest="one_pass", help=argparse.SUPPRESS)  # in the process of a pass
    options = parser.parse_args()
    if options.one_pass is not None:
        run_pass(*options.one_pass, options.folder, options.timed)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        for line in measure(folder, options.images, options.size, options.timed or 4_000, options.rounds):
            append_lines(OUTPUT, line)
            print({name: value for name, value in line.items() if name != "memory"}, flush=True)
    lines = stored_lines(OUTPUT)
    draw(lines)
    if options.into is not None:
        text = options.into.read_text(encoding="utf-8")
        options.into.write_text(replace_block(text, "streaming", table(lines)), encoding="utf-8")


if __name__ == "__main__":
    main()
