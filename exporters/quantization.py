"""Quantize an exported graph to 8 bits and measure the loss."""

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
    """How far the 8-bit graph is from the float graph on the images it was calibrated with."""

    images: int
    max_difference: float
    mean_difference: float
    changed_decisions: float


class _Images(CalibrationDataReader):
    """One image at a time, for they differ in size."""

    def __init__(self, images: list[np.ndarray]) -> None:
        self._batches = iter([{"image": image[None]} for image in images])

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._batches, None)


def quantize(float_graph: Path, images: list[np.ndarray], output: Path) -> QuantizationLoss:
    """
    Write `float_graph` with its convolutions and linear layers in 8 bits (QDQ), weights scaled a channel each.

    The preprocessing stays exact, and so do products of two activations.

    Args:
        float_graph: what [`~kgl.exporters.onnx.write_onnx`] wrote.
        images: each `(H, W, 3)` uint8; they set the ranges of the activations.
        output: the file to write.

    Raises:
        InputError: the graph has no layer with weights that could be quantised.
    """
    with tempfile.TemporaryDirectory() as folder:
        prepared = Path(folder) / "prepared.onnx"
        quant_pre_process(str(float_graph), str(prepared), skip_symbolic_shape=True)
        layers = _layers(onnx.load(prepared))
        if not layers:
            raise InputError("--int8: this model has no convolution or linear layer to quantise.")
        quantize_static(
            str(prepared),
            str(output),
            _Images(images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            nodes_to_quantize=layers,
        )
    return _loss(float_graph, output, images)


def _layers(model: onnx.ModelProto) -> list[str]:
    """Nodes that weigh activations by stored weights; the resize computes its weights and is none of them."""
    stored = {tensor.name for tensor in model.graph.initializer if tensor.data_type == onnx.TensorProto.FLOAT}
    kinds = ("Conv", "Gemm", "MatMul")
    return [node.name for node in model.graph.node if node.op_type in kinds and node.input[1] in stored]


def _loss(float_graph: Path, int8_graph: Path, images: list[np.ndarray]) -> QuantizationLoss:
    sessions = [
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        for path in (float_graph, int8_graph)
    ]
    names = [output.name for output in sessions[0].get_outputs()]
    differences, changed = [], []
    for image in images:
        exact, coarse = (
            dict(zip(names, session.run(names, {"image": image[None]}), strict=True)) for session in sessions
        )
        differences.append(np.abs(exact["probabilities"] - coarse["probabilities"]).max())
        changed.append(bool((_decision(exact) != _decision(coarse)).any()))
    return QuantizationLoss(
        len(images), float(np.max(differences)), float(np.mean(differences)), float(np.mean(changed))
    )


def _decision(answers: dict[str, np.ndarray]) -> np.ndarray:
    """Whether images are defective, or where nothing is free of defects, which class they are of."""
    return answers["defective"] if "defective" in answers else answers["probabilities"].argmax(axis=1)


__all__ = ["QuantizationLoss", "quantize"]
