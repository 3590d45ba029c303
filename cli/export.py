"""`kgl export`: write an ONNX graph, optionally an 8-bit one."""

from __future__ import annotations

import sys
from pathlib import Path

from ..exporters.arguments import ExportArguments
from ..exporters.export import export_onnx
from .parser import parse_settings, run_command


def run(args: ExportArguments) -> None:
    """Write the graphs and print their differences."""
    result = export_onnx(args.model, args.path, None if args.int8 is None else Path(args.int8))
    print(
        f"{result.path}: differs from PyTorch by {result.max_difference:.1e} at most "
        f"on {result.compared_images} images"
    )
    if result.int8_loss is not None:
        loss = result.int8_loss
        print(
            f"{result.int8_path}: probabilities differ from the float graph's by {loss.mean_difference:.4f} on "
            f"average and {loss.max_difference:.4f} at most, {loss.changed_decisions:.1%} of the decisions, on the "
            f"{loss.images} calibration images"
        )


def main() -> None:
    """The command `kgl-export`: `kgl-export FOLDER [--flag value ...]`, or a recipe and flags."""
    arguments = sys.argv[1:]
    if arguments and not arguments[0].startswith("-") and Path(arguments[0]).suffix not in (".yaml", ".yml"):
        arguments = ["--model", *arguments]
    run_command("kgl-export", lambda: run(*parse_settings("kgl-export", (ExportArguments,), arguments)))


__all__ = ["main", "run"]
