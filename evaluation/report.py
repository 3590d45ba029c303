"""Self-contained HTML report of a run, and its table of results."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from sklearn.metrics import confusion_matrix

from ..configuration_kgl import KGLConfig
from ..data.storage import write_text
from ..data.validation import DataIssue
from .advice import compare_classifiers, describe_threshold, missing_threshold
from .charts import (
    Chart,
    class_precision_recall_chart,
    loss_chart,
    precision_recall_chart,
    roc_chart,
    score_histogram,
)
from .curve_report import curve_section
from .galleries import GALLERY_FILE, MISTAKES, kinds_of_cases, read_galleries, write_galleries
from .metrics import METRIC_TITLES, count_decisions, defect_scores
from .page import render_template
from .predictions import Predictions
from .report_words import describe_expectation, group_table
from .training_range_report import TRAINING_IMAGES_FILE, read_training_images
from .validation_scores import ValidationScores, read_validation_scores


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
    groups: Sequence[str],
) -> None:
    """
    Write the report of a run as one HTML page that opens offline.

    Beside it, `gallery.json` keeps the images that its galleries may show at any threshold, for [`render_report`].

    Args:
        path: the file to write.
        report: the content of `metrics.json`.
        test: the test images.
        predictions: `primary` and `final` predictions of `test`.
        logs: the Trainer's log history of `primary`, `tuned` and `final`, those that were trained by steps.
        priors_of: returns the priors, `(N, h, w)` in 0..1, that images would have in training; called once with the
            images of the galleries. None where priors are not the primary's maps.
        config: the final classifier's.
        groups: of the test images, such as parts; "" where it is unknown.
    """
    write_galleries(path.with_name(GALLERY_FILE), test, predictions, priors_of, config)
    probabilities = {model: predicted.probabilities for model, predicted in predictions.items()}
    render_report(path, report, np.asarray(test["label"]), probabilities, logs, config, groups)


def render_report(
    path: Path,
    report: dict[str, Any],
    labels: np.ndarray,
    probabilities: dict[str, np.ndarray],
    logs: dict[str, list[dict[str, float]]],
    config: KGLConfig,
    groups: Sequence[str],
) -> None:
    """
    Write the page of [`write_report`], its images taken from `gallery.json` and the training images' properties from
    `training_images.json` beside it, where a run has those.

    Args:
        path: the file to write.
        report: the content of `metrics.json`.
        labels: of the test images, `(N,)`.
        probabilities: of the test images by `primary` and `final`, `(N, K)`.
        logs: the Trainer's log history of `primary`, `tuned` and `final`, those that were trained by steps.
        config: the final classifier's, with the operating point that decides.
        groups: of the test images, such as parts; "" where it is unknown.
    """
    names, final = [config.id2label[index] for index in range(config.num_labels)], probabilities["final"]
    galleries, thumbnails = read_galleries(path.with_name(GALLERY_FILE), labels, final, config)
    html = render_template(
        "kgl.evaluation",
        "report.html.jinja",
        report=report,
        data_name=data_name(report["settings"]["data"]),
        rows=results_rows(report),
        charts=_charts(labels, names, probabilities, logs, config),
        names=names,
        confusion=confusion_matrix(labels, final.argmax(axis=1), labels=range(len(names))).tolist(),
        decisions=_count_decisions(labels, final, config),
        config=config,
        expectation=describe_expectation(labels, final, config),
        advice=_advice(report, config, read_validation_scores(path.parent, config.defect_free_label)),
        groups=group_table(groups, labels, final, config),
        galleries=galleries,
        thumbnails=thumbnails,
        kinds_of_cases=kinds_of_cases,
        mistakes=MISTAKES,
        training_images=read_training_images(path.with_name(TRAINING_IMAGES_FILE), config),
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


def _count_decisions(labels: np.ndarray, final: np.ndarray, config: KGLConfig) -> dict[str, dict[str, int]] | None:
    if config.defect_free_id is None:
        return None
    defective, scores = labels != config.defect_free_id, defect_scores(final, config.defect_free_id)
    return count_decisions(defective, scores, config.threshold, config.look_again_threshold)


def _advice(report: dict[str, Any], config: KGLConfig, scores: ValidationScores | None) -> list[str]:
    """Return the sentences on the threshold and on the better classifier, those that are needed."""
    point = config.operating_point
    limits = None if point is None else describe_threshold(point, "RUN", scores)
    if point is None and config.defect_free_label is not None:
        limits = missing_threshold(report)
    return [sentence for sentence in (limits, compare_classifiers(report, scores)) if sentence is not None]


def _group_issues(issues: list[dict[str, Any]]) -> dict[str, list[str]]:
    by_kind: dict[str, list[str]] = {}
    for issue in issues:
        by_kind.setdefault(issue["kind"], []).append(str(DataIssue(**issue)))
    return by_kind


__all__ = ["comparison_table", "data_name", "render_report", "results_rows", "write_report"]
