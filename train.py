"""The two-phase training job: primary classifier, priors, final classifier, evaluation."""

from __future__ import annotations

import json
import platform
import shutil
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_type_hints

import accelerate
import datasets
import numpy as np
import torch
import transformers
from accelerate import PartialState
from datasets import Dataset, DatasetDict
from transformers import BaseImageProcessor

from kgl.cli.parser import parse_settings, run_command
from kgl.configuration_kgl import KGLConfig
from kgl.data.image_cache import FOLDER as PIXELS
from kgl.data.loading import read_defect_dataset
from kgl.data.masks import count_masks, drop_masks
from kgl.data.storage import lock, write_json
from kgl.evaluation.calibration import apply_temperature
from kgl.evaluation.metrics import (
    decision_rates,
    defect_scores,
    expected_calibration_error,
    paired_bootstrap,
    wilson_interval,
)
from kgl.evaluation.predictions import Predictions, predict, write_predictions
from kgl.evaluation.report import comparison_table, write_report
from kgl.evaluation.results import evaluate_predictions
from kgl.evaluation.visualization import draw_comparison_grid, select_grid_rows
from kgl.hub.push import push, write_card
from kgl.knowledge.arguments import PriorArguments
from kgl.knowledge.saliency_priors import add_saliency_priors, with_priors
from kgl.modeling_kgl import KGLForImageClassification
from kgl.training.arguments import teaches_saliency
from kgl.training.model_init import check_model, make_image_processor
from kgl.training.run_dir import claim, strip_paths
from kgl.training.settings import Settings, check_settings, deciding_settings, repository_of
from kgl.training.two_phase import (
    load_or_save_seconds,
    make_collator,
    make_priors,
    select_training_columns,
    split_prior_folds,
    train_phase,
)


BOOTSTRAP = 300  # draws of the test images for the intervals


def parse(arguments: list[str]) -> Settings:
    """`[RECIPE.yaml] [--flag value ...]` to settings; flags win over the recipe."""
    return Settings(*parse_settings("kgl-train", tuple(get_type_hints(Settings).values()), arguments))


def run(settings: Settings) -> dict[str, Any]:
    """
    Train, make priors, train again, compare. Finished parts in the output folder are not done again.

    Where several processes do it, their group ends with the last training; the main one goes on alone.

    Returns:
        What `metrics.json` holds: `results` for `plain` and `guided`, and the settings and versions behind them.

    Raises:
        InputError: something given cannot be used, or the folder holds another run.
    """
    training_args = settings.training
    check_settings(settings)
    loaded = read_defect_dataset(settings.data, show_progress=not training_args.disable_tqdm)
    splits = loaded.splits
    resolved = replace(settings.data, dataset=loaded.dataset, defect_free_label=loaded.defect_free_label)
    settings = settings._replace(data=resolved)
    output_dir = Path(training_args.output_dir)
    folds = split_prior_folds(splits["train"], settings)
    stored = deciding_settings(settings, splits)
    image_processor = make_image_processor(settings.model)
    names = splits["train"].features["label"].names
    # Before the folder is claimed for it.
    check_model(settings.model, settings.prior, names, loaded.defect_free_label)
    with training_args.main_process_first(desc="claiming the output folder"):
        claim(output_dir, stored)
    finished = output_dir / "metrics.json"
    if finished.exists():
        PartialState().destroy_process_group()
        report = json.loads(finished.read_text())
        if training_args.process_index == 0:
            print(f"{output_dir} holds this very run, finished.\n")
            print_results(report, output_dir)
            _drop_intermediate(output_dir)  # a kill may have left it
            _push_where_asked(settings)
        return report
    if training_args.process_index == 0:
        held = lock(output_dir)
        for warning in loaded.warnings:
            print(f"Warning: {warning}", file=sys.stderr)
        print_dataset_summary(splits)
        print(f"Defect-free class: {loaded.defect_free}")
        if not teaches_saliency(training_args.kg_objective):
            objectives = " ".join(training_args.kg_objective)
            print(f"--kg_objective {objectives}: H is taught nothing of where defects are; see the class map.")

    numbered = splits["train"].add_column("index", list(range(len(splits["train"]))))
    started = time.perf_counter()
    collator, pixels = make_collator(numbered, image_processor, settings)
    once_seconds = load_or_save_seconds(output_dir / "once_seconds.json", time.perf_counter() - started, training_args)

    def trained(phase: str, rows: Dataset) -> float:
        rows = select_training_columns(rows, pixels, settings)
        return train_phase(phase, rows, splits.get("validation"), collator, image_processor, settings)

    primary_seconds = once_seconds + trained("primary", numbered)
    fold_seconds = sum(trained(f"primary_fold{fold}", numbered.select(rest)) for fold, (rest, _) in enumerate(folds))
    started = time.perf_counter()
    priors = make_priors(output_dir, splits["train"], folds, image_processor, settings)
    prior_seconds = load_or_save_seconds(
        output_dir / "priors_seconds.json", time.perf_counter() - started, training_args
    )
    train = with_priors(numbered, priors)
    final_seconds = trained("final", train)
    # The rest is the main process's. A process that ends with its group standing may abort, and end the others' work.
    PartialState().destroy_process_group()
    if training_args.process_index > 0:
        return {}

    models = {
        arm: KGLForImageClassification.from_pretrained(output_dir / phase).to(training_args.device)
        for arm, phase in (("plain", "primary"), ("guided", "final"))
    }
    judged = {
        arm: predict(model, splits["test"], image_processor, training_args.per_device_eval_batch_size)
        for arm, model in models.items()
    }
    results = {arm: test_metrics(judged[arm], splits["test"], models[arm].config, settings) for arm in models}
    results["plain"]["seconds"] = primary_seconds
    results["guided"]["seconds"] = primary_seconds + fold_seconds + prior_seconds + final_seconds
    *intervals, differences = paired_bootstrap(
        judged["plain"].probabilities, judged["guided"].probabilities, splits["test"]["label"][:],
        models["guided"].config.defect_free_id, BOOTSTRAP,
    )  # fmt: skip
    report = {
        # Those of counted rates are Wilson's, and stay.
        "results": {arm: of_arm | results[arm] for arm, of_arm in zip(results, intervals, strict=True)},
        "differences": differences,
        "validation": {
            arm: json.loads((output_dir / phase / "phase.json").read_text())["validation"]
            for arm, phase in (("plain", "primary"), ("guided", "final"))
        },
        "seconds": {
            "images or features made once": once_seconds,
            "primary": primary_seconds - once_seconds,
            "primaries of the folds": fold_seconds,
            "priors": prior_seconds,
            "final": final_seconds,
        },
        "images": {name: len(split) for name, split in splits.items()},
        "oddities": [asdict(issue) for issue in loaded.issues],
        "settings": strip_paths(stored),  # this is shared; run.json keeps them
        "licenses": asdict(settings.licenses),
        "versions": {
            "python": platform.python_version(),
            **{module.__name__: module.__version__ for module in (torch, transformers, datasets, accelerate)},
        },
    }  # fmt: skip
    _draw(output_dir, splits["test"], train, models, image_processor, settings)
    configs = {arm: model.config for arm, model in models.items()}
    write_predictions(output_dir / "predictions.csv", splits["test"], judged, configs)
    write_report(
        output_dir / "report.html",
        report,
        splits["test"],
        judged,
        {arm: _log_of(output_dir / phase) for arm, phase in (("plain", "primary"), ("guided", "final"))},
        lambda images: _maps_of(images, models["plain"], image_processor, settings),
        models["guided"].config,
    )
    shutil.copy(output_dir / "grid_test.png", output_dir / "final")  # the card shows it
    write_card(output_dir, report)
    write_json(finished, report)
    _drop_intermediate(output_dir)
    print_results(report, output_dir)
    held.release()
    _push_where_asked(settings)
    return report


def _push_where_asked(settings: Settings) -> None:
    """The finished run to the Hub, once, with `--push_to_hub`."""
    training_args = settings.training
    if not training_args.push_to_hub:
        return
    address = push(
        Path(training_args.output_dir),
        repository_of(training_args),
        settings.licenses,
        private=training_args.hub_private_repo is not False,  # None, too: nothing is public that was not meant to be
        token=training_args.hub_token,
        revision=training_args.hub_revision,
    )
    print(f"Pushed in one commit: {address}")


def _drop_intermediate(output_dir: Path) -> None:
    """Resized images and what frozen stages gave are large, and of no use once both phases are done."""
    for path in output_dir.glob("frozen_features.npy*"):
        path.unlink()
    if (output_dir / PIXELS).exists():
        shutil.rmtree(output_dir / PIXELS)


def test_metrics(predictions: Predictions, test: Dataset, config: KGLConfig, settings: Settings) -> dict[str, Any]:
    """A model's figures on the test images."""
    size = (settings.model.image_height, settings.model.image_width)
    results = evaluate_predictions(predictions, test, config.defect_free_id, size)
    labels = np.asarray(test["label"][:])
    results["accuracy_interval"] = wilson_interval(predictions.probabilities.argmax(axis=1) == labels)
    results["ece"] = expected_calibration_error(predictions.probabilities, labels)
    if config.temperature != 1:
        uncalibrated = apply_temperature(predictions.probabilities, 1 / config.temperature)
        results["ece_uncalibrated"] = expected_calibration_error(uncalibrated, labels)
    if config.operating_point is not None:
        scores = defect_scores(predictions.probabilities, config.defect_free_id)
        results |= decision_rates(labels != config.defect_free_id, scores, config.threshold)
    return results


def print_dataset_summary(splits: DatasetDict) -> None:
    names = splits["train"].features["label"].names
    for split_name, split in splits.items():
        labels = split["label"]
        counts = ", ".join(f"{labels.count(index)} {name}" for index, name in enumerate(names))
        masks = count_masks(split)
        print(f"{split_name}: {len(split)} images ({counts}{f'; {masks} with a mask' if masks else ''})")


def print_results(report: dict[str, Any], output_dir: Path) -> None:
    print(f"\n{comparison_table(report['results'])}\n")
    print(
        f"On {report['images']['test']} held-out images; the guided classifier's seconds include the plain one's, "
        f"which it needs. See report.html, metrics.json and predictions.csv in {output_dir}."
    )
    guided = report["results"]["guided"]
    if "recall_at_operating_point" in guided:
        print(
            f"At its operating point the guided classifier finds {guided['recall_at_operating_point']:.0%} of their "
            f"defects and calls {guided['false_alarm_rate_at_operating_point']:.0%} of the good ones defective."
        )


def _log_of(phase: Path) -> list[dict[str, float]]:
    return json.loads((phase / "trainer_state.json").read_text())["log_history"]


def _maps_of(
    images: Dataset, primary: KGLForImageClassification, image_processor: BaseImageProcessor, settings: Settings
) -> np.ndarray:
    """The priors that images would have had in training, `(N, h, w)` in 0..1."""
    unmarked = drop_masks(images.remove_columns("digest"))
    args = PriorArguments(prior_method=settings.prior.prior_method, prior_layers=settings.prior.prior_layers)
    priors = add_saliency_priors(unmarked, primary, image_processor, args=args)
    return np.asarray(priors["saliency_prior"], dtype=np.float32) / 255


def _draw(
    output_dir: Path,
    test: Dataset,
    train: Dataset,
    models: dict[str, KGLForImageClassification],
    image_processor: BaseImageProcessor,
    settings: Settings,
) -> None:
    size = (settings.model.image_height, settings.model.image_width)
    images = {"train": (train, 6, "Training images"), "test": (test, 8, "Held-out images")}
    for name, (split, count, title) in images.items():
        rows = split.select(select_grid_rows(split, count, models["plain"].config.defect_free_label))
        plain, guided = (predict(model, rows, image_processor, count) for model in models.values())
        draw_comparison_grid(output_dir / f"grid_{name}.png", rows, plain, guided, size, title)


def main() -> None:
    """The command `kgl-train`."""
    run_command("kgl-train", lambda: run(parse(sys.argv[1:])))


if __name__ == "__main__":
    main()
