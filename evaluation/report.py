"""Self-contained HTML report of a run, and its table of results."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image as PILImage
from sklearn.metrics import confusion_matrix

from ..configuration_kgl import KGLConfig
from ..data.masks import mask_to_array
from ..data.storage import write_json, write_text
from ..data.validation import DataIssue
from .charts import (
    Chart,
    class_precision_recall_chart,
    data_uri,
    loss_chart,
    precision_recall_chart,
    roc_chart,
    score_histogram,
)
from .curve_report import curve_section
from .maps import upsample_maps
from .metrics import METRIC_TITLES, defect_scores
from .overlay import overlay_heat_map, shown_from
from .predictions import Predictions


_TABLE_METRICS = (  # of the table that a run prints
    "ap", "auroc", "accuracy", "defect_ap", "false_alarm_rate_at_zero_missed", "map_ap", "saliency_ap", "seconds",
)  # fmt: skip
_REPORT_METRICS = (
    "ap", "auroc", "accuracy", "balanced_accuracy", "defect_ap", "defect_auroc", "f1_max",
    "recall_at_false_alarm_rate", "false_alarm_rate_at_zero_missed", "recall_at_operating_point",
    "false_alarm_rate_at_operating_point", "recall_with_look_again", "false_alarm_rate_with_look_again",
    "ece_uncalibrated", "ece", "map_ap", "saliency_ap", "saliency_pointing",
    "saliency_false_alarm_rate", "saliency_found_rate", "seconds",
)  # fmt: skip
_HEAT_MAP = "final: heat map H"
_TILE_SIDE = 224  # pixels of the longer side of a gallery image
_STRIP = 2.5  # ratio of its sides from which on an image is a strip, which gets as many pixels as a square
_STRIP_SIDES = (24, 900)  # pixels of its shorter side at least, and of its longer side at most
_GALLERY_SIZE = 8
GALLERY_FILE = "gallery.json"  # what the galleries may show at any threshold


@dataclass(frozen=True)
class _Gallery:
    """Test images of one kind: which `rows` are shown, in which order, and how many there are in `total`."""

    title: str
    order: str
    rows: np.ndarray
    total: int


def comparison_table(results: dict[str, dict[str, float]]) -> str:
    """Return a Markdown table with one row per metric and one column per model; unknown metrics are left out."""
    metrics = [name for name in _TABLE_METRICS if any(name in of_model for of_model in results.values())]
    width = max(len(METRIC_TITLES[name]) for name in metrics)
    lines = [
        f"| {'':{width}} | " + " | ".join(f"{model:>7}" for model in results) + " |",
        f"| {'-' * width} |" + " ------: |" * len(results),
    ]
    for name in metrics:
        cells = [_format_metric(name, of_model.get(name)) for of_model in results.values()]
        lines.append(f"| {METRIC_TITLES[name]:{width}} | " + " | ".join(f"{cell:>7}" for cell in cells) + " |")
    return "\n".join(lines)


def results_rows(report: dict[str, Any]) -> list[dict[str, str]]:
    """
    Return one row per metric: `title`, `primary` and `final` with 95 % intervals, and `difference` with its own.

    Args:
        report: the content of `metrics.json`.
    """
    rows = []
    for name in _REPORT_METRICS:
        if not any(name in of_model for of_model in report["results"].values()):
            continue
        row = {"title": METRIC_TITLES[name], "difference": ""}
        for model, of_model in report["results"].items():
            row[model] = _format_metric(name, of_model.get(name), of_model.get(f"{name}_interval"))
        if name in report["differences"]:
            paired = report["differences"][name]
            row["difference"] = _format_metric(name, paired["difference"], paired["interval"], sign="+")
        rows.append(row)
    return rows


def write_report(
    path: Path,
    report: dict[str, Any],
    test: Dataset,
    predictions: dict[str, Predictions],
    logs: dict[str, list[dict[str, float]]],
    priors_of: Callable[[Dataset], np.ndarray] | None,
    config: KGLConfig,
) -> None:
    """
    Write the report of a run as one HTML page that opens offline.

    Beside it, `gallery.json` keeps the images that its galleries may show at any threshold, for [`render_report`].

    Args:
        path: the file to write.
        report: the content of `metrics.json`.
        test: the test images.
        predictions: `primary` and `final` predictions of `test`.
        logs: `primary` and `final` log history of the Trainer.
        priors_of: returns the priors, `(N, h, w)` in 0..1, that images would have in training; called once with the
            images of the galleries. None where priors are not the primary's maps.
        config: the final classifier's.
    """
    labels = np.asarray(test["label"])
    rows = _gallery_candidates(labels, predictions["final"].probabilities, config)
    write_json(path.with_name(GALLERY_FILE), _gallery_cases(test, rows, predictions, priors_of, config))
    probabilities = {model: predicted.probabilities for model, predicted in predictions.items()}
    render_report(path, report, labels, probabilities, logs, config)


def render_report(
    path: Path,
    report: dict[str, Any],
    labels: np.ndarray,
    probabilities: dict[str, np.ndarray],
    logs: dict[str, list[dict[str, float]]],
    config: KGLConfig,
) -> None:
    """
    Write the page of [`write_report`], its images taken from `gallery.json` beside it.

    Args:
        path: the file to write.
        report: the content of `metrics.json`.
        labels: of the test images, `(N,)`.
        probabilities: of the test images by `primary` and `final`, `(N, K)`.
        logs: `primary` and `final` log history of the Trainer.
        config: the final classifier's, with the operating point that decides.
    """
    names, final = [config.id2label[index] for index in range(config.num_labels)], probabilities["final"]
    cases = json.loads(path.with_name(GALLERY_FILE).read_text(encoding="utf-8"))
    galleries = _select_galleries(labels, final, config)
    passed = np.zeros(len(labels), dtype=bool)
    if config.defect_free_id is not None:
        passed = defect_scores(final, config.defect_free_id) < config.good_below
    templates = Environment(
        loader=PackageLoader("kgl.evaluation", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    html = templates.get_template("report.html.jinja").render(
        report=report,
        data_name=data_name(report["settings"]["data"]),
        rows=results_rows(report),
        charts=_charts(labels, names, probabilities, logs, config),
        names=names,
        confusion=confusion_matrix(labels, final.argmax(axis=1), labels=range(len(names))).tolist(),
        decisions=_count_decisions(labels, final, config),
        config=config,
        galleries=[
            (gallery, [_case_as_decided(cases[str(row)], passed[row]) for row in gallery.rows])
            for gallery in galleries
        ],
        issues=_group_issues(report["issues"]),
        curve=curve_section(path.parent),
    )
    write_text(path, html)


def data_name(data: dict[str, Any]) -> str:
    """Return the name of the images, given the data settings of a run."""
    return data["hub_dataset"] or data["data_dir"] or data["data_file"] or data["dataset"] or "images"


def _format_metric(name: str, value: float | None, interval: list[float] | None = None, sign: str = "") -> str:
    if value is None:
        return ""
    if name == "seconds":
        return f"{value:.0f}"
    text = f"{value:{sign}.3f}"
    return text if interval is None else f"{text} ({interval[0]:{sign}.3f} … {interval[1]:{sign}.3f})"


def _charts(
    labels: np.ndarray,
    names: list[str],
    probabilities: dict[str, np.ndarray],
    logs: dict[str, list[dict[str, float]]],
    config: KGLConfig,
) -> list[Chart]:
    charts = []
    if config.defect_free_id is None:
        charts.append(class_precision_recall_chart(probabilities["final"], labels, names))
    else:
        defective = labels != config.defect_free_id
        scores = {model: defect_scores(one, config.defect_free_id) for model, one in probabilities.items()}
        if defective.any() and not defective.all():
            charts.append(precision_recall_chart(scores, defective, config.threshold))
            charts.append(roc_chart(scores, defective, config.threshold))
        charts.append(score_histogram(scores["final"], defective, config.threshold, config.look_again_threshold))
    if any("loss" in entry for log in logs.values() for entry in log):
        charts.append(loss_chart(logs))
    return charts


def _count_decisions(labels: np.ndarray, final: np.ndarray, config: KGLConfig) -> dict[str, list] | None:
    """Return the `names` of the decisions, and their `counts` over good and over defective test images."""
    if config.defect_free_id is None:
        return None
    edges, names = [config.threshold], ["called good", "called defective"]
    if config.look_again_threshold is not None:
        edges, names = [config.look_again_threshold, *edges], ["called good", "look again", "called defective"]
    decided = np.digitize(defect_scores(final, config.defect_free_id), edges)
    defective = labels != config.defect_free_id
    counts = [np.bincount(decided[kind], minlength=len(names)).tolist() for kind in (~defective, defective)]
    return {"names": names, "counts": counts}


def _ranked(labels: np.ndarray, final: np.ndarray, config: KGLConfig) -> dict[str, np.ndarray]:
    """Return the rows of the test images in the order of each gallery, before any decision."""
    rows = np.arange(len(labels))
    ranked = {"hardest": np.argsort(final[rows, labels], kind="stable")}
    if config.defect_free_id is not None:
        scores, defective = defect_scores(final, config.defect_free_id), labels != config.defect_free_id
        ranked["defective"] = rows[defective][np.argsort(scores[defective], kind="stable")]
        ranked["good"] = rows[~defective][np.argsort(-scores[~defective], kind="stable")]
    return ranked


def _gallery_candidates(labels: np.ndarray, final: np.ndarray, config: KGLConfig) -> np.ndarray:
    """Return the rows that the galleries may show: another threshold only shows more or fewer of the first ones."""
    return np.unique(np.concatenate([rows[:_GALLERY_SIZE] for rows in _ranked(labels, final, config).values()]))


def _select_galleries(labels: np.ndarray, final: np.ndarray, config: KGLConfig) -> list[_Gallery]:
    ranked = _ranked(labels, final, config)
    galleries = []
    if config.defect_free_id is not None:
        scores = defect_scores(final, config.defect_free_id)
        missed = ranked["defective"][scores[ranked["defective"]] < config.good_below]
        false_alarms = ranked["good"][scores[ranked["good"]] >= config.threshold]
        galleries = [
            ("Missed defects", "lowest P(defect) first", missed),
            ("False alarms", "highest P(defect) first", false_alarms),
        ]
    galleries.append(("Hardest images", "lowest probability of the true class first", ranked["hardest"]))
    return [_Gallery(title, order, found[:_GALLERY_SIZE], len(found)) for title, order, found in galleries]


def _case_as_decided(case: dict[str, Any], passed: bool) -> dict[str, Any]:
    """Return a gallery image with its heat map drawn as of an image that is passed as good, or not."""
    tiles = [
        {"title": one["title"], "src": one.get("src_if_passed", one["src"]) if passed else one["src"]}
        for one in case["tiles"]
    ]
    return case | {"tiles": tiles}


def _gallery_cases(
    test: Dataset,
    rows: np.ndarray,
    predictions: dict[str, Predictions],
    priors_of: Callable[[Dataset], np.ndarray] | None,
    config: KGLConfig,
) -> dict[str, dict[str, Any]]:
    """Return `file`, `label`, `predicted`, `shape` and `tiles` of gallery images, by their row as text."""
    images, names = test.select(rows), test.features["label"].names
    shown = {model: predicted.select(rows) for model, predicted in predictions.items()}
    priors = {} if priors_of is None else {"prior, if it were a training image": priors_of(images)}
    maps = {
        **priors,
        "primary: class map": shown["primary"].class_map,
        "final: class map": shown["final"].class_map,
    }
    if config.has_heat_map:
        maps[_HEAT_MAP] = shown["final"].saliency
    cases = {}
    for index, (row, image) in enumerate(zip(rows.tolist(), images, strict=True)):
        predicted = [
            f"{model}: {_format_prediction(of_model.probabilities[index], names, config)}"
            for model, of_model in shown.items()
        ]
        cases[str(row)] = {
            "file": image["file_name"],
            "label": names[image["label"]],
            "predicted": predicted,
            "shape": _shape(image["image"]),
            "tiles": _gallery_tiles(image, {title: of_images[index] for title, of_images in maps.items()}, config),
        }
    return cases


def _gallery_tiles(image: dict[str, Any], maps: dict[str, np.ndarray], config: KGLConfig) -> list[dict[str, str]]:
    """
    Return `title` and `src` of the image, of each map `(h, w)` over it, and of its mask where it has one.

    The heat map is drawn from its threshold on. Unless the image is passed as good its highest cells are drawn at
    least; where that differs, `src_if_passed` is the tile without them.
    """
    grey = image["image"].convert("L")
    grey = grey.resize(_tile_size(grey))
    size, pixels = (grey.height, grey.width), np.asarray(grey)
    tiles = [{"title": "image", "src": _jpeg(pixels)}]
    for title, of_image in maps.items():
        heat = upsample_maps(of_image[None], size)[0]
        lowest = None
        if title == _HEAT_MAP:
            lowest = shown_from(of_image, config.heat_threshold, True, config.top_cells)
        tile = {"title": title, "src": _jpeg(overlay_heat_map(pixels, heat, lowest))}
        if lowest is not None and lowest < config.heat_threshold:
            tile["src_if_passed"] = _jpeg(overlay_heat_map(pixels, heat, config.heat_threshold))
        tiles.append(tile)
    mask = mask_to_array(image["mask"], size)
    if mask is not None:
        tiles.append({"title": "true mask", "src": _jpeg(mask.astype(np.uint8) * 255)})
    return tiles


def _shape(image: PILImage.Image) -> str:
    """Return whether an image is a `wide` or a `tall` strip, or neither."""
    if image.width >= _STRIP * image.height:
        return "wide"
    return "tall" if image.height >= _STRIP * image.width else ""


def _tile_size(image: PILImage.Image) -> tuple[int, int]:
    """Return width and height of an image's tiles."""
    if not _shape(image):
        scale = _TILE_SIDE / max(image.size)
        return max(1, round(image.width * scale)), max(1, round(image.height * scale))
    least, most = _STRIP_SIDES
    scale = min(_TILE_SIDE / (image.width * image.height) ** 0.5, most / max(image.size))
    return max(least, round(image.width * scale)), max(least, round(image.height * scale))


def _format_prediction(probabilities: np.ndarray, names: list[str], config: KGLConfig) -> str:
    text = f"{names[probabilities.argmax()]} {probabilities.max():.2f}"
    if config.defect_free_id is None:
        return text
    return f"{text}, P(defect) {defect_scores(probabilities[None], config.defect_free_id)[0]:.3g}"


def _jpeg(pixels: np.ndarray) -> str:
    buffer = io.BytesIO()
    PILImage.fromarray(pixels).save(buffer, format="JPEG", quality=85)
    return data_uri("jpeg", buffer.getvalue())


def _group_issues(issues: list[dict[str, Any]]) -> dict[str, list[str]]:
    by_kind: dict[str, list[str]] = {}
    for issue in issues:
        by_kind.setdefault(issue["kind"], []).append(str(DataIssue(**issue)))
    return by_kind


__all__ = ["GALLERY_FILE", "comparison_table", "data_name", "render_report", "results_rows", "write_report"]
