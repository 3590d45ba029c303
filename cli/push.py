"""`kgl push`: push a finished run to the Hub."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

from ..hub.push import check_repo_id, push
from ..training.arguments import LicenseArguments
from .parser import parse_settings, run_command


@dataclass
class PushArguments:
    """What is pushed where."""

    run: str = field(
        metadata={"help": "A finished run's output folder; `kgl-push DIR REPO` is short for --run DIR --repo REPO."}
    )
    repo: str = field(metadata={"help": "The repository, OWNER/NAME; yours where no owner is named."})
    public: bool = field(default=False, metadata={"help": "Let everybody see it; a new repository is private else."})

    def __post_init__(self) -> None:
        check_repo_id(self.repo)


def run_push(args: PushArguments, licenses: LicenseArguments) -> None:
    """Push and say where to."""
    address = push(Path(args.run), args.repo, licenses, private=not args.public)
    print(f"Pushed in one commit: {address}")


def main() -> None:
    """The command `kgl-push DIR REPO`."""
    arguments = sys.argv[1:]
    if len(arguments) >= 2 and not any(one.startswith("-") for one in arguments[:2]):
        arguments = ["--run", arguments[0], "--repo", *arguments[1:]]
    run_command(
        "kgl-push", lambda: run_push(*parse_settings("kgl-push", (PushArguments, LicenseArguments), arguments))
    )


__all__ = ["PushArguments", "main"]


if __name__ == "__main__":
    main()
