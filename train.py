"""The two-phase training job: primary classifier, priors, final classifier, evaluation."""

from __future__ import annotations

import json
import platform
import shutil
import sys
import time
from dataclasses import asdict
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
from kgl.data.image_cache import FOLDER as PIXELS
from kgl.data.loading import defect_free_label, read_defect_dataset
from kgl.data.masks import count_masks, drop_masks
from kgl.data.storage import lock, write_json
from kgl.evaluation.predictions import Predictions, predict, write_predictions
from kgl.evaluation.report import comparison_table, write_report
from kgl.evaluation.results import evaluate_run
from kgl.evaluation.visualization import draw_comparison_grid, select_grid_rows
from kgl.hub.model_card import write_card
from kgl.hub.push import push
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


def parse(arguments: list[str]) -> Settings:
    """`[RECIPE.yaml] [--flag value ...]` to settings; flags win over the recipe."""
    return Settings(*parse_settings("kgl-train", tuple(get_type_hints(Settings).values()), arguments))


def run(settings: Settings) -> dict[str, Any]:
    """
    Train, make priors, train again, compare. Finished parts in the output folder are not done again.

    Where several processes do it, their group ends with the last training; the main one goes on alone.

    Returns:
        What `metrics.json` holds: `results` for `primary` and `final`, and the settings and versions behind them.

    Raises:
        InputError: something given cannot be used, or the folder holds another run.
    """
    training_args = settings.training
    check_settings(settings)
    splits, oddities = read_defect_dataset(settings.data)
    output_dir = Path(training_args.output_dir)
    folds = split_prior_folds(splits["train"], settings)
    stored = deciding_settings(settings, splits)
    image_processor = make_image_processor(settings.model)
    names = splits["train"].features["label"].names
    # Before the folder is claimed for it.
    check_model(settings.model, settings.prior, names, defect_free_label(settings.data))
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
        print_dataset_summary(splits)
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
        name: KGLForImageClassification.from_pretrained(output_dir / name).to(training_args.device)
        for name in ("primary", "final")
    }
    configs = {name: model.config for name, model in models.items()}
    test_predictions = {
        name: predict(model, splits["test"], image_processor, training_args.per_device_eval_batch_size)
        for name, model in models.items()
    }
    results, differences = evaluate_run(test_predictions, splits["test"], configs, settings.model.size)
    results["primary"]["seconds"] = primary_seconds
    results["final"]["seconds"] = primary_seconds + fold_seconds + prior_seconds + final_seconds
    report = {
        "results": results,
        "differences": differences,
        "validation": {
            name: json.loads((output_dir / name / "phase.json").read_text())["validation"] for name in models
        },
        "seconds": {
            "feature_cache": once_seconds,
            "primary": primary_seconds - once_seconds,
            "fold_primaries": fold_seconds,
            "priors": prior_seconds,
            "final": final_seconds,
        },
        "images": {name: len(split) for name, split in splits.items()},
        "issues": [asdict(one) for one in oddities],
        "settings": strip_paths(stored),  # this is shared; run.json keeps them
        "licenses": asdict(settings.licenses),
        "versions": {
            "python": platform.python_version(),
            **{module.__name__: module.__version__ for module in (torch, transformers, datasets, accelerate)},
        },
    }  # fmt: skip
    _draw(output_dir, splits["test"], test_predictions, train, models, image_processor, settings)
    write_predictions(output_dir / "predictions.csv", splits["test"], test_predictions, configs)
    write_report(
        output_dir / "report.html",
        report,
        splits["test"],
        test_predictions,
        {name: _log_of(output_dir / name) for name in models},
        lambda images: _maps_of(images, models["primary"], image_processor, settings),
        models["final"].config,
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
        f"On {report['images']['test']} held-out images; the final classifier's seconds include the primary one's. "
        f"See report.html, metrics.json and predictions.csv in {output_dir}."
    )
    final = report["results"]["final"]
    if "recall_at_operating_point" in final:
        print(
            f"At its threshold the final classifier finds {final['recall_at_operating_point']:.0%} of their "
            f"defects and calls {final['false_alarm_rate_at_operating_point']:.0%} of the good ones defective."
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
    test_predictions: dict[str, Predictions],
    train: Dataset,
    models: dict[str, KGLForImageClassification],
    image_processor: BaseImageProcessor,
    settings: Settings,
) -> None:
    size = settings.model.size
    defect_free = models["final"].config.defect_free_label
    rows = select_grid_rows(test, 8, defect_free)
    shown = {name: predicted.select(rows) for name, predicted in test_predictions.items()}
    draw_comparison_grid(output_dir / "grid_test.png", test.select(rows), shown, size, "Held-out test images")
    images = train.select(select_grid_rows(train, 6, defect_free))
    shown = {name: predict(model, images, image_processor) for name, model in models.items()}
    draw_comparison_grid(output_dir / "grid_train.png", images, shown, size, "Training images")


def main() -> None:
    """The command `kgl-train`."""
    run_command("kgl-train", lambda: run(parse(sys.argv[1:])))


if __name__ == "__main__":
    main()
