"""Markdown of the evidence tables: numbers with intervals, tables, blocks between markers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from kgl.benchmarks.evidence.records import confidence_interval


MIN_BOLD = 0.0005  # a difference that is printed as zero is never bold


def format_mean(values: pd.Series | np.ndarray) -> str:
    """Format the mean, with its interval from three values on."""
    return _format(values, confidence_interval(values), "")


def format_difference(values: pd.Series | np.ndarray, seeds: int = 0) -> str:
    """Format the mean of paired differences: bold where the interval excludes 0; with their count if below `seeds`."""
    interval = confidence_interval(values)
    text = _format(values, interval, "+")
    if interval is not None and (interval[0] > 0 or interval[1] < 0) and abs(values.mean()) >= MIN_BOLD:
        text = f"**{text}**"
    return f"{text}, {len(values)} seeds" if len(values) < seeds else text


def _format(values: pd.Series | np.ndarray, interval: tuple[float, float] | None, sign: str) -> str:
    mean = f"{values.mean():{sign}.3f}"
    return mean if interval is None else f"{mean} ({interval[0]:{sign}.3f} .. {interval[1]:{sign}.3f})"


def markdown_table(rows: list[dict[str, str]], text_columns: int = 1) -> str:
    """Return a Markdown table; columns after the first `text_columns` are aligned to the right."""
    frame = pd.DataFrame(rows)
    if frame.empty:
        return "No runs."
    rules = ["---" if index < text_columns else "---:" for index in range(len(frame.columns))]
    lines = [list(frame.columns), rules, *frame.fillna("").astype(str).to_numpy().tolist()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def replace_block(text: str, name: str, block: str) -> str:
    """
    Replace the lines between `<!-- name -->` and `<!-- /name -->`.

    Raises:
        ValueError: the text has no such markers.
    """
    opening, closing = f"<!-- {name} -->\n", f"<!-- /{name} -->"
    before, found, rest = text.partition(opening)
    _, closed, after = rest.partition(closing)
    if not found or not closed:
        raise ValueError(f"there are no markers {opening.strip()} and {closing}.")
    return f"{before}{opening}\n{block}\n\n{closing}{after}"


def write_block(page: Path, name: str, block: str) -> None:
    """
    Replace the lines between `<!-- name -->` and `<!-- /name -->` of a page.

    Raises:
        ValueError: the page has no such markers.
    """
    page.write_text(replace_block(page.read_text(encoding="utf-8"), name, block), encoding="utf-8")
