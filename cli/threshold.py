"""`kgl threshold`: choose another operating point of a finished run, without training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import InputError, expand_home
from ..training.arguments import LOOK_AGAIN_HELP, TWO_RULES, OperatingArguments
from .parser import CommandHelp, HelpGroup, parse_settings, run_command


@dataclass
class ThresholdArguments:
    """The run whose operating point is chosen anew, and how."""

    run: str = field(metadata={"help": "Output folder of a finished run."})
    wanted_recall: float | None = field(
        default=None,
        metadata={"help": "Take the highest threshold that finds this share of the validation defects (default: 1)."},
    )
    miss_cost: float | None = field(
        default=None,
        metadata={"help": "Take the threshold of least cost instead; a missed defect costs this many false alarms."},
    )
    look_again_recall: float | None = field(default=None, metadata={"help": LOOK_AGAIN_HELP})

    def __post_init__(self) -> None:
        expand_home(self, "run")
        if self.miss_cost is not None and self.wanted_recall is not None:
            raise InputError(TWO_RULES)
        self.rule()

    def rule(self) -> OperatingArguments:
        """
        Return how the thresholds are chosen.

        Raises:
            InputError: a value out of range.
        """
        wanted_recall = 1.0 if self.wanted_recall is None else self.wanted_recall
        return OperatingArguments(wanted_recall, self.miss_cost, self.look_again_recall)


HELP = CommandHelp(
    command="kgl threshold",
    usage="RUN [--wanted_recall SHARE | --miss_cost COST] [--look_again_recall SHARE]",
    description="Choose another decision threshold of a finished run from the scores of its validation images. "
    "Nothing is trained and no image is read. Config, metrics, predictions, report, card and the ONNX files in the "
    "run's folder get the new threshold.",
    example="kgl threshold runs/images --wanted_recall 0.95 --look_again_recall 0.99",
    groups=(HelpGroup("settings", ThresholdArguments),),
    positional_flags={"--run": "RUN"},
)


def parse(argv: Sequence[str]) -> tuple[Any, ...]:
    """Parse the arguments into ThresholdArguments."""
    return parse_settings(HELP, argv, _run_to_flags)


def _run_to_flags(arguments: list[str]) -> list[str]:
    if len(arguments) > 1:
        raise InputError(f"Give one run's folder, not {' and '.join(arguments)}.")
    return ["--run", *arguments]


def run(args: ThresholdArguments) -> None:
    """Choose the thresholds, write every file that has them, and print them before and after."""
    from ..data.storage import full_disk_as_input_error, lock, write_bytes, write_json
    from ..evaluation.operating_points import choose_operating_points, comparison_rows, write_operating_points
    from ..evaluation.run_outputs import print_limits
    from ..evaluation.validation_scores import read_validation_scores
    from ..exporters.threshold import update_graphs
    from ..hub.model_card import write_card
    from ..labelling.runs import read_run

    folder = Path(args.run)
    read_run(folder)  # no lock in a folder that is no run's, or one of another version
    held = lock(folder, "--run")
    try:
        points = choose_operating_points(folder, args.rule())
        graphs, others = update_graphs(folder, points.configs)
        with full_disk_as_input_error(folder):
            write_operating_points(points)
            for path, content in graphs.items():
                write_bytes(path, content)
            write_card(folder, points.after)
            write_json(folder / "metrics.json", points.after)
    finally:
        held.release()
    print(format_table(comparison_rows(points)))
    final = points.configs["final"]
    print_limits(final.operating_point, folder, read_validation_scores(folder, final.defect_free_label))
    for path in graphs:
        print(f"{path} has the new threshold.")
    for path in others:
        print(f"{path} is no export of this run as it is and was left alone; export it again.")
    print("Files exported elsewhere, and models pushed before, keep their threshold: export or push them again.")


def format_table(rows: Sequence[tuple[str, str, str]]) -> str:
    """Return rows of what, before and after as a Markdown table."""
    cells = [("final classifier", "before", "after"), *rows]
    first, second, third = (max(len(row[index]) for row in cells) for index in range(3))
    lines = [f"| {name:{first}} | {before:>{second}} | {after:>{third}} |" for name, before, after in cells]
    return "\n".join([lines[0], f"| {'-' * first} | {'-' * (second - 1)}: | {'-' * (third - 1)}: |", *lines[1:]])


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    run_command(HELP.command, lambda: run(*parse(argv)))
