"""Self-contained HTML report of a run."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure
from PIL import Image as PILImage
from sklearn.metrics import confusion_matrix, precision_recall_curve

from ..configuration_kgl import KGLConfig
from ..data.masks import mask_to_array
from ..data.storage import write_text
from ..data.validation import DataIssue
from .maps import upsample_maps
from .metrics import defect_scores
from .predictions import Predictions
from .visualization import overlay_heat_map, plain_text


# Figure -> heading. The guided classifier's seconds include the primary and the priors.
_COLUMNS = {
    "ap": "AP",
    "auroc": "AUROC",
    "accuracy": "accuracy",
    "defect_ap": "defect AP",
    "false_alarm_rate_at_zero_missed": "false alarms, none missed",
    "map_ap": "class map's pixel AP",
    "saliency_ap": "H's pixel AP",
    "seconds": "seconds",
}
_ROWS = {
    "ap": "AP",
    "auroc": "AUROC",
    "accuracy": "Accuracy",
    "balanced_accuracy": "Balanced accuracy",
    "defect_ap": "AP, defect against good",
    "defect_auroc": "AUROC, defect against good",
    "f1_max": "F1 at its best threshold",
    "recall_at_false_alarm_rate": "Defects found at 5 % false alarms",
    "false_alarm_rate_at_zero_missed": "False alarms where no defect is missed",
    "recall_at_operating_point": "Defects found at the operating point",
    "false_alarm_rate_at_operating_point": "False alarms at the operating point",
    "ece_uncalibrated": "Calibration error before temperature scaling",
    "ece": "Calibration error",
    "map_ap": "Class map's pixel AP",
    "saliency_ap": "Heat map's (H) pixel AP",
    "saliency_pointing": "Heat map's peak lies on the defect",
    "seconds": "Seconds of training",
}
_TILE = 224  # pixels of a gallery image's longer side
_COLOURS = {"plain": "#7a7a7a", "guided": "#c2410c"}


def comparison_table(results: dict[str, dict[str, float]]) -> str:
    """A Markdown table of one row an arm; columns that no arm has are left out."""
    columns = [name for name in _COLUMNS if any(name in row for row in results.values())]
    lines = [
        "| | " + " | ".join(_COLUMNS[name] for name in columns) + " |",
        "| --- |" + " ---: |" * len(columns),
    ]
    for arm, row in results.items():
        cells = [f"{row[name]:.0f}" if name == "seconds" else f"{row[name]:.3f}" for name in columns]
        lines.append(f"| {arm} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def headline_rows(report: dict[str, Any]) -> list[dict[str, str]]:
    """Figure by figure: the plain and the guided classifier's with 95 % intervals, and the difference with its own."""
    results, differences = report["results"], report["differences"]
    rows = []
    for name, title in _ROWS.items():
        if not any(name in results[arm] for arm in results):
            continue
        row = {"title": title}
        for arm in results:
            row[arm] = _format_metric(results[arm].get(name), results[arm].get(f"{name}_interval"), name)
        paired = differences.get(name)
        row["difference"] = (
            "" if paired is None else _format_metric(paired["difference"], paired["interval"], name, sign="+")
        )
        rows.append(row)
    return rows


def write_report(
    path: Path,
    report: dict[str, Any],
    test: Dataset,
    judged: dict[str, Predictions],
    logs: dict[str, list[dict[str, float]]],
    priors_of: Callable[[Dataset], np.ndarray],
    config: KGLConfig,
) -> None:
    """
    Write a self-contained HTML page.

    Args:
        path: the file.
        report: what `metrics.json` holds.
        test: the held-out images.
        judged: `plain` and `guided` predictions of them.
        logs: each phase's log history.
        priors_of: what the prior of held-out images would have been, `(N, h, w)` in 0..1; asked for the few shown.
        config: the guided classifier's.
    """
    names = test.features["label"].names
    labels = np.asarray(test["label"])
    charts = [_loss_chart(logs)] if any("loss" in one for log in logs.values() for one in log) else []
    decisions = None
    if config.defect_free_id is not None:
        defective = labels != config.defect_free_id
        scores = {arm: defect_scores(one.probabilities, config.defect_free_id) for arm, one in judged.items()}
        charts = [
            _precision_recall_chart(scores, defective, config.threshold),
            _histogram(scores["guided"], defective, config.threshold),
            *charts,
        ]
        decisions = confusion_matrix(defective, scores["guided"] >= config.threshold, labels=(False, True)).tolist()
    else:
        charts = [_class_chart(judged["guided"].probabilities, labels, names), *charts]
    said = judged["guided"].probabilities.argmax(axis=1)
    templates = Environment(
        loader=PackageLoader("kgl.evaluation", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    html = templates.get_template("report.html.jinja").render(
        report=report,
        data_name=data_name(report["settings"]["data"]),
        rows=headline_rows(report),
        charts=charts,
        names=names,
        confusion=confusion_matrix(labels, said, labels=range(len(names))).tolist(),
        point=config.operating_point,
        threshold=config.threshold,
        decisions=decisions,
        without_defect=config.defect_free_label,
        temperature=config.temperature,
        galleries=[
            {
                "title": title,
                "note": note,
                "cases": _gallery_images(test, judged, rows, priors_of, config),
                "of": total,
            }
            for title, note, rows, total in _select_galleries(labels, judged["guided"], config)
        ],
        oddities=_group_issues(report["oddities"]),
    )
    write_text(path, html)


def data_name(data: dict[str, Any]) -> str:
    """What the images of a run's settings are called."""
    return data["hub_dataset"] or data["data_dir"] or data["data_file"] or data["dataset"]


def _format_metric(value: float | None, interval: list[float] | None, name: str, sign: str = "") -> str:
    if value is None:
        return ""
    if name == "seconds":
        return f"{value:.0f}"
    text = f"{value:{sign}.3f}"
    return text if interval is None else f"{text} ({interval[0]:{sign}.3f} … {interval[1]:{sign}.3f})"


def _select_galleries(
    labels: np.ndarray, guided: Predictions, config: KGLConfig, count: int = 8
) -> list[tuple[str, str, np.ndarray, int]]:
    """Galleries: title, note, the rows shown, and how many there are."""
    rows = np.arange(len(labels))
    of_truth = guided.probabilities[rows, labels]
    galleries = []
    if config.defect_free_id is not None:
        scores = defect_scores(guided.probabilities, config.defect_free_id)
        defective, called = labels != config.defect_free_id, scores >= config.threshold
        missed, alarms = rows[defective & ~called], rows[~defective & called]
        galleries.append(("Missed defects", "the surest first", missed[np.argsort(scores[missed])], len(missed)))
        galleries.append(("False alarms", "the surest first", alarms[np.argsort(-scores[alarms])], len(alarms)))
    galleries.append(("Hardest images", "least probability of the true class first", np.argsort(of_truth), len(rows)))
    return [(title, note, shown[:count], total) for title, note, shown, total in galleries]


def _gallery_images(
    test: Dataset,
    judged: dict[str, Predictions],
    rows: np.ndarray,
    priors_of: Callable[[Dataset], np.ndarray],
    config: KGLConfig,
) -> list[dict[str, Any]]:
    if len(rows) == 0:
        return []
    images, names = test.select(rows), test.features["label"].names
    maps = {
        "its prior, were it trained on": priors_of(images),
        "plain: class map": judged["plain"].class_map[rows],
        "guided: class map": judged["guided"].class_map[rows],
        "guided: heat map H": judged["guided"].saliency[rows],
    }
    cases = []
    for index, (at, row) in enumerate(zip(rows, images, strict=True)):
        image = row["image"].convert("L")
        scale = _TILE / max(image.size)
        image = image.resize([max(1, round(side * scale)) for side in image.size])
        size = (image.height, image.width)
        tiles = [{"title": "image", "src": _jpeg(np.asarray(image.convert("RGB")))}]
        for title, of_images in maps.items():
            heat = upsample_maps(of_images[index : index + 1], size)[0]
            tiles.append({"title": title, "src": _jpeg(overlay_heat_map(np.asarray(image), heat))})
        mask = mask_to_array(row["mask"], size)
        if mask is not None:
            tiles.append({"title": "true mask", "src": _jpeg(np.repeat(mask[..., None] * np.uint8(255), 3, axis=2))})
        said = [
            f"{arm} says {_format_prediction(one.probabilities[at], names, config)}" for arm, one in judged.items()
        ]
        cases.append({"file": row["file_name"], "label": names[row["label"]], "said": said, "tiles": tiles})
    return cases


def _format_prediction(probabilities: np.ndarray, names: list[str], config: KGLConfig) -> str:
    answer = f"{names[probabilities.argmax()]} {probabilities.max():.2f}"
    if config.defect_free_id is None:
        return answer
    return f"{answer}, P(defect) {defect_scores(probabilities[None], config.defect_free_id)[0]:.3g}"


def _jpeg(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, format="JPEG", quality=85)
    return _data_uri("jpeg", buffer.getvalue())


def _data_uri(kind: str, content: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _chart(title: str, alt: str, draw: Callable[[Any], None]) -> dict[str, str]:
    figure = Figure(figsize=(4.6, 3.1), layout="constrained")
    axes = figure.subplots()
    axes.spines[["top", "right"]].set_visible(False)
    draw(axes)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="svg")
    return {"title": title, "alt": alt, "src": _data_uri("svg+xml", buffer.getvalue())}


def _precision_recall_chart(scores: dict[str, np.ndarray], defective: np.ndarray, threshold: float) -> dict[str, str]:
    def draw(axes: Any) -> None:
        for arm, of_arm in scores.items():
            precision, recall, _ = precision_recall_curve(defective, of_arm)
            axes.step(recall, precision, where="post", label=arm, color=_COLOURS[arm])
        called = scores["guided"] >= threshold
        if called.any() and defective.any():
            at = called[defective].mean(), defective[called].mean()
            axes.plot(*at, "o", color="black", label="threshold")
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
        axes.legend(fontsize=8, loc="lower left")

    return _chart("Precision and recall of defects", "Precision-recall curves of both classifiers", draw)


def _histogram(scores: np.ndarray, defective: np.ndarray, threshold: float) -> dict[str, str]:
    def draw(axes: Any) -> None:
        bins = np.linspace(0, 1, 26)
        axes.hist(scores[~defective], bins, alpha=0.7, color="#3b82a0", label="good")
        axes.hist(scores[defective], bins, alpha=0.7, color="#c2410c", label="defective")
        axes.set(xlabel="P(defect), guided", ylabel="images")
        axes.axvline(threshold, color="black", linestyle="--", label="threshold")
        axes.legend(fontsize=8)

    return _chart("Scores of held-out images", "Histogram of defect scores with the operating point", draw)


def _class_chart(probabilities: np.ndarray, labels: np.ndarray, names: list[str]) -> dict[str, str]:
    def draw(axes: Any) -> None:
        for index, name in enumerate(names):
            if (labels == index).any():
                precision, recall, _ = precision_recall_curve(labels == index, probabilities[:, index])
                axes.step(recall, precision, where="post", label=plain_text(name))
        axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.02), ylim=(0, 1.02))
        axes.legend(fontsize=8, loc="lower left")

    return _chart("Precision and recall of each class, guided", "Precision-recall curves of each class", draw)


def _loss_chart(logs: dict[str, list[dict[str, float]]]) -> dict[str, str]:
    def draw(axes: Any) -> None:
        lines = {
            "plain: loss": ("plain", "loss", _COLOURS["plain"], "-"),
            "guided: classification": ("guided", "loss_cls", _COLOURS["guided"], "-"),
            "guided: guidance": ("guided", "loss_kg", _COLOURS["guided"], ":"),
            "guidance's weight λ": ("guided", "kg_lambda", "#3b82a0", "--"),
        }
        for label, (arm, name, colour, style) in lines.items():
            points = [(one["step"], one[name]) for one in logs[arm] if name in one]
            if points:
                axes.plot(*zip(*points, strict=True), style, color=colour, label=label)
        axes.set(xlabel="step", ylim=(0, None))
        if axes.lines:
            axes.legend(fontsize=8)

    return _chart("Losses while training", "Loss terms over the steps of both phases", draw)


def _group_issues(oddities: list[dict[str, Any]]) -> dict[str, list[str]]:
    kinds: dict[str, list[str]] = {}
    for one in oddities:
        kinds.setdefault(one["kind"], []).append(str(DataIssue(**one)))
    return kinds


__all__ = ["comparison_table", "data_name", "headline_rows", "write_report"]
