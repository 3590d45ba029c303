"""
Does the input path keep up with training? Images a second from files, from pixels resized once, and of the step.

    python benchmarks/data_path.py [--rounds 5] [--shared ../shared/data]

One thread each, as on a two-core machine with one process training and one reading. *files* decodes and resizes every
image in every epoch, *pixels* reads what was resized once into Arrow; both collate and augment batches of 16, the
three in turns, so that a busy machine slows them alike. *step* is a phase-2 step of the recipes' ResNet-18 to stage 3,
without its input; with `--freeze_stages` there is an input of its own, not measured here. The resizing itself is
timed too: `once` is how many epochs of *files* it costs.
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
from measure import BACKBONE, store
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.configuration_kgl import KGLConfig
from kgl.data.arguments import DataArguments
from kgl.data.image_cache import cache_resized_images
from kgl.data.loading import read_images
from kgl.modeling_kgl import KGLForImageClassification
from kgl.training.augmentation import PairedAugmentation
from kgl.training.collator import DefectCollator
from kgl.training.losses import CellBalance, saliency_loss


BATCH = 16


def training_step(size: tuple[int, int]) -> Callable[[], None]:
    """A forward, backward and optimizer step on one batch that is there already."""
    torch.manual_seed(0)
    config = KGLConfig(backbone_config=BACKBONE.to_dict(), id2label={0: "good", 1: "defect"})
    model = KGLForImageClassification(config).train()
    optimizer = torch.optim.AdamW(model.parameters())
    pixel_values, labels = torch.randn(BATCH, 3, *size), torch.arange(BATCH) % 2

    def step() -> None:
        output = model(pixel_values=pixel_values, labels=labels)
        target, ones = torch.zeros_like(output.saliency), torch.ones_like(output.saliency)
        guided = saliency_loss(output.saliency, target, ones, torch.ones(BATCH), CellBalance(1.0, 1.0))
        (0.5 * guided + 0.5 * output.loss).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measured(dataset: str, folder: Path, size: tuple[int, int], rounds: int) -> dict[str, object]:
    """Mediimages a second of the three ways, and the ratios of every round."""
    images = read_images(DataArguments(dataset, str(folder))).splits["train"]
    images = images.select(range(0, len(images), max(1, len(images) // 192)))
    processor = ViTImageProcessorPil(size={"height": size[0], "width": size[1]})
    collator = DefectCollator(processor, PairedAugmentation())
    with tempfile.TemporaryDirectory() as cache:
        started = time.perf_counter()
        pixels = cache_resized_images(images, processor, Path(cache))
        once = time.perf_counter() - started
        stored = concatenate_datasets([images.remove_columns("image"), pixels], axis=1)
        step = training_step(size)
        step()
        seconds: dict[str, list[float]] = {"files": [], "pixels": [], "step": []}
        for turn in range(rounds):
            at = turn * BATCH % (len(images) - BATCH)
            ways = {
                "files": lambda at=at: collator([images[row] for row in range(at, at + BATCH)]),
                "pixels": lambda at=at: collator([stored[row] for row in range(at, at + BATCH)]),
                "step": step,
            }
            for name in sorted(ways, key=lambda name: (turn + list(ways).index(name)) % 3):
                started = time.perf_counter()
                ways[name]()
                seconds[name].append(time.perf_counter() - started)
    rates = {name: BATCH / float(np.median(values)) for name, values in seconds.items()}
    files, read, steps = (np.asarray(seconds[name]) for name in ("files", "pixels", "step"))
    return {
        "images_a_second": rates,
        "pixels_over_files": float(np.median(files / read)),
        "pixels_over_step": float(np.median(steps / read)),
        "files_over_step": float(np.median(steps / files)),
        "once_in_epochs_of_files": once / (len(images) * float(np.median(files)) / BATCH),
        "seconds_a_batch": seconds,
    }


def main() -> None:
    """Print and store the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--shared", type=Path, default=shared)
    parser.add_argument("--rounds", type=int, default=9)
    options = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bars()
    cases = {
        "magnetic_tile, 224 x 224": ("magnetic_tile", "magnetic-tile", (224, 224)),
        "neu_det, 224 x 224": ("neu_det", "neu-det", (224, 224)),
        "kolektorsdd, 640 x 232": ("kolektorsdd", "kolektorsdd", (640, 232)),
    }
    results = {}
    print("| images a second | files | pixels | step | pixels over files | pixels over step | once, in epochs |")
    print("| --- |" + " ---: |" * 6)
    for name, (dataset, folder, size) in cases.items():
        found = results[name] = measured(dataset, options.shared / folder, size, options.rounds)
        rates = " | ".join(f"{found['images_a_second'][way]:.0f}" for way in ("files", "pixels", "step"))
        ratios = [found[key] for key in ("pixels_over_files", "pixels_over_step", "once_in_epochs_of_files")]
        print(f"| {name} | {rates} | " + " | ".join(f"{ratio:.2f}" for ratio in ratios) + " |", flush=True)
    store("data_path", {"threads": 1, "rounds": options.rounds, "batch": BATCH}, results)


if __name__ == "__main__":
    main()
