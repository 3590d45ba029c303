"""The two-phase training job: primary classifier, priors, final classifier, evaluation."""

from __future__ import annotations

import json
import platform
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import accelerate
import datasets
import numpy as np
import torch
import transformers
from accelerate import PartialState
from datasets import Dataset
from transformers import BaseImageProcessor

from kgl.data.loading import LoadedDataset, read_defect_dataset
from kgl.data.masks import drop_masks
from kgl.data.splits import group_folds
from kgl.data.storage import lock, write_json
from kgl.data.summary import print_loaded_dataset
from kgl.evaluation.calibration import calibrate
from kgl.evaluation.predictions import Predictions, predict, write_predictions
from kgl.evaluation.report import comparison_table, write_report
from kgl.evaluation.results import evaluate_run
from kgl.evaluation.visualization import draw_comparison_grid, select_grid_rows
from kgl.hub.model_card import write_card
from kgl.hub.push import push
from kgl.knowledge.arguments import PriorArguments
from kgl.knowledge.saliency_priors import add_saliency_priors, with_priors
from kgl.modeling_kgl import KGLForImageClassification
from kgl.training.arguments import OperatingArguments, teaches_saliency
from kgl.training.model_init import build_model, check_model, make_image_processor, resolve_freeze_stages
from kgl.training.run_dir import CACHE_FOLDER, RunState, claim, strip_paths
from kgl.training.settings import Settings, check_settings, deciding_settings, default_output_dir, repository_name
from kgl.training.two_phase import Folds, Recipe, cache_inputs, make_priors, train_phase


PHASES = ("primary", "final")
_TITLES = {"primary": "Phase 1, primary classifier", "final": "Phase 2, final classifier"}


@dataclass(frozen=True)
class Job:
    """A checked job: its settings, data, and how its classifiers are trained."""

    settings: Settings
    data: LoadedDataset
    recipe: Recipe
    freeze_stages: int
    folds: Folds

    @property
    def output_dir(self) -> Path:
        """The run's folder."""
        return self.recipe.output_dir

    @property
    def is_main_process(self) -> bool:
        """Whether this process prints and writes."""
        return self.settings.training.process_index == 0


@dataclass(frozen=True)
class Trained:
    """Both classifiers of a run, the training rows with their priors, and what the run recorded of each step."""

    models: dict[str, KGLForImageClassification]
    rows: Dataset
    records: dict[str, dict[str, Any]]


def run(settings: Settings) -> dict[str, Any]:
    """
    Train a primary classifier, make its priors, train the final classifier, and evaluate both.

    Steps that are finished in the output folder are not done again. With several processes, the group ends with the
    last training step; the main process goes on alone.

    Returns:
        The content of `metrics.json`: `results` of `primary` and `final`, their differences, settings and versions.

    Raises:
        InputError: an input that cannot be used, or an output folder that holds another run.
    """
    job = prepare(settings)
    state = open_run(job)
    if state.record("report") is not None:
        return reopen(job)
    held = lock(job.output_dir) if job.is_main_process else None
    if job.is_main_process:
        print_loaded_dataset(job.data)
    trained = train_both(job, state)
    # A process that ends with its group standing may abort, and end the others' work.
    PartialState().destroy_process_group()
    if not job.is_main_process:
        return {}
    report = evaluate(job, trained)
    state.finish("report")
    remove_caches(job)
    print_results(report, job.output_dir)
    held.release()
    push_if_asked(settings)
    return report


def prepare(settings: Settings) -> Job:
    """
    Read and check everything before anything is written.

    Raises:
        InputError: an input that cannot be used.
    """
    if settings.training.output_dir == "trainer_output":  # transformers' name where none is given
        settings.training.output_dir = default_output_dir(settings.data)
    check_settings(settings)
    if settings.training.disable_tqdm:
        datasets.disable_progress_bars()  # all bars but the Trainer's are of datasets' tqdm
    data = read_defect_dataset(settings.data, show_progress=not settings.training.disable_tqdm)
    # What was recognised decides the run like what was given.
    resolved = replace(settings.data, dataset=data.dataset, defect_free_label=data.defect_free_label)
    settings = settings._replace(data=resolved)
    train = data.splits["train"]
    folds = []
    if settings.prior.prior_folds is not None:
        folds = group_folds(train, settings.prior.prior_folds, settings.data.split_seed, "--prior_folds")
    image_processor = make_image_processor(settings.model)

    def new_model() -> KGLForImageClassification:
        return build_model(settings.model, train.features["label"].names, data.defect_free_label)

    def calibrate_model(model: KGLForImageClassification) -> dict[str, Any] | None:
        return calibrate_on(data.splits.get("validation"), model, image_processor, settings)

    model = new_model()
    freeze_stages = resolve_freeze_stages(model, settings.model)
    check_model(model, settings.model.size, freeze_stages, settings.prior)
    return Job(
        settings, data, Recipe(new_model, image_processor, settings.training, calibrate_model), freeze_stages, folds
    )


def calibrate_on(
    validation: Dataset | None,
    model: KGLForImageClassification,
    image_processor: BaseImageProcessor,
    settings: Settings,
) -> dict[str, Any] | None:
    """Set the temperature and the operating point of a trained model; None without validation images."""
    if not validation:
        return None
    predictions = predict(model, validation, image_processor, settings.training.per_device_eval_batch_size)
    operating: OperatingArguments = settings.operating
    calibration = calibrate(
        predictions.probabilities,
        np.asarray(validation["label"]),
        model.config.defect_free_id,
        operating.wanted_recall,
        operating.miss_cost,
    )
    model.config.temperature = calibration["temperature"]
    model.config.operating_point = calibration["operating_point"]
    return calibration


def open_run(job: Job) -> RunState:
    """
    Claim the output folder for the job and return the state of its steps.

    Raises:
        InputError: the folder holds another run or other files, or cannot be written to.
    """
    with job.settings.training.main_process_first(desc="claiming the output folder"):
        state = RunState(job.output_dir)
        deciding = deciding_settings(job.settings, job.data.splits, job.freeze_stages)
        claim(job.output_dir, deciding, started=not state.is_empty)
    return RunState(job.output_dir, job.is_main_process)


def reopen(job: Job) -> dict[str, Any]:
    """Print the results of a finished run, and push it where asked."""
    PartialState().destroy_process_group()
    report = json.loads((job.output_dir / "metrics.json").read_text(encoding="utf-8"))
    if job.is_main_process:
        print(f"{job.output_dir} holds this run, finished before.")
        print_results(report, job.output_dir)
        remove_caches(job)  # a kill may have left them
        push_if_asked(job.settings)
    return report


def train_both(job: Job, state: RunState) -> Trained:
    """Run phase 1, the priors and phase 2."""
    model_args, recipe = job.settings.model, job.recipe
    train = job.data.splits["train"]
    inputs = cache_inputs(
        train,
        recipe,
        state,
        augment=model_args.augment,
        freeze_stages=job.freeze_stages,
        views=model_args.frozen_views,
        resize_once=job.settings.data.decode_once,
    )
    train_phase("primary", _TITLES["primary"], inputs.rows, inputs, recipe, state)
    for fold, (rest, _) in enumerate(job.folds):
        title = f"Phase 1, primary classifier of fold {fold}"
        train_phase(f"primary_fold{fold}", title, inputs.rows.select(rest), inputs, recipe, state)
    priors = make_priors(train, job.folds, recipe, state, job.settings.prior)
    if job.is_main_process:
        objectives = job.settings.training.kg_objective
        untaught = (
            "" if teaches_saliency(objectives) else f" --kg_objective {' '.join(objectives)} leaves H untrained."
        )
        print(f"Priors: {job.settings.prior.prior_method} maps of {len(priors)} training images.{untaught}")
    rows = with_priors(inputs.rows, priors)
    train_phase("final", _TITLES["final"], rows, inputs, recipe, state)
    models = {
        phase: KGLForImageClassification.from_pretrained(job.output_dir / phase).to(recipe.args.device)
        for phase in PHASES
        if job.is_main_process
    }
    steps = ("cache", "primary", *(f"primary_fold{fold}" for fold in range(len(job.folds))), "priors", "final")
    return Trained(models, rows, {step: state.record(step) for step in steps})


def evaluate(job: Job, trained: Trained) -> dict[str, Any]:
    """Predict the test images once, and write metrics, predictions, image grids, report and model card."""
    settings, output_dir, test = job.settings, job.output_dir, job.data.splits["test"]
    batch_size = settings.training.per_device_eval_batch_size
    predictions = {
        phase: predict(model, test, job.recipe.image_processor, batch_size) for phase, model in trained.models.items()
    }
    configs = {phase: model.config for phase, model in trained.models.items()}
    results, differences = evaluate_run(predictions, test, configs, settings.model.size)
    seconds = total_seconds(trained.records)
    results["primary"]["seconds"] = seconds["feature_cache"] + seconds["primary"]
    results["final"]["seconds"] = sum(seconds.values())
    report = {
        "results": results,
        "differences": differences,
        "validation": {phase: trained.records[phase]["validation"] for phase in PHASES},
        "seconds": seconds,
        "images": {name: len(split) for name, split in job.data.splits.items()},
        "issues": [asdict(issue) for issue in job.data.issues],
        "settings": strip_paths(json.loads((output_dir / "run.json").read_text(encoding="utf-8"))),
        "licenses": asdict(settings.licenses),
        "versions": {
            "python": platform.python_version(),
            **{module.__name__: module.__version__ for module in (torch, transformers, datasets, accelerate)},
        },
    }
    draw_grids(job, trained, predictions)
    write_predictions(output_dir / "predictions.csv", test, predictions, configs)
    write_report(
        output_dir / "report.html",
        report,
        test,
        predictions,
        {phase: loss_history(output_dir / phase) for phase in PHASES},
        lambda images: prior_maps(images, trained.models["primary"], job.recipe.image_processor, settings.prior),
        configs["final"],
    )
    shutil.copy(output_dir / "grid_test.png", output_dir / "final")  # shown by the card
    write_card(output_dir, report)
    write_json(output_dir / "metrics.json", report)
    return report


def total_seconds(records: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return the seconds of each step; the primaries of the folds together."""
    folds = sum(record["seconds"] for step, record in records.items() if step.startswith("primary_fold"))
    return {
        "feature_cache": records["cache"]["seconds"],
        "primary": records["primary"]["seconds"],
        "fold_primaries": folds,
        "priors": records["priors"]["seconds"],
        "final": records["final"]["seconds"],
    }


def draw_grids(job: Job, trained: Trained, predictions: dict[str, Predictions]) -> None:
    """Draw a few training and test images with the maps of both classifiers."""
    size, test = job.settings.model.size, job.data.splits["test"]
    defect_free = job.data.defect_free_label
    shown = trained.rows.select(select_grid_rows(trained.rows, 6, defect_free))
    of_shown = {
        phase: predict(model, shown, job.recipe.image_processor, len(shown)) for phase, model in trained.models.items()
    }
    draw_comparison_grid(job.output_dir / "grid_train.png", shown, of_shown, size, "Training images")
    rows = select_grid_rows(test, 8, defect_free)
    of_rows = {phase: one.select(rows) for phase, one in predictions.items()}
    draw_comparison_grid(job.output_dir / "grid_test.png", test.select(rows), of_rows, size, "Held-out test images")


def prior_maps(
    images: Dataset,
    primary: KGLForImageClassification,
    image_processor: BaseImageProcessor,
    prior_args: PriorArguments,
) -> np.ndarray:
    """Return the priors that test images would have had in training, `(N, h, w)` in 0..1."""
    args = PriorArguments(prior_method=prior_args.prior_method, prior_layers=prior_args.prior_layers)
    unmarked = drop_masks(images.remove_columns("digest"))
    priors = add_saliency_priors(unmarked, primary, image_processor, args=args)
    return np.asarray(priors["saliency_prior"], dtype=np.float32) / 255


def loss_history(phase: Path) -> list[dict[str, float]]:
    """Return the logged values of a phase."""
    return json.loads((phase / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]


def remove_caches(job: Job) -> None:
    """Delete resized images and frozen features; they are large, and of no use once both phases are finished."""
    shutil.rmtree(job.output_dir / CACHE_FOLDER, ignore_errors=True)


def push_if_asked(settings: Settings) -> None:
    """Push the finished run to the Hub once, with `--push_to_hub`."""
    training_args = settings.training
    if not training_args.push_to_hub:
        return
    address = push(
        Path(training_args.output_dir),
        repository_name(training_args),
        settings.licenses,
        private=training_args.hub_private_repo is not False,  # None too: public only when asked for
        token=training_args.hub_token,
        revision=training_args.hub_revision,
    )
    print(f"Pushed in one commit: {address}")


def print_results(report: dict[str, Any], output_dir: Path) -> None:
    """Print the comparison of both classifiers and where the files are."""
    print(f"\n{comparison_table(report['results'])}\n")
    final, count = report["results"]["final"], report["images"]["test"]
    if "recall_at_operating_point" in final:
        print(
            f"At its threshold the final classifier finds {final['recall_at_operating_point']:.0%} of the defects in "
            f"{count} held-out test images and calls {final['false_alarm_rate_at_operating_point']:.0%} of the good "
            "ones defective."
        )
    print(
        f"Report: {output_dir / 'report.html'}, with metrics.json and predictions.csv beside it. "
        f"Classifier: {output_dir / 'final'}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Run `kgl train`, also as `accelerate launch train.py`."""
    from kgl.cli import train as command

    command.main(sys.argv[1:] if argv is None else argv)


__all__ = ["Job", "Trained", "evaluate", "main", "prepare", "run", "train_both"]


if __name__ == "__main__":
    main()
