"""Print docs/cli.md, the reference of the command line: `python -m kgl.cli.reference > docs/cli.md`."""

from __future__ import annotations

from importlib import import_module

from . import train
from .main import COMMANDS, format_help


_HEADER = """# Command line

Made by `python -m kgl.cli.reference > docs/cli.md`; a test compares it with the parsers.

`python train.py` and `python prior.py` take the arguments of `kgl train` and `kgl prior`, also under
`accelerate launch --quiet` or `torchrun`. `kgl train --help-all` shows the other settings of
`transformers.TrainingArguments` beside these.
Errors are one sentence on standard error with exit code 2.
"""


def format_reference() -> str:
    """Return the page."""
    parts = [_HEADER, f"## kgl\n\n```text\n{format_help()}```\n"]
    for name in COMMANDS:
        page = train.help_own() if name == "train" else import_module(f".{name}", __package__).HELP
        parts.append(f"## kgl {name}\n\n```text\n{page.format()}```\n")
    return "\n".join(parts)


if __name__ == "__main__":
    print(format_reference(), end="")
