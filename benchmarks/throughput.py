"""
Measure how near `kgl predict`, the prior pass and training come to the speed of the forward pass.

    python benchmarks/throughput.py [--rounds 5] [--images 128] [--into docs/scale.md]

The default is trained on each set by `kgl train`; then whole jobs and forward passes alone, of the same model and the
same batch size, run in turns in one process with one thread of torch, whose other work has one more thread, as on a
machine with two cores. A ratio of 1 means that everything else is hidden behind the forward pass; forward passes
beside a thread that hashes, which needs no lock of Python's, show what the machine allows. Jobs have at least 12
batches, as the first one is loaded and the last one drawn with nothing to hide behind.

*Stages* are the milliseconds of each step of a prediction, one after the other. *Training* is a guided step of the
same backbone, all of it trained, over its forward pass, and batches that a worker process loads over the same ones in
memory. *Modes* are forward passes in other number formats and layouts over that in float32. All rounds are stored in
benchmarks/results/throughput.json; a set that it holds is skipped.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars

from kgl.benchmarks.evidence.formatting import markdown_table, write_block
from kgl.benchmarks.evidence.plan import SHARED
from kgl.benchmarks.measure import RESULTS, hardware, in_mode, paired, store
from kgl.benchmarks.step_cost import prepare_trainer, take_step
from kgl.configuration_kgl import KGLConfig
from kgl.data.arguments import DataArguments
from kgl.data.images import find_images, load_image_file
from kgl.data.loading import read_images
from kgl.evaluation.predict_folder import FolderPredictor, encode_overlay, load_named, load_pipeline
from kgl.evaluation.prediction_table import PredictionTable
from kgl.knowledge.arguments import PriorArguments
from kgl.knowledge.saliency_priors import add_saliency_priors, write_saliency_priors
from kgl.modeling_kgl import KGLForImageClassification
from kgl.pipeline_kgl import DefectDetectionPipeline
from kgl.saliency.compute import compute_saliency
from kgl.train import main as train
from kgl.training.augmentation import PairedAugmentation
from kgl.training.collator import DefectCollator
from kgl.training.trainer import KnowledgeGuidedTrainer
from kgl.training.training_args import KGLTrainingArguments


NAME = "throughput"
BATCH_SIZES = (1, 4, 16, 64)
BATCHES = 12
SETS = {  # name: arguments of kgl train
    "circuit boards, 1000 x 667": ["--data_dir", str(SHARED / "data/circuit-board")],
    "KolektorSDD, 500 x 1270": ["--data_dir", str(SHARED / "data/kolektorsdd"), "--train_per_class", "16"],
    "magnetic tiles, 117 x 281": ["--data_dir", str(SHARED / "data/magnetic-tile"), "--train_per_class", "16"],
}
COMMON = ["--backbone", str(SHARED / "models/resnet-18"), "--image_height", "160", "--image_width", "160"]
MODES = {  # name: dtype, channels_last, compiled
    "float32, channels_last": (torch.float32, True, False),
    "float32, compiled": (torch.float32, False, True),
    "float32, channels_last, compiled": (torch.float32, True, True),
    "bfloat16": (torch.bfloat16, False, False),
    "bfloat16, channels_last": (torch.bfloat16, True, False),
}


def predict(pipeline: DefectDetectionPipeline, files: list[Path], batch_size: int) -> None:
    """Predict files into a table and overlays, as `kgl predict` does once the model is loaded."""
    with tempfile.TemporaryDirectory() as folder:
        output, threshold = Path(folder), pipeline.model.config.heat_threshold
        with PredictionTable(output / "predictions.csv", list(pipeline.model.config.label2id)) as table:
            predictor = FolderPredictor(pipeline, output, table, batch_size, threshold)
            predictor.predict(((f"{number}.png", path) for number, path in enumerate(files)), load_named)


def forward_pass(pipeline: DefectDetectionPipeline, count: int, batch_size: int) -> Callable[[], None]:
    """Return a call that runs the model alone on `count` images."""
    size = pipeline.image_processor.size
    pixel_values = torch.rand(min(batch_size, count), 3, size["height"], size["width"])

    def forward() -> None:
        for _ in range(count // len(pixel_values)):
            pipeline.forward({"pixel_values": pixel_values, "size": None})

    return forward


def beside_busy_thread(call: Callable[[], None]) -> Callable[[], None]:
    """Return the call while another thread computes hashes, which needs a core and not Python's lock."""

    def hash_until(done: threading.Event) -> None:
        content = bytes(1 << 23)
        while not done.is_set():
            hashlib.sha256(content)

    def run() -> None:
        done = threading.Event()
        thread = threading.Thread(target=hash_until, args=(done,))
        thread.start()
        try:
            call()
        finally:
            done.set()
            thread.join()

    return run


def measure_jobs(pipeline: DefectDetectionPipeline, files: list[Path], count: int, rounds: int) -> dict[str, Any]:
    """
    Return the times of predictions, and of forward passes beside a busy thread, over forward passes; and a control.

    Jobs have `count` images of the files, and `BATCHES` batches at least.
    """
    results = {}
    for batch_size in BATCH_SIZES:
        some = [files[index] for index in some_of(len(files), max(count, BATCHES * batch_size))]
        forward = forward_pass(pipeline, len(some), batch_size)
        calls = {
            "prediction": lambda some=some, batch_size=batch_size: predict(pipeline, some, batch_size),
            "busy": beside_busy_thread(forward),
        }
        for name, call in calls.items():
            results[f"{name} {batch_size}"] = paired(call, forward, rounds, warmups=1)
    forward = forward_pass(pipeline, count, BATCH_SIZES[0])
    results["control"] = paired(forward, forward, rounds, warmups=1)
    return results


def some_of(available: int, count: int) -> list[int]:
    """Return `count` indices of equal distances, some of them more than once where fewer are available."""
    return [index * available // count for index in range(count)]


def measure_priors(
    pipeline: DefectDetectionPipeline, images: Dataset, rounds: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the times of a saliency prior pass, and of its maps alone, over that of its forward passes."""
    forward, model, size = forward_pass(pipeline, len(images), 16), pipeline.model, pipeline.image_processor.size
    pixel_values = torch.rand(16, 3, size["height"], size["width"])
    targets, args = torch.arange(16) % model.config.num_labels, PriorArguments()

    def write() -> None:
        with tempfile.TemporaryDirectory() as folder:
            write_saliency_priors(images, model, pipeline.image_processor, Path(folder) / "priors")

    def compute_maps() -> None:
        for _ in range(len(images) // 16):
            compute_saliency(model, pixel_values, targets, args.prior_method, args.prior_layers)

    return tuple(paired(call, forward, rounds, warmups=1) for call in (write, compute_maps))


def measure_training(
    pipeline: DefectDetectionPipeline, images: Dataset, rounds: int
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the times of guided steps over their forward passes, and of an epoch over its steps, in batches of 16."""
    config = pipeline.model.config
    model = KGLForImageClassification(KGLConfig(backbone_config=config.backbone_config, id2label=config.id2label))
    with tempfile.TemporaryDirectory() as folder:
        args = KGLTrainingArguments(
            output_dir=folder, kg_lambda=0.5, per_device_train_batch_size=16, dataloader_num_workers=1,
            dataloader_persistent_workers=True,
        )  # fmt: skip
        trainer = prepare_trainer(
            KnowledgeGuidedTrainer(
                model=model, args=args, train_dataset=add_saliency_priors(images, model, pipeline.image_processor),
                data_collator=DefectCollator(pipeline.image_processor, PairedAugmentation()),
            )
        )  # fmt: skip
        loader = trainer.get_train_dataloader()
        batches = list(loader)

        @torch.no_grad()
        def forward() -> None:
            for batch in batches:
                model(pixel_values=batch["pixel_values"])

        def train_on(batches: Iterable[dict[str, torch.Tensor]]) -> None:
            for batch in batches:
                take_step(trainer, batch)

        steps = paired(lambda: train_on(batches), forward, rounds, warmups=1)
        return steps, paired(lambda: train_on(loader), lambda: train_on(batches), rounds, warmups=1)


def measure_stages(pipeline: DefectDetectionPipeline, files: list[Path]) -> dict[str, float]:
    """Return the median milliseconds of each step of a prediction, one image at a time."""
    seconds: dict[str, list[float]] = {}
    threshold, top_cells = pipeline.model.config.heat_threshold, pipeline.model.config.top_cells

    def timed(name: str, call: Callable[[], Any]) -> Any:
        started = time.perf_counter()
        result = call()
        seconds.setdefault(name, []).append(time.perf_counter() - started)
        return result

    for path in files:
        image = timed("read and decode", lambda path=path: load_image_file(path))
        inputs = timed("resize", lambda image=image: pipeline.preprocess(image))
        outputs = timed("forward pass", lambda inputs=inputs: pipeline.forward(inputs))
        prediction = timed("heat map and boxes", lambda outputs=outputs: pipeline.postprocess(outputs))
        timed("overlay", lambda image=image, one=prediction: encode_overlay(image, one, threshold, top_cells))
    return {name: 1000 * float(np.median(values)) for name, values in seconds.items()}


@torch.inference_mode()
def measure_modes(pipeline: DefectDetectionPipeline, rounds: int) -> dict[str, Any]:
    """Return the time of a batch in each mode over that in float32, and the largest change of a probability."""
    size = pipeline.image_processor.size
    model = copy.deepcopy(pipeline.model).to(memory_format=torch.contiguous_format)
    pixel_values = torch.randn(16, 3, size["height"], size["width"])
    expected, results = model(pixel_values), {}
    for name, mode in MODES.items():
        call, batch = in_mode(copy.deepcopy(model), pixel_values, *mode)
        output = call(batch)
        results[name] = paired(lambda call=call, batch=batch: call(batch), lambda: model(pixel_values), rounds)
        results[name]["change"] = {
            "class": _largest(output.logits.float().softmax(1) - expected.logits.softmax(1)),
            "heat map": _largest(output.saliency.float().sigmoid() - expected.saliency.sigmoid()),
        }
    return results


def _largest(difference: torch.Tensor) -> float:
    return float(difference.abs().max())


def measure_set(name: str, count: int, rounds: int) -> dict[str, Any]:
    """Train on a set and measure all of it; the modes do not depend on the set, so they are measured on the first."""
    run = Path(tempfile.mkdtemp())
    try:
        train([*SETS[name], *COMMON, "--output_dir", str(run / "run")])
        torch.set_num_threads(1)
        pipeline, _ = load_pipeline(str(run / "run/final"), 1, None)
        files = find_images(Path(SETS[name][1]))
        results = {
            "stages": measure_stages(pipeline, [files[index] for index in some_of(len(files), 48)]),
            **measure_jobs(pipeline, files, count, rounds),
        }
        images = read_images(DataArguments(data_dir=SETS[name][1])).splits["train"]
        some = images.select(some_of(len(images), 16 * BATCHES))
        results["priors"], results["maps"] = measure_priors(pipeline, some, rounds)
        results["steps"], results["epoch"] = measure_training(pipeline, some.select(range(count)), rounds)
        if name == next(iter(SETS)):
            results["modes"] = measure_modes(pipeline, rounds)
        return results
    finally:
        shutil.rmtree(run)


def rates_table(results: dict[str, Any]) -> str:
    """Return a Markdown table of images per second over those of the forward pass, with quartiles."""
    rows = []
    for name, measured in results.items():
        jobs = {name: "prediction", "forward passes beside a busy thread": "busy"}
        for title, job in jobs.items():
            rates = {f"batches of {size}": _rate(measured[f"{job} {size}"]) for size in BATCH_SIZES}
            rows.append({"predictions over forward passes": title} | rates)
    return markdown_table(rows)


def passes_table(results: dict[str, Any]) -> str:
    """Return a Markdown table of the prior pass and of training over the forward pass, with quartiles."""
    titles = {
        "control": "control: forward passes",
        "priors": "prior pass",
        "maps": "its maps alone",
        "steps": "guided steps",
        "epoch": "epoch over its steps",
    }
    rows = [
        {"set": name} | {title: _rate(measured[key]) for key, title in titles.items()}
        for name, measured in results.items()
    ]
    return markdown_table(rows)


def _rate(measured: dict[str, Any]) -> str:
    low, high = measured["quartiles"]
    return f"{1 / measured['ratio']:.2f} ({1 / high:.2f} .. {1 / low:.2f})"


def stages_table(results: dict[str, Any]) -> str:
    """Return a Markdown table of the milliseconds of every step."""
    rows = []
    for name, measured in results.items():
        rows.append({"set": name} | {f"{step}, ms": f"{value:.1f}" for step, value in measured["stages"].items()})
    return markdown_table(rows)


def modes_table(modes: dict[str, Any]) -> str:
    """Return a Markdown table of the speed of every mode over float32 and what it changes."""
    rows = []
    for name, measured in modes.items():
        change = measured["change"]
        rows.append(
            {
                "forward pass": name,
                "speed over float32": _rate(measured),
                "largest change of a class's probability": f"{change['class']:.1e}",
                "of a cell of the heat map": f"{change['heat map']:.1e}",
            }
        )
    return markdown_table(rows)


def main() -> None:
    """Measure the sets that the results file lacks, and fill the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=128)
    parser.add_argument("--into", type=Path, help="a page with the marker `throughput`")
    options = parser.parse_args()
    disable_progress_bars()
    path = RESULTS / f"{NAME}.json"
    results = json.loads(path.read_text(encoding="utf-8"))["results"] if path.exists() else {}
    for name in [name for name in SETS if name not in results]:
        results[name] = {"hardware": hardware(), **measure_set(name, options.images, options.rounds)}
        store(NAME, {"threads": 1, "rounds": options.rounds, "images": options.images}, results)
    tables = [
        rates_table(results),
        passes_table(results),
        stages_table(results),
        modes_table(results[next(iter(SETS))]["modes"]),
    ]
    machines = " and ".join(dict.fromkeys(one["hardware"] for one in results.values()))
    block = f"{machines}, one thread of torch and one for everything else.\n\n" + "\n\n".join(tables)
    print(block)
    if options.into is not None:
        write_block(options.into, NAME, block)


if __name__ == "__main__":
    main()
