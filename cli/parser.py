"""Settings from a recipe and flags; errors as one sentence with exit code 2."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser
from transformers.utils import logging

from ..errors import InputError


def parse_settings(command: str, dataclasses: tuple[type, ...], arguments: list[str]) -> tuple[Any, ...]:
    """
    `[RECIPE.yaml] [--flag value ...]` to one object of each dataclass; flags win over the recipe.

    Raises:
        InputError: no such recipe or setting, or a value that a setting does not take.
    """
    parser = _Parser(dataclasses, prog=command, allow_abbrev=False)
    recipe, flags = [], list(arguments)
    if flags and not flags[0].startswith("-"):
        recipe = _as_flags(Path(flags.pop(0)))
    try:
        *settings, unknown = parser.parse_args_into_dataclasses(
            [*recipe, *flags], return_remaining_strings=True, look_for_args_file=False
        )
    except InputError:
        raise
    except (ImportError, TypeError, ValueError) as error:  # what transformers has to say about a setting's value
        raise InputError(" ".join(str(error).split())) from error
    if unknown:
        known = [f"--{setting.name}" for one in dataclasses for setting in fields(one)]
        alike = get_close_matches(unknown[0], known, n=1)
        hint = f"did you mean {alike[0]}?" if alike else "see --help."
        raise InputError(f"there is no setting {' '.join(unknown)}; {hint}")
    return tuple(settings)


class _Parser(HfArgumentParser):
    def error(self, message: str) -> NoReturn:
        """In one sentence: the usage of all settings is pages long."""
        raise InputError(message)


def run_command(command: str, job: Callable[[], object]) -> None:
    """Run `job`; an [`InputError`] becomes one sentence on standard error and exit code 2."""
    logging.disable_progress_bar()  # transformers', of weights read and written in a moment
    try:
        job()
    except InputError as error:
        print(f"{command}: error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    except KeyboardInterrupt as stopped:
        print(f"\n{command}: stopped. The same command goes on from what is finished.", file=sys.stderr)
        raise SystemExit(130) from stopped


def _as_flags(recipe: Path) -> list[str]:
    """A recipe's settings as they would be typed, so that they are checked as flags are."""
    try:
        settings = yaml.safe_load(recipe.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"{recipe}: there is no such recipe. {error}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{recipe}: it is no YAML. {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise InputError(f"{recipe}: a recipe is a list of `setting: value` lines.")
    flags = []
    for name, value in settings.items():
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        flags += [f"--{name}", *(json.dumps(one) if isinstance(one, (bool, dict)) else str(one) for one in values)]
    return flags


__all__ = ["parse_settings", "run_command"]
