"""Export a trained classifier as one ONNX graph, preprocessing and decision included."""

from __future__ import annotations

import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BaseImageProcessor

from ..data.images import to_pixel_values
from ..errors import InputError
from ..modeling_kgl import KGLForImageClassification
from .wrapper import ExportWrapper


logger = logging.getLogger(__name__)

TOLERANCE = 1e-4  # between PyTorch's and the graph's probabilities and heat maps
_OPSET = 18


def require_extra() -> None:
    """
    Raises:
        InputError: what exporting needs is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f'{error.name} is not installed; run: pip install -e ".[export]"') from error


def write_onnx(model: KGLForImageClassification, image_processor: BaseImageProcessor, path: Path) -> None:
    """
    Write one graph: `image (B, H, W, 3)` uint8 to what [`~kgl.exporters.wrapper.ExportWrapper`] gives; any B, H, W.

    Its metadata, all strings: `labels` (a JSON list), `size` (JSON, height and width the image is brought to),
    `temperature`, `kgl_version` and, where a class is free of defects, `defect_free_label`, `threshold` and
    `operating_point` (JSON; null where the threshold is just one half).

    Raises:
        InputError: the model cannot be exported.
    """
    import onnx

    deployable = ExportWrapper(model.cpu(), image_processor)
    example = torch.zeros(2, 48, 56, 3, dtype=torch.uint8)
    try:
        with _quiet_exporter():
            program = torch.onnx.export(
                deployable,
                (example,),
                input_names=["image"],
                output_names=deployable.output_names,
                dynamic_shapes={"image": {0: "batch", 1: "height", 2: "width"}},
                opset_version=_OPSET,
                dynamo=True,
                verbose=False,
            )
    except torch.onnx.OnnxExporterError as error:
        backbone = model.config.backbone_config.model_type
        reason = str(error.__cause__ or error).splitlines()[0]
        raise InputError(f"A model with a {backbone} backbone cannot be exported: {reason}") from error
    graph = program.model_proto
    strip_debug_metadata(graph)
    onnx.helper.set_model_props(graph, metadata(model, image_processor))
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, path)


def metadata(model: KGLForImageClassification, image_processor: BaseImageProcessor) -> dict[str, str]:
    """What [`write_onnx`] says of the model in the file."""
    config = model.config
    said = {
        "labels": json.dumps([config.id2label[index] for index in range(config.num_labels)]),
        "size": json.dumps({side: image_processor.size[side] for side in ("height", "width")}),
        "temperature": repr(config.temperature),
        "kgl_version": version("kgl-defects"),
        "resized_as_pillow": version("pillow"),
    }
    if config.defect_free_label is not None:
        said["defect_free_label"] = config.defect_free_label
        said["threshold"] = repr(config.threshold)
        said["operating_point"] = json.dumps(config.operating_point)
    return said


def max_difference(
    path: Path,
    model: KGLForImageClassification,
    image_processor: BaseImageProcessor,
    images: list[np.ndarray],
) -> float:
    """
    The largest difference between PyTorch's and the graph's probabilities and heat maps on any of the images.

    PyTorch's are those of the way that every other command goes, through the image processor.

    Args:
        path: a graph that [`write_onnx`] wrote.
        model: in eval mode.
        image_processor: the model's.
        images: each `(H, W, 3)` uint8.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    largest = 0.0
    for image in images:
        with torch.no_grad():
            output = model(to_pixel_values([Image.fromarray(image)], image_processor))
        probabilities, heat_map = session.run(["probabilities", "heat_map"], {"image": image[None]})
        for ours, theirs in (
            (output.logits.softmax(dim=1), probabilities),
            (output.saliency[:, 0].sigmoid(), heat_map),
        ):
            largest = max(largest, float(np.abs(ours.numpy() - theirs).max()))
    return largest


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Without the exporter's notes on libraries that are not there and on its own parts that are to change."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        logger.setLevel(level)


def strip_debug_metadata(model: Any) -> None:
    """Take out the exporter's stack traces, which name the folders of the machine it ran on."""

    def clean(graph: Any) -> None:
        graph.ClearField("doc_string")
        for part in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
            part.ClearField("metadata_props")
            part.ClearField("doc_string")
        for node in graph.node:
            for attribute in node.attribute:
                if attribute.HasField("g"):
                    clean(attribute.g)

    clean(model.graph)
    for function in model.functions:
        for part in (function, *function.node):
            part.ClearField("metadata_props")


__all__ = ["TOLERANCE", "max_difference", "metadata", "require_extra", "write_onnx"]
