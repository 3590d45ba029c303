"""`kgl push`: push a finished run to the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import InputError
from ..hub.arguments import PushArguments
from ..training.arguments import LicenseArguments
from .parser import CommandHelp, HelpGroup, parse_settings, run_command


HELP = CommandHelp(
    command="kgl push",
    usage="RUN OWNER/NAME [--SETTING VALUE ...]",
    description="Push the final classifier of a finished run, its model card, metrics, report and image grids in one "
    "commit. A new repository is private.",
    example="kgl push runs/images owner/scratches --model_license apache-2.0",
    groups=(HelpGroup("settings", PushArguments), HelpGroup("licences stated in the card", LicenseArguments)),
    positional_flags={"--run": "RUN", "--repo": "OWNER/NAME"},
)


def parse(argv: Sequence[str]) -> tuple[Any, ...]:
    """Parse the arguments into PushArguments and LicenseArguments."""
    return parse_settings(HELP, argv, _run_and_repository)


def _run_and_repository(arguments: list[str]) -> list[str]:
    if len(arguments) > 2:
        raise InputError(f"Give a run's folder and a repository, not {' '.join(arguments)}.")
    return [part for pair in zip(("--run", "--repo"), arguments, strict=False) for part in pair]


def run(args: PushArguments, licenses: LicenseArguments) -> None:
    """Push, and print the address."""
    from ..hub.push import push

    address = push(Path(args.run), args.repo, licenses, private=not args.public)
    print(f"Pushed in one commit: {address}")


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    run_command(HELP.command, lambda: run(*parse(argv)))
