"""
Compare an exported classifier with PyTorch: time per batch, and average precision.

    python benchmarks/export.py --model runs/magnetic_tile/final [--rounds 20] [--images 300]

Both sides start from decoded images and end with probabilities and heat maps, on one thread, in turns; PyTorch runs
the image processor first. Times are ratios to PyTorch's, the median of the rounds with quartiles, beside a control of
PyTorch against itself. Accuracy is that of test images of the magnetic tiles; the 8-bit graph is calibrated with
training images. Everything is stored in benchmarks/results/export.json.
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
from datasets import Dataset, disable_progress_bars
from PIL import Image
from transformers import BaseImageProcessor
from transformers.image_utils import load_image

from kgl.benchmarks.measure import hardware, paired, store
from kgl.data.arguments import DataArguments
from kgl.data.images import to_pixel_values
from kgl.data.loading import load_defect_dataset
from kgl.evaluation.metrics import DefectClassification
from kgl.exporters.onnx import write_onnx
from kgl.exporters.quantization import quantize
from kgl.modeling_kgl import KGLForImageClassification
from kgl.training.model_init import load_classifier


SIZES = ((240, 320), (1260, 500))  # height and width of the images: small ones, and KolektorSDD's
CALIBRATION_IMAGES = 64


def open_session(path: Path) -> onnxruntime.InferenceSession:
    """Return a session of the graph on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def predict_with_pytorch(
    model: KGLForImageClassification, image_processor: BaseImageProcessor, images: list[Image.Image]
) -> np.ndarray:
    """Return probabilities `(B, K)`; heat maps are computed too."""
    with torch.no_grad():
        output = model(to_pixel_values(images, image_processor))
        output.saliency.sigmoid()
        return output.logits.softmax(dim=1).numpy()


def measure_latency(
    sessions: dict[str, onnxruntime.InferenceSession],
    model: KGLForImageClassification,
    image_processor: BaseImageProcessor,
    rounds: int,
) -> dict[str, dict[str, object]]:
    """Return the time of every graph over PyTorch's, by batch and image size."""
    generator = np.random.default_rng(0)
    results = {}
    for height, width in SIZES:
        for batch_size in (1, 8):
            arrays = generator.integers(0, 256, (batch_size, height, width, 3), dtype=np.uint8)
            images = [Image.fromarray(array) for array in arrays]

            def pytorch(images: list[Image.Image] = images) -> object:
                return predict_with_pytorch(model, image_processor, images)

            for name, session in sessions.items():

                def graph(session: onnxruntime.InferenceSession = session, arrays: np.ndarray = arrays) -> object:
                    return session.run(None, {"image": arrays})

                results[f"{name}_{batch_size}x{height}x{width}"] = paired(graph, pytorch, rounds)
    results[f"pytorch_control_{batch_size}x{height}x{width}"] = paired(pytorch, pytorch, rounds)
    return results


def evaluate(
    predict: Callable[[Image.Image], np.ndarray], test_images: Dataset, defect_free_id: int | None
) -> tuple[dict[str, float], np.ndarray]:
    """Return metrics and probabilities `(N, K)` of the test images, predicted one at a time."""
    smallest = np.finfo(np.float64).eps  # exact 0 and 1 would be taken for hard labels
    probabilities = np.stack([predict(load_image(row["image"])) for row in test_images]).astype(np.float64)
    metrics = DefectClassification(keep_in_memory=True).compute(
        predictions=probabilities.clip(smallest, 1 - smallest),
        references=test_images["label"],
        defect_free_id=defect_free_id,
    )
    return metrics, probabilities


def measure(
    model: KGLForImageClassification,
    image_processor: BaseImageProcessor,
    test_images: Dataset,
    calibration_images: Dataset,
    rounds: int,
) -> dict[str, object]:
    """Export the classifier, plain and quantized, and compare both graphs with PyTorch."""
    with tempfile.TemporaryDirectory() as folder:
        paths = {"float_graph": Path(folder) / "model.onnx", "int8_graph": Path(folder) / "model_int8.onnx"}
        write_onnx(model, image_processor, paths["float_graph"])
        arrays = [np.array(load_image(row["image"])) for row in calibration_images]
        with contextlib.redirect_stdout(io.StringIO()):
            loss = quantize(paths["float_graph"], arrays, paths["int8_graph"])
        sessions = {name: open_session(path) for name, path in paths.items()}
        sizes = {name: path.stat().st_size for name, path in paths.items()}
    predictors = {"pytorch": lambda image: predict_with_pytorch(model, image_processor, [image])[0]} | {
        name: lambda image, session=session: session.run(["probabilities"], {"image": np.array(image)[None]})[0][0]
        for name, session in sessions.items()
    }
    evaluated = {
        name: evaluate(predict, test_images, model.config.defect_free_id) for name, predict in predictors.items()
    }
    expected = evaluated["pytorch"][1]
    return {
        "latency": measure_latency(sessions, model, image_processor, rounds),
        "metrics": {name: metrics for name, (metrics, _) in evaluated.items()},
        "max_probability_difference": {
            name: float(np.abs(probabilities - expected).max()) for name, (_, probabilities) in evaluated.items()
        },
        "quantization_loss": asdict(loss),
        "bytes": sizes,
    }


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a classifier of the magnetic tiles")
    parser.add_argument("--data_dir", default="../shared/data/magnetic-tile")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--images", type=int, default=300, help="number of test images at most")
    options = parser.parse_args()
    torch.set_num_threads(1)
    disable_progress_bars()

    model, image_processor = load_classifier(options.model)
    model.eval()
    splits = load_defect_dataset(DataArguments(dataset="magnetic_tile", data_dir=options.data_dir))
    if splits["test"].features["label"].names != list(model.config.label2id):
        parser.error("--model: its classes are not those of the magnetic tiles in the same order.")
    test_images = splits["test"].shuffle(seed=0).select(range(min(options.images, len(splits["test"]))))
    calibration_images = splits["train"].shuffle(seed=0).select(range(CALIBRATION_IMAGES))
    results = measure(model, image_processor, test_images, calibration_images, options.rounds)

    print(f"{hardware()}, one thread, {len(test_images)} test images")
    for name, result in results["latency"].items():
        graph, pytorch = (1000 * float(np.median(result[key])) for key in ("seconds", "baseline_seconds"))
        print(f"{name}: {graph:.1f} ms, PyTorch {pytorch:.1f} ms, ratio {result['ratio']:.3f}")
    for name, metrics in results["metrics"].items():
        difference = results["max_probability_difference"][name]
        print(f"{name}: AP {metrics['ap']:.4f}, largest difference of a probability {difference:.1e}")
    print(f"quantization loss {results['quantization_loss']}, bytes {results['bytes']}")
    settings = {"backbone": model.config.backbone_config.model_type, "size": dict(image_processor.size)}
    settings |= {"onnxruntime": onnxruntime.__version__, "rounds": options.rounds, "images": len(test_images)}
    store("export", settings, results)


if __name__ == "__main__":
    main()
