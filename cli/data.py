"""`kgl data`: print a dataset summary."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from ..data.arguments import DataArguments
from ..data.storage import write_json
from ..data.summary import format_summary, summarize_dataset
from ..data.validation import UNUSABLE
from ..errors import InputError
from .parser import parse_settings, run_command


@dataclass
class SummaryArguments:
    """How much of it is told."""

    listed: int = field(default=10, metadata={"help": "Findings of each kind to print; the rest is counted."})
    output: str | None = field(
        default=None, metadata={"help": "A .json file for all findings; it must not exist yet."}
    )

    def __post_init__(self) -> None:
        if self.output is not None and Path(self.output).exists():
            raise InputError(f"--output {self.output}: it exists already; choose another name.")


def run(args: SummaryArguments, data_args: DataArguments) -> int:
    """Print the summary; what keeps kgl-train from starting: images that cannot be used, no split."""
    summary = summarize_dataset(data_args)
    print(format_summary(summary, args.listed))
    if args.output is not None:
        write_json(Path(args.output), summary)
    unusable = sum(issue["kind"] == UNUSABLE for issue in summary["issues"])
    return (unusable if data_args.on_bad_image == "error" else 0) + ("split_error" in summary)


def main() -> None:
    """The command `kgl-data`: `kgl-data FOLDER` or flags; exit code 1 where kgl-train could not start."""
    arguments = sys.argv[1:]
    if arguments and not arguments[0].startswith("-") and not Path(arguments[0]).is_file():  # no recipe
        arguments = ["--data_dir", *arguments]

    def job() -> None:
        if run(*parse_settings("kgl-data", (SummaryArguments, DataArguments), arguments)):
            raise SystemExit(1)

    run_command("kgl-data", job)


__all__ = ["SummaryArguments", "main", "run"]
