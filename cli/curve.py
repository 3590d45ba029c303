"""`kgl curve`: how many labels are needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ..data.arguments import DataArguments
from ..errors import InputError
from .labelled import POSITIONAL, SOURCES, LabelledArguments, output_of, read, run_or_images_to_flags
from .parser import CommandHelp, HelpGroup, parse_settings, run_command


MIN_REPETITIONS = 2  # an interval needs them


@dataclass
class CurveArguments:
    """Settings of the curve."""

    repetitions: int = field(
        default=12, metadata={"help": "Splits into training and test images that every budget is tried on."}
    )

    def __post_init__(self) -> None:
        if self.repetitions < MIN_REPETITIONS:
            raise InputError(f"--repetitions {self.repetitions}: it must be at least {MIN_REPETITIONS}.")


HELP = CommandHelp(
    command="kgl curve",
    usage="RUN|IMAGES [--SETTING VALUE ...]",
    description="Fit heads to 2, 4, 8, ... labels per class on repeated splits, draw the results over the labels, and "
    "say what twice as many would bring. Given a run, the curve is added to its report.",
    example="kgl curve runs/images",
    positional=POSITIONAL,
    groups=(
        HelpGroup("curve", CurveArguments),
        HelpGroup("images and output", LabelledArguments),
        HelpGroup("data", DataArguments),
    ),
)


def parse(argv: Sequence[str]) -> tuple[Any, ...]:
    """Parse the arguments into CurveArguments, LabelledArguments and DataArguments."""
    return parse_settings(HELP, argv, run_or_images_to_flags, SOURCES)


def run(args: CurveArguments, labelled_args: LabelledArguments, data_args: DataArguments) -> None:
    """Make the curve, or print that of a finished output folder."""
    labelled = read(labelled_args, data_args)
    from ..evaluation.curve_report import curve_sentences
    from ..labelling.curve import curve_settings, run_curve
    from ..labelling.output import claimed_output

    output = output_of(labelled_args, labelled, "curve")
    with claimed_output(output, "curve", curve_settings(labelled, args.repetitions, labelled_args.heads)):
        curve = run_curve(labelled, output, args.repetitions, labelled_args.heads)
    print("\n".join(curve_sentences(curve)))
    report = "" if labelled.run is None else f" It is in {labelled.run.folder / 'report.html'} too."
    print(f"Curve: {output / 'curve.png'}, with curve.csv and curve.json beside it.{report}")


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    run_command(HELP.command, lambda: run(*parse(argv)))
