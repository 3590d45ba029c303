"""`kgl export`: write an ONNX graph, optionally an 8-bit one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError, format_count
from ..exporters.arguments import ExportArguments
from ..training.arguments import check_path_or_repo
from .parser import CommandHelp, HelpGroup, parse_settings, run_command


HELP = CommandHelp(
    command="kgl export",
    usage="CLASSIFIER [--SETTING VALUE ...]",
    description="Write a classifier as one ONNX graph from image to decision, compared with PyTorch before it is "
    "named. Needs the extra [export].",
    example="kgl export runs/images/final --int8 images",
    groups=(HelpGroup("settings", ExportArguments),),
    positional_flags={"--model": "CLASSIFIER"},
)


def parse(argv: Sequence[str]) -> tuple[Any, ...]:
    """Parse the arguments into ExportArguments."""
    return parse_settings(HELP, argv, _classifier_to_flags)


def _classifier_to_flags(arguments: list[str]) -> list[str]:
    if len(arguments) > 1:
        raise InputError(f"Give one classifier, not {' and '.join(arguments)}.")
    return ["--model", *arguments]


def run(args: ExportArguments) -> None:
    """Write the graphs and print their differences."""
    args.check_paths()
    check_path_or_repo("--model", args.model)
    from ..data.images import set_max_megapixels
    from ..exporters.export import export_onnx

    set_max_megapixels(args.max_image_megapixels)
    result = export_onnx(args.model, args.path, None if args.int8 is None else Path(args.int8))
    print(
        f"{result.path}: differs from PyTorch by {result.max_difference:.1e} at most "
        f"on {format_count(result.compared_images, 'image')}"
    )
    if result.int8_loss is not None:
        loss = result.int8_loss
        print(
            f"{result.int8_path}: probabilities differ from the float graph's by {loss.mean_difference:.4f} on "
            f"average and {loss.max_difference:.4f} at most, {loss.changed_decisions:.1%} of the decisions, on "
            f"{format_count(loss.images, 'calibration image')}"
        )


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    run_command(HELP.command, lambda: run(*parse(argv)))
