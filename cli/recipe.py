"""Recipes: YAML files of settings, read as flags."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..errors import InputError


def without_config(argv: list[str]) -> tuple[list[str], list[str]]:
    """Return the arguments without `--config RECIPE.yaml`, and the recipes."""
    recipes, rest = [], []
    arguments = iter(argv)
    for argument in arguments:
        if argument == "--config":
            recipes.append(next(arguments, ""))
        elif argument.startswith("--config="):
            recipes.append(argument.removeprefix("--config="))
        else:
            rest.append(argument)
    if any(not recipe or recipe.startswith("-") for recipe in recipes):
        raise InputError("--config: name a recipe, a .yaml file.")
    return rest, recipes


def read_recipe(recipe: Path) -> dict[str, Any]:
    """
    Return the settings of a recipe, text as it is written.

    Raises:
        InputError: it cannot be read, or is no YAML of `setting: value` lines.
    """
    import yaml

    try:
        text = recipe.read_text(encoding="utf-8")
        settings, as_written = (yaml.load(text, Loader=loader) for loader in (yaml.SafeLoader, yaml.BaseLoader))
    except OSError as error:
        raise InputError(f"{recipe}: the recipe cannot be read. {error}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{recipe}: the recipe is not valid YAML. {' '.join(str(error).split())}") from error
    if not isinstance(settings, dict):
        raise InputError(f"{recipe}: a recipe consists of `setting: value` lines.")
    # Text stays as it is written: YAML would make numbers and booleans of classes such as 00 and no.
    names = zip(settings, as_written, strict=True)
    return {
        written: settings[name] if settings[name] is None or isinstance(settings[name], dict) else as_written[written]
        for name, written in names
    }


def recipe_to_flags(settings: dict[str, Any]) -> list[str]:
    """Return a recipe's settings as flags, so that they are checked like flags."""
    flags = []
    for name, value in settings.items():
        if value is None:
            continue
        values = value if isinstance(value, list) else [value]
        flags += [f"--{name}", *(json.dumps(one) if isinstance(one, (bool, dict)) else str(one) for one in values)]
    return flags


__all__ = ["read_recipe", "recipe_to_flags", "without_config"]
