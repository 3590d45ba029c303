"""`kgl export`: write an ONNX graph, optionally an 8-bit one."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..data.images import find_images, load_image_file
from ..errors import InputError, check_choices
from ..exporters.onnx import TOLERANCE, max_difference, require_extra, write_onnx
from ..training.model_init import load_classifier
from .parser import parse_settings, run_command


FORMATS = ("onnx",)
_CALIBRATION_IMAGES = 128
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
            "help": "Besides, a graph in 8 bits beside it (model_int8.onnx): a folder of images like those to come, "
            f"which set its ranges; {_CALIBRATION_IMAGES} of them are used."
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
            raise InputError(f"--int8 {self.int8}: there is no such folder of images.")

    @property
    def path(self) -> Path:
        """The file to write."""
        return Path(self.model) / "model.onnx" if self.output is None else Path(self.output)


def load_sample_images(folder: Path, count: int) -> list[np.ndarray]:
    """
    Up to `count` of the images below a folder, evenly over their sorted names, each `(H, W, 3)` uint8, upright.

    Raises:
        InputError: there is none, or one cannot be read.
    """
    found = find_images(folder)
    if not found:
        raise InputError(f"{folder}: there are no images below it.")
    chosen = sorted({round(index) for index in np.linspace(0, len(found) - 1, count)})
    images = []
    for path in (found[index] for index in chosen):
        try:
            images.append(np.array(load_image_file(path)))
        except ValueError as error:
            raise InputError(f"{path} cannot be used: {error}") from error
    return images


def run(args: ExportArguments) -> Path:
    """
    Write, check and announce what is asked for; a file of other content that is already there stays.

    Raises:
        InputError: settings that do not fit, a file in the way, or a graph that does not do what PyTorch does.
    """
    require_extra()
    from ..exporters.quantization import quantize

    model, image_processor = load_classifier(args.model)
    model.eval()
    generator = np.random.default_rng(0)
    images = [generator.integers(0, 256, (*size, 3), dtype=np.uint8) for size in _NOISE_SIZES]
    calibration = [] if args.int8 is None else load_sample_images(Path(args.int8), _CALIBRATION_IMAGES)
    with _atomic_file(args.path) as unfinished:
        write_onnx(model, image_processor, unfinished)
        difference = max_difference(unfinished, model, image_processor, images + calibration[:8])
        if not difference <= TOLERANCE:
            raise InputError(f"The graph's answers differ from PyTorch's by {difference:.1e}; nothing is written.")
    print(f"{args.path}: differs from PyTorch by {difference:.1e} at most on {len(images + calibration[:8])} images")
    if calibration:
        path = args.path.with_name(f"{args.path.stem}_int8.onnx")
        with _atomic_file(path) as unfinished:
            loss = quantize(args.path, calibration, unfinished)
        print(
            f"{path}: probabilities differ from the float graph's by {loss.mean_difference:.4f} on average and "
            f"{loss.max_difference:.4f} at most, {loss.changed_decisions:.1%} of the decisions, on the "
            f"{loss.images} calibration images"
        )
    return args.path


@contextmanager
def _atomic_file(path: Path) -> Iterator[Path]:
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


def main() -> None:
    """The command `kgl-export`: `kgl-export FOLDER [--flag value ...]`, or a recipe and flags."""
    arguments = sys.argv[1:]
    if arguments and not arguments[0].startswith("-") and Path(arguments[0]).suffix not in (".yaml", ".yml"):
        arguments = ["--model", *arguments]
    run_command("kgl-export", lambda: run(*parse_settings("kgl-export", (ExportArguments,), arguments)))


__all__ = ["FORMATS", "ExportArguments", "load_sample_images", "main", "run"]
