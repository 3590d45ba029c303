"""A trained classifier as one ONNX file, preprocessing and decision within, checked against PyTorch. A command."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BaseImageProcessor

from kgl.collator import to_pixel_values
from kgl.commands import parse_settings, run_command
from kgl.deployable import DeployableClassifier
from kgl.errors import InputError, check_choices
from kgl.layouts import pictures_below
from kgl.modeling_kgl import KGLForImageClassification
from kgl.prior import load_classifier
from kgl.scan import load_picture


FORMATS = ("onnx",)
TOLERANCE = 1e-4  # between PyTorch's and the graph's probabilities and heat maps
_OPSET = 18
_CALIBRATION_PICTURES = 128
_NOISE_SIZES = ((40, 48), (333, 127), (64, 500))  # height and width: smaller, taller and wider than most inputs


@dataclass
class ExportArguments:
    """What is exported, and where to."""

    model: str = field(metadata={"help": "A classifier saved by kgl-train: a folder or a Hub id."})
    format: str = field(default="onnx", metadata={"help": "The kind of file.", "choices": list(FORMATS)})
    output: str | None = field(
        default=None, metadata={"help": "The .onnx file to write; model.onnx in the model's folder by default."}
    )
    int8: str | None = field(
        default=None,
        metadata={
            "help": "Besides, a graph in 8 bits beside it (model_int8.onnx): a folder of pictures like those to come, "
            f"which set its ranges; {_CALIBRATION_PICTURES} of them are used."
        },
    )

    def __post_init__(self) -> None:
        check_choices(self, {"format": FORMATS})
        if self.output is not None and Path(self.output).suffix != ".onnx":
            raise InputError(f"--output {self.output}: its name must end in .onnx.")
        if self.output is None and not Path(self.model).is_dir():
            raise InputError(f"--model {self.model}: it is no folder here; say where the graph goes by --output.")
        if not self.path.absolute().parent.is_dir():
            raise InputError(f"--output {self.output}: there is no such folder.")
        if self.int8 is not None and not Path(self.int8).is_dir():
            raise InputError(f"--int8 {self.int8}: there is no such folder of pictures.")

    @property
    def path(self) -> Path:
        """The file to write."""
        return Path(self.model) / "model.onnx" if self.output is None else Path(self.output)


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
    Write one graph: `image (B, H, W, 3)` uint8 to what [`~kgl.deployable.DeployableClassifier`] gives; any B, H, W.

    Its metadata, all strings: `labels` (a JSON list), `size` (JSON, height and width the picture is brought to),
    `temperature`, `kgl_version` and, where a class is free of defects, `defect_free_label`, `threshold` and
    `operating_point` (JSON; null where the threshold is just one half).

    Raises:
        InputError: the model cannot be exported.
    """
    import onnx

    deployable = DeployableClassifier(model.cpu(), image_processor)
    example = torch.zeros(2, 48, 56, 3, dtype=torch.uint8)
    try:
        with _quiet():
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
    _forget_where_it_came_from(graph)
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


def largest_difference(
    path: Path,
    model: KGLForImageClassification,
    image_processor: BaseImageProcessor,
    pictures: list[np.ndarray],
) -> float:
    """
    The largest difference between PyTorch's and the graph's probabilities and heat maps on any of the pictures.

    PyTorch's are those of the way that every other command goes, through the image processor.

    Args:
        path: a graph that [`write_onnx`] wrote.
        model: in eval mode.
        image_processor: the model's.
        pictures: each `(H, W, 3)` uint8.
    """
    import onnxruntime

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    largest = 0.0
    for picture in pictures:
        with torch.no_grad():
            output = model(to_pixel_values([Image.fromarray(picture)], image_processor))
        probabilities, heat_map = session.run(["probabilities", "heat_map"], {"image": picture[None]})
        for ours, theirs in (
            (output.logits.softmax(dim=1), probabilities),
            (output.saliency[:, 0].sigmoid(), heat_map),
        ):
            largest = max(largest, float(np.abs(ours.numpy() - theirs).max()))
    return largest


def pictures_in(folder: Path, count: int) -> list[np.ndarray]:
    """
    Up to `count` of the pictures below a folder, evenly over their sorted names, each `(H, W, 3)` uint8, upright.

    Raises:
        InputError: there is none, or one cannot be read.
    """
    found = pictures_below(folder)
    if not found:
        raise InputError(f"{folder}: there are no pictures below it.")
    chosen = sorted({round(index) for index in np.linspace(0, len(found) - 1, count)})
    pictures = []
    for path in (found[index] for index in chosen):
        try:
            pictures.append(np.array(load_picture(path)))
        except ValueError as error:
            raise InputError(f"{path} cannot be used: {error}") from error
    return pictures


def run(args: ExportArguments) -> Path:
    """
    Write, check and announce what is asked for; a file of other content that is already there stays.

    Raises:
        InputError: settings that do not fit, a file in the way, or a graph that does not do what PyTorch does.
    """
    require_extra()
    from kgl.int8 import quantise

    model, image_processor = load_classifier(args.model)
    model.eval()
    generator = np.random.default_rng(0)
    pictures = [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in _NOISE_SIZES]
    calibration = [] if args.int8 is None else pictures_in(Path(args.int8), _CALIBRATION_PICTURES)
    with _unfinished(args.path) as unfinished:
        write_onnx(model, image_processor, unfinished)
        difference = largest_difference(unfinished, model, image_processor, pictures + calibration[:8])
        if not difference <= TOLERANCE:
            raise InputError(f"The graph's answers differ from PyTorch's by {difference:.1e}; nothing is written.")
    print(
        f"{args.path}: differs from PyTorch by {difference:.1e} at most on {len(pictures + calibration[:8])} pictures"
    )
    if calibration:
        path = args.path.with_name(f"{args.path.stem}_int8.onnx")
        with _unfinished(path) as unfinished:
            loss = quantise(args.path, calibration, unfinished)
        print(
            f"{path}: probabilities differ from the float graph's by {loss.mean_difference:.4f} on average and "
            f"{loss.largest_difference:.4f} at most, {loss.changed_decisions:.1%} of the decisions, on the "
            f"{loss.pictures} calibration pictures"
        )
    return args.path


@contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """A name to write under; the file gets its own once it is whole, unless another content has it already."""
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.unfinished")
    try:
        yield unfinished
        if path.exists() and path.read_bytes() != unfinished.read_bytes():
            raise InputError(
                f"{path}: it exists already and holds another graph, of another model, kgl or Pillow (the metadata "
                "says); move it away or choose --output."
            )
        unfinished.replace(path)
    except OSError as error:
        raise InputError(f"{path}: it cannot be written. {error}") from error
    finally:
        unfinished.unlink(missing_ok=True)


@contextmanager
def _quiet() -> Iterator[None]:
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


def _forget_where_it_came_from(model: Any) -> None:
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


def main() -> None:
    """The command `kgl-export`: `kgl-export FOLDER [--flag value ...]`, or a recipe and flags."""
    arguments = sys.argv[1:]
    if arguments and not arguments[0].startswith("-") and Path(arguments[0]).suffix not in (".yaml", ".yml"):
        arguments = ["--model", *arguments]
    run_command("kgl-export", lambda: run(*parse_settings("kgl-export", (ExportArguments,), arguments)))


__all__ = [
    "FORMATS",
    "TOLERANCE",
    "ExportArguments",
    "largest_difference",
    "main",
    "metadata",
    "pictures_in",
    "require_extra",
    "run",
    "write_onnx",
]


if __name__ == "__main__":
    main()
