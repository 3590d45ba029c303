"""The one error that commands turn into a sentence and exit code 2, and the check that raises it most."""

from __future__ import annotations

from collections.abc import Sequence


class InputError(ValueError):
    """What the user gave cannot be used; the message names it and says what to do."""


def check_choices(settings: object, choices: dict[str, Sequence[str]]) -> None:
    """
    Raises:
        InputError: a setting has a value that is none of its choices.
    """
    for name, there in choices.items():
        if vars(settings)[name] not in there:
            raise InputError(f"--{name} {vars(settings)[name]}: choose one of {', '.join(there)}.")


__all__ = ["InputError", "check_choices"]
