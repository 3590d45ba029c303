"""8-bit quantization of an exported graph, and the loss it causes."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from ..errors import InputError


@dataclass
class QuantizationLoss:
    """
    Differences of the 8-bit graph from the float graph on the calibration images.

    Args:
        images: how many.
        max_difference: the largest difference of a probability.
        mean_difference: the mean over the images of their largest difference.
        changed_decisions: share of the images with another decision, 0..1.
    """

    images: int
    max_difference: float
    mean_difference: float
    changed_decisions: float


class _Images(CalibrationDataReader):
    """Calibration images one at a time, because their sizes differ."""

    def __init__(self, images: list[np.ndarray]) -> None:
        self._batches = iter([{"image": image[None]} for image in images])

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next image's inputs, None at the end."""
        return next(self._batches, None)


def quantize(float_graph: Path, images: list[np.ndarray], output: Path) -> QuantizationLoss:
    """
    Write a graph with convolutions and linear layers in 8 bits (QDQ), weights scaled per channel.

    The preprocessing stays exact, as do products of two activations.

    Args:
        float_graph: a graph of [`~kgl.exporters.onnx.write_onnx`].
        images: each `(H, W, 3)` uint8; they calibrate the ranges of the activations.
        output: the file to write.

    Raises:
        InputError: the graph has no convolution or linear layer.
    """
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(float_graph), str(prepared), skip_symbolic_shape=True)
        layers = _weighted_layers(onnx.load(prepared))
        if not layers:
            raise InputError("--int8: this model has no convolution or linear layer to quantize; leave it out.")
        quantize_static(
            str(prepared),
            str(output),
            _Images(images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            nodes_to_quantize=layers,
        )
    return _measure_loss(float_graph, output, images)


def _weighted_layers(model: onnx.ModelProto) -> list[str]:
    """Return the nodes with stored weights; the resize computes its weights and is not among them."""
    stored = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    kinds = ("Conv", "Gemm", "MatMul")
    return [node.name for node in model.graph.node if node.op_type in kinds and node.input[1] in stored]


def _measure_loss(float_graph: Path, int8_graph: Path, images: list[np.ndarray]) -> QuantizationLoss:
    sessions = [
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for path in (float_graph, int8_graph)
    ]
    names = [output.name for output in sessions[0].get_outputs()]
    differences, changed = [], []
    for image in images:
        exact, quantized = (
            dict(zip(names, session.run(names, {"image": image[None]}), strict=True)) for session in sessions
        )
        differences.append(np.abs(exact["probabilities"] - quantized["probabilities"]).max())
        changed.append(bool((_decision(exact) != _decision(quantized)).any()))
    return QuantizationLoss(
        len(images), float(np.max(differences)), float(np.mean(differences)), float(np.mean(changed))
    )


def _decision(outputs: dict[str, np.ndarray]) -> np.ndarray:
    """Return whether images are defective or, without a defect-free class, their predicted classes, `(B,)`."""
    return outputs["defective"] if "defective" in outputs else outputs["probabilities"].argmax(axis=1)


__all__ = ["QuantizationLoss", "quantize"]
