"""`kgl prior`: make the priors of a training set with a saved classifier."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..data.arguments import DataArguments
from ..knowledge.arguments import PriorArguments, PriorPassArguments
from ..training.arguments import check_path_or_repo
from .parser import DATA_SOURCES, CommandHelp, HelpGroup, images_to_flags, parse_settings, run_command


HELP = CommandHelp(
    command="kgl prior",
    usage="IMAGES --model CLASSIFIER --output_dir FOLDER [--SETTING VALUE ...]",
    description="Make the saliency priors of a dataset's training split with a saved classifier, as a table for "
    "datasets.load_from_disk. Several processes share the work; the same command resumes.",
    example="kgl prior images --model runs/images/primary --output_dir priors",
    positional=("IMAGES", "a folder of images or a table, as for kgl train"),
    groups=(
        HelpGroup("priors", PriorPassArguments),
        HelpGroup("saliency", PriorArguments),
        HelpGroup("data", DataArguments),
    ),
)


def parse(argv: Sequence[str]) -> tuple[Any, ...]:
    """Parse the arguments into PriorPassArguments, PriorArguments and DataArguments."""
    return parse_settings(HELP, argv, images_to_flags, DATA_SOURCES)


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    if "--help" in argv or "-h" in argv:
        print(HELP.format(), end="")
        return

    def job() -> None:
        settings = parse(argv)
        check_path_or_repo("--model", settings[0].model)
        from ..prior import run

        run(*settings)

    run_command(HELP.command, job)
