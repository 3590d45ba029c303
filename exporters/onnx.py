"""The ONNX graph of a classifier, preprocessing and decision included."""

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

from ..configuration_kgl import KGLConfig
from ..data.images import to_pixel_values
from ..errors import InputError
from ..modeling_kgl import KGLForImageClassification
from .wrapper import ExportWrapper


_OPSET = 18


def require_extra() -> None:
    """
    Check that the packages of the extra `export` are installed.

    Raises:
        InputError: one is missing.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise InputError(f'{error.name} is not installed; run: pip install -e ".[export]"') from error


def write_onnx(model: KGLForImageClassification, image_processor: BaseImageProcessor, path: Path) -> None:
    """
    Write the graph from `image (B, H, W, 3)` uint8 to the outputs of [`ExportWrapper`], with B, H and W dynamic.

    The graph's metadata, all strings: `labels` (a JSON list), `size` (JSON, the model's input height and width),
    `temperature`, `kgl_version`, `resized_as_pillow` (the Pillow version); where the model has a heat map,
    `saliency_threshold`, the value from which a cell is marked; and where it has a defect-free class,
    `defect_free_label` and the entries of [`decision_metadata`].

    Raises:
        InputError: the model cannot be exported.
    """
    import onnx

    wrapper = ExportWrapper(model.cpu(), image_processor)
    example = torch.zeros(2, 48, 56, 3, dtype=torch.uint8)
    try:
        with _quiet_exporter():
            program = torch.onnx.export(
                wrapper,
                (example,),
                input_names=["image"],
                output_names=wrapper.output_names,
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
    """Return the graph's metadata as [`write_onnx`] documents it."""
    config = model.config
    entries = {
        "labels": json.dumps([config.id2label[index] for index in range(config.num_labels)]),
        "size": json.dumps({side: image_processor.size[side] for side in ("height", "width")}),
        "temperature": repr(config.temperature),
        "kgl_version": version("kgl-defects"),
        "resized_as_pillow": version("pillow"),
    }
    if config.has_heat_map:
        entries["saliency_threshold"] = repr(config.heat_threshold)
    if config.defect_free_label is not None:
        entries["defect_free_label"] = config.defect_free_label
        entries |= decision_metadata(config)
    return entries


def decision_metadata(config: KGLConfig) -> dict[str, str]:
    """
    Return the metadata of the decision: `threshold` and `operating_point` (JSON; null where the threshold is 0.5 by
    default) and, where there is one, `look_again_threshold`.
    """
    entries = {
        "threshold": repr(config.threshold),
        "operating_point": json.dumps(config.operating_point, sort_keys=True),
    }
    if config.look_again_threshold is not None:
        entries["look_again_threshold"] = repr(config.look_again_threshold)
    return entries


def max_difference(
    path: Path,
    model: KGLForImageClassification,
    image_processor: BaseImageProcessor,
    images: list[np.ndarray],
) -> float:
    """
    Return the largest difference between PyTorch's and the graph's probabilities and heat maps on the images.

    PyTorch's are computed through the image processor, as by every other command.

    Args:
        path: a graph of [`write_onnx`].
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
        for expected, actual in (
            (output.logits.softmax(dim=1), probabilities),
            (output.saliency[:, 0].sigmoid() * model.config.has_heat_map, heat_map),
        ):
            largest = max(largest, float(np.abs(expected.numpy() - actual).max()))
    return largest


@contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence the exporter's notes on optional libraries and on its own future changes."""
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
    """Remove the exporter's stack traces, which name folders of this machine, from an `onnx.ModelProto`."""

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


__all__ = ["decision_metadata", "max_difference", "metadata", "require_extra", "write_onnx"]
