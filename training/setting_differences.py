"""Sentences on settings that differ between a folder and a command."""

from __future__ import annotations

from typing import Any


_DECISIONS = frozenset({"threshold", "look_again_threshold"})  # of a classifier, which `kgl threshold` sets


def describe_differences(
    existing: dict[str, dict[str, Any]], settings: dict[str, dict[str, Any]], names: dict[str, list[str]]
) -> list[str]:
    """
    Return a sentence per setting that differs.

    Args:
        existing: stored settings by group.
        settings: those of this command by group.
        names: the settings to compare by group.
    """
    changed = {
        name: (existing[group].get(name), settings[group].get(name))
        for group, of_group in names.items()
        for name in of_group
        if existing[group].get(name) != settings[group].get(name)
    }
    differences = [_difference(name, *values) for name, values in changed.items()]
    if changed.keys() & _DECISIONS:
        differences.append("most likely kgl threshold was run in between")
    return differences


def _difference(name: str, there: Any, here: Any) -> str:
    if name in ("model", "run"):  # of which digests are stored
        return f"the {name} is another one"
    if name.endswith("images"):  # as above
        return f"the {name.replace('_', ' ')} have changed since"
    return "{} is {} there and {} here".format(name, *_describe_values(there, here))


def _describe_values(*values: Any) -> list[str]:
    """Return two unlike values in words, numbers with four digits where these tell them apart."""
    short = ["not set" if one is None else repr(_rounded(one)) for one in values]
    return short if short[0] != short[1] else [repr(one) for one in values]


def _rounded(value: Any) -> Any:
    return float(f"{value:.4g}") if isinstance(value, float) else value


__all__ = ["describe_differences"]
