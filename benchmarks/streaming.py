"""
Measure memory and speed of jobs on images that stay in their shards, against a copy in Arrow files.

    python benchmarks/streaming.py [--images 200000] [--size 32] [--timed 4000] [--rounds 3] [--into docs/scale.md]

Generated grey images are written as parquet shards once. *Streamed* reads them there, *copied* is what
`datasets.load_dataset` makes of them: an Arrow file, mapped into memory. Memory is that of one pass over all streamed
images, in a process of its own: `anonymous` is what it holds itself, `resident` counts pages of mapped files too.
Speed is that of the first `--timed` images, both ways in turns, per second and per second of the processor, which a
busy machine does not change as much. Jobs: *priors*, saliency priors of a small ResNet; *batches*, shuffled and
augmented training batches without a step; *open*, nothing but opening. One thread each. One JSON line per pass; passes
that the results file already holds are skipped.
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

from kgl.benchmarks.evidence.formatting import markdown_table, write_block
from kgl.benchmarks.evidence.records import append_lines, stored_lines
from kgl.benchmarks.measure import RESULTS, anonymous_memory, hardware, resident_memory
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
BATCH, INPUT = 64, 32
_SAMPLE_EVERY = 2.0  # seconds
_SURFACES = 64
# As small as the images: the input path is to be seen.
_BACKBONE = ResNetConfig(
    layer_type="basic", embedding_size=8, depths=[1, 1], hidden_sizes=[8, 16], out_features=["stage2"]
)


def generate_rows(count: int, size: int) -> Iterator[dict[str, Any]]:
    """Yield rows of images as shards hold them: each a part of a generated surface, with noise of its own."""
    surfaces = [generate_surface("good", 4 * size, seed).image for seed in range(_SURFACES)]
    for index in range(count):
        label, generator, file = CLASSES[index % len(CLASSES)], np.random.default_rng(index), io.BytesIO()
        top, left = generator.integers(0, 3 * size, 2)
        pixels = surfaces[index % _SURFACES][top : top + size, left : left + size] // 2
        pixels = pixels + generator.integers(0, 32, (size, size), dtype=np.uint8)
        if label == "scratch":
            pixels[size // 2, size // 8 : -size // 8] = 255
        PILImage.fromarray(pixels).save(file, "PNG")
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
    return {"resident": resident_memory(), "anonymous": anonymous_memory()}


def run_job(job: str, images: Dataset, folder: Path) -> None:
    """Make the priors of images, all training batches of an epoch, or nothing."""
    image_processor = ViTImageProcessorPil(size={"height": INPUT, "width": INPUT})
    if job == "open":
        return
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
    begun, begun_cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory(dir=folder) as own:
        run_job(job, images, Path(own))
    times = {"opened": opened, "seconds": time.perf_counter() - begun, "cpu": time.process_time() - begun_cpu}
    done.set()
    thread.join()
    samples.append({"seconds": time.perf_counter() - started, **memory()})
    print(json.dumps({"images": len(images), **times, "memory": samples}))


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
    passes = [(None, 0, "streamed", "priors"), (None, 0, "copied", "open")]
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
    held = [sample["anonymous"] for sample in whole["streamed"]["memory"]]
    tenth = max(1, len(held) // 10)
    rows = []
    for arm in ARMS:
        row = {
            "images": arm,
            "opened in": f"{whole[arm]['opened']:.0f} s",
            "copy": f"{whole[arm]['copy_mib']:.0f} MiB",
        }
        if arm == "streamed":
            row["memory after a tenth"] = f"{held[tenth]:.0f} MiB"
            row["memory at the end"] = f"{held[-2]:.0f} MiB"
        else:
            row |= {"memory after a tenth": "", "memory at the end": ""}
        for job in JOBS:
            of_job = frame[(frame["arm"] == arm) & (frame["job"] == job)]
            speeds = ((of_job["images"] / of_job[of]).median() for of in ("seconds", "cpu"))
            row[f"{job} / s (/ CPU s)"] = "{:.0f} ({:.0f})".format(*speeds)
        rows.append(row)
    ratios = {"images": "streamed / copied"}
    for job in JOBS:
        of_job = frame[frame["job"] == job]
        of = {of: of_job.pivot_table(index="round", columns="arm", values=of) for of in ("seconds", "cpu")}
        values = ((of[name]["copied"] / of[name]["streamed"]).median() for name in ("seconds", "cpu"))
        ratios[f"{job} / s (/ CPU s)"] = "{:.2f} ({:.2f})".format(*values)
    return markdown_table([*rows, ratios])


def draw(lines: list[dict[str, Any]]) -> None:
    """Plot the memory over the pass over all streamed images."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    (line,) = (line for line in lines if line["timed"] is None and line["arm"] == "streamed")
    figure, axis = pyplot.subplots(figsize=(6, 2.8), constrained_layout=True)
    minutes = np.asarray([sample["seconds"] - line["opened"] for sample in line["memory"]]) / 60
    for kind in ("resident", "anonymous"):
        axis.plot(minutes, [sample[kind] for sample in line["memory"]], label=kind)
    axis.set(xlabel="minutes", ylabel="MiB", ylim=(0, None), title=f"Priors of {line['images']:,} streamed images")
    axis.legend()
    figure.savefig(FIGURE, dpi=110)


def main() -> None:
    """Measure what is missing, and write the table and the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=200_000)
    parser.add_argument("--size", type=int, default=32, help="height and width in pixels")
    parser.add_argument("--timed", type=int, help="images of a timed pass (4000)")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--folder", type=Path, help="for shards and copies; a temporary one by default")
    parser.add_argument("--into", type=Path, help="a page with the marker `streaming`")
    parser.add_argument("--pass", nargs=2, dest="one_pass", help=argparse.SUPPRESS)  # in the process of a pass
    options = parser.parse_args()
    if options.one_pass is not None:
        run_pass(*options.one_pass, options.folder, options.timed)
        return
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        for line in measure(folder, options.images, options.size, options.timed or 4_000, options.rounds):
            append_lines(OUTPUT, line)
            print({name: value for name, value in line.items() if name != "memory"}, flush=True)
    lines = stored_lines(OUTPUT)
    draw(lines)
    if options.into is not None:
        write_block(options.into, "streaming", table(lines))


if __name__ == "__main__":
    main()
