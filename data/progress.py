"""Progress bars of kgl: on a terminal only, gone when finished, and switched off in one place."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tqdm.auto import tqdm


_state = {"disabled": False}


def disable_progress_bars() -> None:
    """Draw no bars from now on, as `--disable_tqdm true` asks."""
    _state["disabled"] = True


def progress_bar(
    iterable: Iterable[Any] | None = None, title: str = "", disable: bool = False, **options: Any
) -> tqdm:
    """
    Return a bar over an iterable, or one that is advanced by hand.

    Args:
        iterable: what to iterate over.
        title: stands before the bar.
        disable: draw none, for example in all processes but one.
        options: of tqdm, such as `total` and `unit`.
    """
    hidden = True if disable or _state["disabled"] else None  # None: only where standard error is a terminal
    return tqdm(iterable, title, leave=False, disable=hidden, **options)


__all__ = ["disable_progress_bars", "progress_bar"]
