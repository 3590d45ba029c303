"""The curve of results over labels: its sentences, its chart, and its section of a run's report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ..data.storage import write_json, write_text
from ..errors import format_count
from .charts import Chart, svg_chart
from .metrics import METRIC_TITLES
from .page import render_template


CURVE_FILE = "curve.json"
_OPENING, _CLOSING = "<!-- curve -->", "<!-- /curve -->"
_AHEAD = 4  # the law is drawn up to this many times the largest budget
_COLOUR = "#c2410c"


def curve_sentences(curve: dict[str, Any]) -> list[str]:
    """Return what a curve says, in words: AP reached, what twice as many labels bring, and where it flattens."""
    ap, labels = curve["metrics"]["ap"], curve["per_class"]
    mean, (low, high) = ap["mean"][-1], ap["interval"][-1]
    said = [f"With {_labels(labels[-1], curve)}: AP {mean:.2f} ({low:.2f} .. {high:.2f})."]
    if curve.get("left_out") is not None:  # curves of earlier versions do not say
        said.append(f"Measured with heads on frozen features, without the run's {curve['left_out']}.")
    if ap["law"] is None:
        return [*said, "Three budgets of labels are needed for a forecast: add images."]
    forecast = ap["forecast"]
    low, high = forecast["interval"]
    said.append(
        f"From {forecast['from']} to {forecast['to']} images per class expect {_gain(forecast['gain'])} "
        f"({_gain(low)} .. {_gain(high)}) AP."
    )
    flat, interval = ap["flat_from"], _flat_interval(ap)
    if flat is None:
        said.append(f"Not yet flat{interval}: AP still rises by .01 or more each time the labels double.")
    else:
        law = "Flat" if flat <= labels[-1] else "By the power law, flat"
        said.append(f"{law} from {flat} images per class{interval}: twice as many bring less than .01 AP.")
    scarce = curve["scarcest_class"]
    said.append(
        f"The next step, {2 * labels[-1]} labels, could not be tried: {scarce} has too few images outside a fold."
    )
    return said


def _flat_interval(ap: dict[str, Any]) -> str:
    """Return the interval of `flat_from` in brackets; nothing of curves of earlier versions, which have none."""
    if "flat_from_interval" not in ap:
        return ""
    low, high = ap["flat_from_interval"]
    if low is None:
        if ap["flat_from"] is None:
            return " (95 % interval: not flat either)"
        return " by the mean alone (95 % interval: not yet flat)"
    return f" (95 % interval: from {low} on, with no upper end)" if high is None else f" ({low} .. {high})"


def _labels(per_class: int, curve: dict[str, Any]) -> str:
    good = curve["good"][-1]
    defects = f"{format_count(per_class, 'image')} per class"
    return f"{defects} with a defect and {good} good ones" if good else defects


def _gain(value: float) -> str:
    return f"{value:+.2f}".replace("+0.", "+.").replace("-0.", "-.")


def draw_curve(curve: dict[str, Any], path: Path) -> None:
    """Write the curve as a PNG."""
    _figure(curve).savefig(path, dpi=110)


def curve_chart(curve: dict[str, Any]) -> Chart:
    """Return the curve as an SVG inside the page."""
    return svg_chart(
        _figure(curve),
        "Results over labels per class. Bars: 95 % intervals of the mean. Dotted: power law.",
        "AP, recall and false alarms over the number of labels per class",
    )


def _figure(curve: dict[str, Any]) -> Figure:
    """Draw a panel per metric: mean, interval, each repetition in grey, and the power law."""
    metrics = curve["metrics"]
    figure = Figure(figsize=(3.6 * len(metrics) + 0.6, 3.2), layout="constrained")
    for axes, (name, metric) in zip(figure.subplots(1, len(metrics), squeeze=False)[0], metrics.items(), strict=True):
        _draw_metric(axes, np.asarray(curve["per_class"]), metric, name)
    return figure


def _draw_metric(axes: Axes, labels: np.ndarray, metric: dict[str, Any], name: str) -> None:
    mean, (low, high) = np.asarray(metric["mean"]), np.asarray(metric["interval"]).T
    axes.plot(labels, np.asarray(metric["values"]).T, color="0.85", linewidth=0.8)
    axes.errorbar(labels, mean, np.maximum([mean - low, high - mean], 0), fmt="o-", color=_COLOUR, capsize=3)
    ticks = labels
    if metric["law"] is not None:
        sizes = np.geomspace(labels[0], _AHEAD * labels[-1], 50)
        law = metric["law"]["a"] - metric["law"]["b"] * sizes ** -metric["law"]["c"]
        is_rate_of_errors = name.startswith("false_alarm")
        axes.plot(sizes, 1 - law if is_rate_of_errors else law, ":", color="black")
        ticks = np.asarray([*labels, *(labels[-1] * 2**step for step in range(1, _AHEAD // 2 + 1))])
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.set(ylim=(0, 1.02), xlabel="labelled images per class")
    axes.set_title(METRIC_TITLES[name], fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def curve_section(folder: Path) -> str:
    """Return the section of a run's report, between its markers; the markers alone where no curve was made yet."""
    path = folder / CURVE_FILE
    if not path.exists():
        return f"{_OPENING}{_CLOSING}"
    curve = json.loads(path.read_text(encoding="utf-8"))
    rows = [
        [str(curve["per_class"][index]), str(curve["good"][index])]
        + [f"{one['mean'][index]:.3f} ({one['interval'][index][0]:.3f} … {one['interval'][index][1]:.3f})"
           for one in curve["metrics"].values()]
        for index in range(len(curve["per_class"]))
    ]  # fmt: skip
    html = render_template(
        "kgl.evaluation",
        "curve.html.jinja",
        sentences=curve_sentences(curve),
        chart=curve_chart(curve),
        titles=[METRIC_TITLES[name] for name in curve["metrics"]],
        rows=rows,
        curve=curve,
    )
    return f"{_OPENING}{html}{_CLOSING}"


def add_to_report(curve: dict[str, Any], folder: Path) -> None:
    """Keep the curve in a run's folder, and write its section into the report, in place of an earlier one."""
    write_json(folder / CURVE_FILE, curve)
    report = folder / "report.html"
    page = report.read_text(encoding="utf-8") if report.exists() else ""
    before, found, rest = page.partition(_OPENING)
    _, closed, after = rest.partition(_CLOSING)
    if found and closed:  # a report that an earlier version wrote has no place for it
        write_text(report, f"{before}{curve_section(folder)}{after}")


__all__ = ["CURVE_FILE", "add_to_report", "curve_chart", "curve_section", "curve_sentences", "draw_curve"]
