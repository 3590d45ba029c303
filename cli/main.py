"""The command `kgl`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from importlib import import_module
from importlib.metadata import version
from typing import Any


COMMANDS = {
    "train": "train a classifier on a folder of images",
    "data": "print a dataset summary and issues of the data",
    "predict": "predict image files and folders",
    "threshold": "choose another decision threshold of a finished run, without training",
    "curve": "how many labels are needed",
    "next": "which images to label next",
    "audit": "labels that look wrong",
    "saliency": "compare saliency methods on the same images",
    "prior": "make the priors of a training set with a saved classifier",
    "export": "export a classifier to ONNX",
    "push": "push a finished run to the Hugging Face Hub",
}
_USAGE = (
    "usage: kgl COMMAND ...\n\nSurface-defect classifiers that learn from few labels and show where they looked.\n"
)


def format_help() -> str:
    """Return the help page of `kgl`."""
    width = max(map(len, COMMANDS))
    lines = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return (
        f"{_USAGE}\ncommands:\n{lines}\n\nkgl COMMAND --help shows a command's settings, kgl --version the version.\n"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run a subcommand; exit code 2 for input that cannot be used."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    if arguments[:1] == ["--version"]:
        print(f"kgl {version('kgl-defects')}")
        return
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(format_help(), end="")
        return
    name, *rest = arguments
    if name not in COMMANDS:
        similar = get_close_matches(name, COMMANDS, n=1)
        hint = f"did you mean kgl {similar[0]}?" if similar else f"choose one of {', '.join(COMMANDS)}."
        print(f"kgl: error: there is no command {name}; {hint}", file=sys.stderr)
        raise SystemExit(2)
    command = import_module(f".{name}", __package__)
    if any(one in ("-h", "--help") for one in rest):
        print(command.HELP.format(), end="")
        return
    try:
        command.main(rest)
        sys.stdout.flush()
    except BrokenPipeError:  # what reads the output, such as `head`, has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that closing it does not fail too
        raise SystemExit(1) from None


def check_arguments(arguments: Sequence[str]) -> tuple[Any, ...]:
    """
    Parse a subcommand's arguments, running nothing: `check_arguments(["train", "images", "--seed", "1"])`.

    Raises:
        InputError: an unknown setting, or a value that a setting does not take.
    """
    name, *rest = arguments
    return import_module(f".{name}", __package__).parse(rest)


__all__ = ["COMMANDS", "check_arguments", "format_help", "main"]


if __name__ == "__main__":
    main()
