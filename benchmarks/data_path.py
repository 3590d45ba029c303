"""
Compare the speed of data loading with that of training, in images per second.

Three ways: loading from files, loading from the image cache, and a training step.

    python benchmarks/data_path.py [--rounds 9] [--shared ../shared/data]

One thread each, as with one training and one loading process on a two-core machine. *files* decodes and resizes every
image in every epoch, *cache* reads the resized pixels from Arrow; both collate and augment batches of 16. *step* is a
phase-2 step of ResNet-18 to stage 3, all of it trained, without loading. The three run in turns, so that other load
slows them alike. *caching* is the time of resizing all images once, in epochs of *files*.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from datasets import concatenate_datasets, disable_progress_bars
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.benchmarks.measure import BACKBONE, store
from kgl.configuration_kgl import KGLConfig
from kgl.data.arguments import DataArguments
from kgl.data.image_cache import cache_resized_images
from kgl.data.loading import read_images
from kgl.modeling_kgl import KGLForImageClassification
from kgl.training.augmentation import PairedAugmentation
from kgl.training.collator import DefectCollator
from kgl.training.losses import CellBalance, saliency_loss


BATCH_SIZE = 16
MAX_IMAGES = 192
CASES = {  # dataset, folder, image size
    "magnetic_tile_224x224": ("magnetic_tile", "magnetic-tile", (224, 224)),
    "neu_det_224x224": ("neu_det", "neu-det", (224, 224)),
    "kolektorsdd_640x232": ("kolektorsdd", "kolektorsdd", (640, 232)),
}


def training_step(size: tuple[int, int]) -> Callable[[], None]:
    """Return a forward pass, backward pass and optimizer step on one random batch."""
    torch.manual_seed(0)
    config = KGLConfig(backbone_config=BACKBONE.to_dict(), id2label={0: "good", 1: "defect"})
    model = KGLForImageClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters())
    pixel_values, labels = torch.randn(BATCH_SIZE, 3, *size), torch.arange(BATCH_SIZE) % 2

    def step() -> None:
        output = model(pixel_values=pixel_values, labels=labels)
        mask = torch.zeros_like(output.saliency, dtype=torch.bool)
        guidance = saliency_loss(output.saliency, mask, torch.ones(BATCH_SIZE), CellBalance(1.0, 1.0))
        (0.5 * guidance + 0.5 * output.loss).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measure_case(dataset: str, folder: Path, size: tuple[int, int], rounds: int) -> dict[str, object]:
    """Return the median images per second of the three ways, their ratios, and the seconds of every round."""
    images = read_images(DataArguments(dataset, str(folder))).splits["train"]
    images = images.select(range(0, len(images), max(1, len(images) // MAX_IMAGES)))
    processor = ViTImageProcessorPil(size={"height": size[0], "width": size[1]})
    collator = DefectCollator(processor, PairedAugmentation())
    with tempfile.TemporaryDirectory() as cache:
        started = time.perf_counter()
        pixels = cache_resized_images(images, processor, Path(cache))
        caching = time.perf_counter() - started
        cached = concatenate_datasets([images.remove_columns("image"), pixels], axis=1)
        step = training_step(size)
        step()
        seconds: dict[str, list[float]] = {"files": [], "cache": [], "step": []}
        for turn in range(rounds):
            first = turn * BATCH_SIZE % (len(images) - BATCH_SIZE)
            rows = range(first, first + BATCH_SIZE)
            ways = {
                "files": lambda rows=rows: collator([images[row] for row in rows]),
                "cache": lambda rows=rows: collator([cached[row] for row in rows]),
                "step": step,
            }
            for name in sorted(ways, key=lambda name: (turn + list(ways).index(name)) % 3):
                started = time.perf_counter()
                ways[name]()
                seconds[name].append(time.perf_counter() - started)
    files, read, steps = (np.asarray(values) for values in seconds.values())
    return {
        "images_per_second": {name: BATCH_SIZE / float(np.median(values)) for name, values in seconds.items()},
        "cache_over_files": float(np.median(files / read)),
        "cache_over_step": float(np.median(steps / read)),
        "files_over_step": float(np.median(steps / files)),
        "caching_in_epochs_of_files": caching / (len(images) * float(np.median(files)) / BATCH_SIZE),
        "seconds_per_batch": seconds,
    }


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--shared", type=Path, default=shared, help="folder of the datasets")
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bars()
    results = {}
    print("| images per second | files | cache | step | cache over files | cache over step | caching, in epochs |")
    print("| --- |" + " ---: |" * 6)
    for name, (dataset, folder, size) in CASES.items():
        measured = results[name] = measure_case(dataset, options.shared / folder, size, options.rounds)
        rates = " | ".join(f"{rate:.0f}" for rate in measured["images_per_second"].values())
        ratios = [measured[key] for key in ("cache_over_files", "cache_over_step", "caching_in_epochs_of_files")]
        print(f"| {name} | {rates} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |", flush=True)
    store("data_path", {"threads": 1, "rounds": options.rounds, "batch_size": BATCH_SIZE}, results)


if __name__ == "__main__":
    main()
