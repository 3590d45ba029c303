"""Charts of the report, as SVG images inside the page."""

from __future__ import annotations

import io
import warnings
from dataclasses import dataclass

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import PrecisionRecallDisplay, RocCurveDisplay

from .fonts import font_families
from .page import data_uri


_COLOURS = {"primary": "#7a7a7a", "final": "#c2410c"}
_GOOD_COLOUR = "#3b82a0"
_LOSS_LINES = (  # label, phase, key of the log, colour and style
    ("primary: loss", "primary", "loss", _COLOURS["primary"], "-"),
    ("fine-tuned stage: loss", "tuned", "loss", _COLOURS["final"], "-"),
    ("final: classification loss", "final", "loss_cls", _COLOURS["final"], "-"),
    ("final: guidance loss", "final", "loss_kg", _COLOURS["final"], ":"),
    ("weight λ of the guidance loss", "final", "kg_lambda", _GOOD_COLOUR, "--"),
)


@dataclass(frozen=True)
class Chart:
    """A chart: its title, its text for readers who cannot see it, and its image as a data URI."""

    title: str
    alt: str
    src: str


def precision_recall_chart(scores: dict[str, np.ndarray], defective: np.ndarray, threshold: float) -> Chart:
    """
    Draw precision against recall of the defects.

    Args:
        scores: `primary` and `final` `P(defect)`, `(N,)`.
        defective: `(N,)` bool, with both values.
        threshold: of the final classifier.
    """
    figure, axes = _new_figure()
    axes.set_prop_cycle(color=[_COLOURS[model] for model in scores])
    for model, of_model in scores.items():
        PrecisionRecallDisplay.from_predictions(defective, of_model, name=model, ax=axes)
    called = scores["final"] >= threshold
    if called.any():
        axes.plot(called[defective].mean(), defective[called].mean(), "o", color="black", label="threshold")
    axes.set(xlabel="recall (share of the defects found)", ylabel="precision", aspect="auto")
    axes.set(xlim=(0, 1.02), ylim=(0, 1.02))
    _add_legend(axes, "lower left")
    return svg_chart(figure, "Precision and recall of defects", "Precision-recall curves of both classifiers")


def roc_chart(scores: dict[str, np.ndarray], defective: np.ndarray, threshold: float) -> Chart:
    """Draw the share of defects found against the share of false alarms; see [`precision_recall_chart`]."""
    figure, axes = _new_figure()
    axes.set_prop_cycle(color=[_COLOURS[model] for model in scores])
    for model, of_model in scores.items():
        RocCurveDisplay.from_predictions(defective, of_model, name=model, ax=axes)
    called = scores["final"] >= threshold
    axes.plot(called[~defective].mean(), called[defective].mean(), "o", color="black", label="threshold")
    axes.set(xlabel="false alarms (share of the good images)", ylabel="defects found", aspect="auto")
    axes.set(xlim=(-0.02, 1), ylim=(0, 1.02))
    _add_legend(axes, "lower right")
    return svg_chart(figure, "Defects found and false alarms", "ROC curves of both classifiers")


def class_precision_recall_chart(probabilities: np.ndarray, labels: np.ndarray, names: list[str]) -> Chart:
    """
    Draw precision against recall of each class against the rest; classes without images are left out.

    Names of classes stay text in the SVG, in any script: the reader's fonts draw them, like the text of the page.

    Args:
        probabilities: of the final classifier, `(N, K)`.
        labels: `(N,)`.
        names: of the K classes.
    """
    with rc_context({"font.family": font_families(names), "svg.fonttype": "none"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # they are only measured here
        figure, axes = _new_figure()
        for index, name in enumerate(names):
            if (labels == index).any():
                PrecisionRecallDisplay.from_predictions(labels == index, probabilities[:, index], name=name, ax=axes)
        axes.set(xlabel="recall", ylabel="precision", aspect="auto", xlim=(0, 1.02), ylim=(0, 1.02))
        _add_legend(axes, "lower left")
        return svg_chart(figure, "Precision and recall per class, final", "Precision-recall curves of each class")


def score_histogram(
    scores: np.ndarray, defective: np.ndarray, threshold: float, look_again: float | None = None
) -> Chart:
    """
    Draw how many good and defective images have which score.

    Args:
        scores: `P(defect)` of the final classifier, `(N,)`.
        defective: `(N,)` bool.
        threshold: in 0..1.
        look_again: the lower threshold of the look-again band.
    """
    figure, axes = _new_figure()
    bins = np.linspace(0, 1, 26)
    axes.hist(scores[~defective], bins, alpha=0.7, color=_GOOD_COLOUR, label="good")
    axes.hist(scores[defective], bins, alpha=0.7, color=_COLOURS["final"], label="defective")
    axes.axvline(threshold, color="black", linestyle="--", label="threshold")
    if look_again is not None:
        axes.axvline(look_again, color="black", linestyle=":", label="look again from")
    axes.set(xlabel="P(defect), final", ylabel="number of images")
    _add_legend(axes, "best")
    return svg_chart(figure, "Scores of the test images", "Histogram of P(defect) of good and defective images")


def property_histogram(title: str, training: np.ndarray, test: np.ndarray, limits: list[float]) -> Chart:
    """
    Draw how a property of training and of test images is distributed, with the training range.

    Args:
        title: of the property.
        training: its values, `(N,)`.
        test: its values, `(M,)`.
        limits: low and high.
    """
    figure, axes = _new_figure()
    bins = np.histogram_bin_edges(np.concatenate([training, test]), 25)
    for values, colour, label in ((training, _GOOD_COLOUR, "training"), (test, _COLOURS["final"], "test")):
        shares = np.full(len(values), 100 / len(values))
        axes.hist(values, bins, weights=shares, alpha=0.6, color=colour, label=f"{label} images")
    low, high = limits
    axes.axvline(high, color="black", linestyle="--", label="training range")
    if low > 0:
        axes.axvline(low, color="black", linestyle="--")
    axes.set(xlabel=title, ylabel="% of the images")
    _add_legend(axes, "best")
    return svg_chart(figure, title, f"Histogram of training and test images: {title}")


def loss_chart(logs: dict[str, list[dict[str, float]]]) -> Chart:
    """Draw the loss terms over the training steps, given the Trainer's log history of each phase."""
    figure, axes = _new_figure()
    for label, phase, key, colour, style in _LOSS_LINES:
        points = [(entry["step"], entry[key]) for entry in logs.get(phase, []) if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), style, color=colour, label=label)
    axes.set(xlabel="training step", ylim=(0, None))
    _add_legend(axes, "best")
    return svg_chart(figure, "Training loss", "Loss terms over the training steps")


def _new_figure() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(4.6, 3.1), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _add_legend(axes: Axes, place: str) -> None:
    legend = axes.legend(fontsize=8, loc=place)
    for text in legend.get_texts():  # names of classes are data: `$` starts no formula
        text.set_parse_math(False)


def svg_chart(figure: Figure, title: str, alt: str) -> Chart:
    """Return a figure as an SVG inside the page."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    return Chart(title, alt, data_uri("svg+xml", buffer.getvalue()))


__all__ = [
    "Chart",
    "class_precision_recall_chart",
    "loss_chart",
    "precision_recall_chart",
    "property_histogram",
    "roc_chart",
    "score_histogram",
    "svg_chart",
]
