"""The files that a finished run writes: image grids, predictions, report and metrics."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import BaseImageProcessor

from ..data.masks import drop_masks
from ..errors import format_count
from ..knowledge.arguments import PriorArguments, TrainPriorArguments
from ..knowledge.saliency_priors import add_saliency_priors
from ..modeling_kgl import KGLForImageClassification
from .advice import compare_classifiers, describe_decisions_at_half, describe_threshold
from .predictions import Predictions, predict, write_predictions
from .report import comparison_table, write_report
from .results import evaluate_run
from .training_range_report import TRAINING_IMAGES_FILE, write_test_values
from .validation_scores import ValidationScores, read_validation_scores
from .visualization import draw_comparison_grid, select_grid_rows


@dataclass(frozen=True)
class Evaluation:
    """
    Both classifiers of a run on its test images.

    Attributes:
        models: by name, `primary` and `final`.
        predictions: of the test images, by model.
        results: metrics by model.
        differences: `final` minus `primary` of each metric, with intervals.
    """

    models: dict[str, KGLForImageClassification]
    predictions: dict[str, Predictions]
    results: dict[str, dict[str, Any]]
    differences: dict[str, dict[str, Any]]


def evaluate_models(
    models: dict[str, KGLForImageClassification],
    test: Dataset,
    image_processor: BaseImageProcessor,
    size: tuple[int, int],
    batch_size: int,
) -> Evaluation:
    """Predict the test images once with each model, and compute metrics and their differences."""
    predictions = {name: predict(model, test, image_processor, batch_size) for name, model in models.items()}
    configs = {name: model.config for name, model in models.items()}
    return Evaluation(models, predictions, *evaluate_run(predictions, test, configs, size))


def write_outputs(
    folder: Path,
    report: dict[str, Any],
    evaluation: Evaluation,
    train: Dataset,
    test: Dataset,
    image_processor: BaseImageProcessor,
    prior_args: TrainPriorArguments,
    source_groups: dict[str, str],
) -> None:
    """
    Write image grids, `predictions.csv` and `report.html` into a run's folder; complete `training_images.json`.

    Args:
        folder: the run's.
        report: the content of `metrics.json`.
        evaluation: of both models.
        train: the training images with their priors.
        test: the test images.
        image_processor: of the models.
        prior_args: how priors are made.
        source_groups: file name to group, such as a part, of the images to which their source gives one.
    """
    groups = [source_groups.get(file_name, "") for file_name in test["file_name"][:]]
    models, predictions = evaluation.models, evaluation.predictions
    size = (image_processor.size["height"], image_processor.size["width"])
    config = models["final"].config
    shown = train.select(select_grid_rows(train, 6, config.defect_free_label))
    of_shown = {name: predict(model, shown, image_processor, len(shown)) for name, model in models.items()}
    draw_comparison_grid(folder / "grid_train.png", shown, of_shown, size, "Training images", config)
    rows = select_grid_rows(test, 8, config.defect_free_label)
    of_rows = {name: one.select(rows) for name, one in predictions.items()}
    draw_comparison_grid(folder / "grid_test.png", test.select(rows), of_rows, size, "Held-out test images", config)
    shutil.copy(folder / "grid_test.png", folder / "final")  # shown by the card
    write_test_values(folder / TRAINING_IMAGES_FILE, models["final"], test, image_processor)
    configs = {name: model.config for name, model in models.items()}
    write_predictions(folder / "predictions.csv", test, predictions, configs, groups)
    write_report(
        folder / "report.html",
        report,
        test,
        predictions,
        training_logs(folder),
        (lambda images: _prior_maps(images, models["primary"], image_processor, prior_args))
        if prior_args.prior_source == "saliency"
        else None,
        config,
        groups,
    )


def _prior_maps(
    images: Dataset,
    primary: KGLForImageClassification,
    image_processor: BaseImageProcessor,
    prior_args: PriorArguments,
) -> np.ndarray:
    """Return the priors that test images would have had in training, `(N, h, w)` in 0..1."""
    args = PriorArguments(prior_method=prior_args.prior_method, prior_layers=prior_args.prior_layers)
    priors = add_saliency_priors(drop_masks(images.remove_columns("digest")), primary, image_processor, args=args)
    return np.asarray(priors["saliency_prior"], dtype=np.float32) / 255


def training_logs(run: Path) -> dict[str, list[dict[str, float]]]:
    """Return what the Trainer logged in each phase of a run that was trained by steps."""
    files = {phase: run / phase / "trainer_state.json" for phase in ("primary", "tuned", "final")}
    return {
        phase: json.loads(file.read_text(encoding="utf-8"))["log_history"]
        for phase, file in files.items()
        if file.exists()
    }


def print_results(report: dict[str, Any], folder: Path) -> None:
    """Print the comparison of both models and where the files are."""
    scores = read_validation_scores(folder, report["settings"]["data"]["defect_free_label"])
    print(f"\n{comparison_table(report['results'])}\n")
    final, count, validation = report["results"]["final"], report["images"]["test"], report["validation"]["final"]
    if "recall_at_operating_point" in final:
        print(
            f"At its threshold the final classifier finds {final['recall_at_operating_point']:.0%} of the defects in "
            f"{format_count(count, 'held-out test image')} and calls "
            f"{final['false_alarm_rate_at_operating_point']:.0%} of the good ones defective."
        )
    if sentence := describe_decisions_at_half(report):
        print(sentence)
    if "recall_with_look_again" in final:
        print(
            f"With the images to look at again it finds {final['recall_with_look_again']:.0%} of the defects, and "
            f"{final['false_alarm_rate_with_look_again']:.0%} of the good images are not passed."
        )
    if validation is not None and validation["operating_point"] is not None:
        print_limits(validation["operating_point"], folder, scores)
    comparison = compare_classifiers(report, scores)
    if comparison is not None:
        print(comparison)
    print(
        f"Report: {folder / 'report.html'}, with metrics.json and predictions.csv beside it. "
        f"Classifier: {folder / 'final'}"
    )


def print_limits(operating_point: dict[str, Any], folder: Path, scores: ValidationScores | None) -> None:
    """Print where a run's threshold is rough or alarms often, or there are no images to look at again."""
    if "look_again_chosen" in operating_point and "look_again_threshold" not in operating_point:
        print(
            f"No images are to be looked at again: the threshold itself finds {operating_point['recall']:.1%} of the "
            f"{operating_point['defective']} validation defects. More validation images tell thresholds apart."
        )
    limits = describe_threshold(operating_point, str(folder), scores)
    if limits is not None:
        print(limits)


__all__ = ["Evaluation", "evaluate_models", "print_limits", "print_results", "training_logs", "write_outputs"]
