"""
An exported classifier beside PyTorch: how long a batch takes, and whether average precision stays what it is.

    python benchmarks/export.py --model runs/magnetic_tile/final [--rounds 20] [--images 300]

Both sides begin with decoded images and end with probabilities and heat maps, on one thread each, in turns; PyTorch
by way of the image processor, as every command goes. What is reported is the median of the rounds' ratios with their
quartiles, beside a control of one side against itself. Accuracy is that of the held-out magnetic tiles; the 8-bit
graph is calibrated with training ones. Everything goes to benchmarks/results/export.json.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from datasets import Dataset
from measure import hardware, paired, store
from PIL import Image
from transformers import BaseImageProcessor
from transformers.image_utils import load_image

from kgl.data.arguments import DataArguments
from kgl.data.images import to_pixel_values
from kgl.data.loading import load_defect_dataset
from kgl.evaluation.metrics import DefectClassification
from kgl.exporters.onnx import write_onnx
from kgl.exporters.quantization import quantize
from kgl.modeling_kgl import KGLForImageClassification
from kgl.training.model_init import load_classifier


SIZES = ((240, 320), (1260, 500))  # height and width of images, small and as KolektorSDD's


def one_thread(path: Path) -> onnxruntime.InferenceSession:
    """The graph, on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def by_pytorch(
    model: KGLForImageClassification, image_processor: BaseImageProcessor, images: list[Image.Image]
) -> np.ndarray:
    """Probabilities `(B, K)`; heat maps are computed too."""
    with torch.no_grad():
        output = model(to_pixel_values(images, image_processor))
        output.saliency.sigmoid()
        return output.logits.softmax(dim=1).numpy()


def latencies(
    sessions: dict[str, onnxruntime.InferenceSession],
    model: KGLForImageClassification,
    image_processor: BaseImageProcessor,
    rounds: int,
) -> dict[str, object]:
    """Every graph over PyTorch, by batch and image size."""
    generator = np.random.default_rng(0)
    results = {}
    for height, width in SIZES:
        for batch in (1, 8):
            arrays = generator.integers(0, 256, (batch, height, width, 3), dtype=np.uint8)
            images = [Image.fromarray(array) for array in arrays]

            def pytorch(images: list[Image.Image] = images) -> object:
                return by_pytorch(model, image_processor, images)

            for name, session in sessions.items():

                def graph(session: onnxruntime.InferenceSession = session, arrays: np.ndarray = arrays) -> object:
                    return session.run(None, {"image": arrays})

                results[f"{name} over PyTorch, {batch} x {height} x {width}"] = paired(graph, pytorch, rounds)
    results["control: PyTorch over itself, " + f"{batch} x {height} x {width}"] = paired(pytorch, pytorch, rounds)
    return results


def accuracy(
    answer: Callable[[Image.Image], np.ndarray], held_out: Dataset, defect_free_id: int | None
) -> tuple[dict[str, float], np.ndarray]:
    """Metrics and probabilities `(N, K)` over held-out images, one at a time."""
    certain = np.finfo(np.float64).eps
    probabilities = np.stack([answer(load_image(row["image"])) for row in held_out]).astype(np.float64)
    metrics = DefectClassification(keep_in_memory=True).compute(
        predictions=probabilities.clip(certain, 1 - certain),
        references=held_out["label"],
        defect_free_id=defect_free_id,
    )
    return metrics, probabilities


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="A classifier of the magnetic tiles, saved by kgl-train.")
    parser.add_argument("--data_dir", default="../shared/data/magnetic-tile")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--images", type=int, default=300, help="Held-out images, at most.")
    options = parser.parse_args()
    torch.set_num_threads(1)

    model, image_processor = load_classifier(options.model)
    model.eval()
    splits = load_defect_dataset(DataArguments(dataset="magnetic_tile", data_dir=options.data_dir))
    if splits["test"].features["label"].names != list(model.config.label2id):
        raise SystemExit("The model's classes are not the magnetic tiles', or in another order.")
    held_out = splits["test"].shuffle(seed=0).select(range(min(options.images, len(splits["test"]))))
    calibration = splits["train"].shuffle(seed=0).select(range(64))

    with tempfile.TemporaryDirectory() as folder:
        float_graph, int8_graph = Path(folder) / "model.onnx", Path(folder) / "int8.onnx"
        write_onnx(model, image_processor, float_graph)
        with contextlib.redirect_stdout(io.StringIO()):
            loss = quantize(float_graph, [np.array(load_image(row["image"])) for row in calibration], int8_graph)
        sessions = {"float graph": one_thread(float_graph), "int8 graph": one_thread(int8_graph)}
        bytes_of = {"float graph": float_graph.stat().st_size, "int8 graph": int8_graph.stat().st_size}

    answers = {"PyTorch": lambda image: by_pytorch(model, image_processor, [image])[0]} | {
        name: lambda image, session=session: session.run(["probabilities"], {"image": np.array(image)[None]})[0][0]
        for name, session in sessions.items()
    }
    measured = {name: accuracy(answer, held_out, model.config.defect_free_id) for name, answer in answers.items()}
    expected = measured["PyTorch"][1]
    results = {
        "latency": latencies(sessions, model, image_processor, options.rounds),
        "metrics": {name: metrics for name, (metrics, _) in measured.items()},
        "largest difference of a probability": {
            name: float(np.abs(probabilities - expected).max()) for name, (_, probabilities) in measured.items()
        },
        "int8 loss on calibration images": asdict(loss),
        "bytes": bytes_of,
    }

    print(f"{hardware()}, one thread, {len(held_out)} held-out images")
    for name, result in results["latency"].items():
        milliseconds = [1000 * float(np.median(result[side])) for side in ("with", "without")]
        print(f"{name}: {milliseconds[0]:.1f} ms and {milliseconds[1]:.1f} ms, ratio {result['ratio']:.3f}")
    for name, metrics in results["metrics"].items():
        difference = results["largest difference of a probability"][name]
        print(f"{name}: {metrics}, probabilities differ by {difference:.1e} at most")
    print(results["int8 loss on calibration images"], bytes_of)
    settings = {"backbone": model.config.backbone_config.model_type, "size": dict(image_processor.size)}
    settings |= {"onnxruntime": onnxruntime.__version__, "rounds": options.rounds, "images": len(held_out)}
    store("export", settings, results)


if __name__ == "__main__":
    main()
