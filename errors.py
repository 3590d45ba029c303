"""Error for unusable input, which commands turn into one sentence and exit code 2, and helpers of settings."""

from __future__ import annotations

import os
from collections.abc import Sequence


class InputError(ValueError):
    """Input of the user that cannot be used; the message names it and how to correct it."""


class Terminated(KeyboardInterrupt):
    """The process was asked to end by SIGTERM."""


def check_choices(settings: object, allowed: dict[str, Sequence[str]]) -> None:
    """
    Check that settings have one of their allowed values.

    Args:
        settings: a dataclass instance.
        allowed: values by the name of the setting.

    Raises:
        InputError: a setting has another value.
    """
    for name, values in allowed.items():
        if vars(settings)[name] not in values:
            raise InputError(f"--{name} {vars(settings)[name]}: choose one of {', '.join(values)}.")


def format_count(number: int, noun: str) -> str:
    """Return a number and its noun: `1 image`, `2 images`."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def format_names(names: Sequence[str], most: int) -> str:
    """Return the first names, and how many more there are: `a, b and 3 more`."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")


def expand_home(settings: object, *names: str) -> None:
    """Replace `~` by the home directory in settings that hold a path, a list of paths, or None."""
    for name in names:
        value = vars(settings)[name]
        if isinstance(value, str):
            setattr(settings, name, os.path.expanduser(value))
        elif value is not None:
            setattr(settings, name, [os.path.expanduser(path) for path in value])


__all__ = ["InputError", "Terminated", "check_choices", "expand_home", "format_count", "format_names"]
