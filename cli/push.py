"""`kgl push`: push a finished run to the Hub."""

from __future__ import annotations

import sys
from pathlib import Path

from ..hub.arguments import PushArguments
from ..hub.push import push
from ..training.arguments import LicenseArguments
from .parser import parse_settings, run_command


def run_push(args: PushArguments, licenses: LicenseArguments) -> None:
    """Push the run and print the URL of the commit."""
    url = push(Path(args.run), args.repo, licenses, private=not args.public)
    print(f"Pushed in one commit: {url}")


def main() -> None:
    """Run the command `kgl-push DIR REPO`, short for `--run DIR --repo REPO`."""
    arguments = sys.argv[1:]
    if len(arguments) >= 2 and not any(one.startswith("-") for one in arguments[:2]):
        arguments = ["--run", arguments[0], "--repo", *arguments[1:]]
    run_command(
        "kgl-push", lambda: run_push(*parse_settings("kgl-push", (PushArguments, LicenseArguments), arguments))
    )


__all__ = ["main"]


if __name__ == "__main__":
    main()
