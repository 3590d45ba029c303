"""The two-phase job: a primary classifier, its priors, a guided classifier, and how the two compare."""

from __future__ import annotations

import copy
import json
import os
import platform
import shutil
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, get_type_hints

import accelerate
import datasets
import numpy as np
import torch
import transformers
from datasets import Dataset, DatasetDict, concatenate_datasets, load_from_disk
from transformers import BaseImageProcessor
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_utils import HubStrategy, SaveStrategy

from kgl.augmentation import PairedAugmentation
from kgl.building import ModelArguments, image_processor_of, initial_model, try_model
from kgl.card import LicenseArguments
from kgl.collator import DefectCollator
from kgl.commands import parse_settings, run_command
from kgl.configuration_kgl import KGLConfig
from kgl.data import DataArguments, defect_free_label, read_defect_dataset
from kgl.errors import InputError
from kgl.evaluation import Predictions, evaluate_predictions, predict, write_predictions
from kgl.frozen import FrozenFeatureCollator, stages_bypassed, write_frozen_features
from kgl.grids import grid_rows, save_grid
from kgl.hub import check_repo_id, push, write_card
from kgl.metrics import decision_rates, defect_scores, expected_calibration_error, paired_bootstrap, wilson_interval
from kgl.modeling_kgl import KGLForImageClassification
from kgl.operating_point import OperatingArguments, settle, tempered
from kgl.prior import PriorArguments, add_saliency_priors, with_priors, write_saliency_priors
from kgl.report import comparison_table, write_report
from kgl.resized import FOLDER as PIXELS
from kgl.resized import resized_pixels
from kgl.runs import WholeCheckpoints, claim, last_whole_checkpoint, lock, save_whole, without_paths, write_json
from kgl.schema import fingerprint, without_masks
from kgl.splits import group_folds
from kgl.trainer import ClassificationTrainer, KGLTrainingArguments, KnowledgeGuidedTrainer


@dataclass
class TrainPriorArguments(PriorArguments):
    """How priors are made, and by which classifiers."""

    prior_folds: int | None = field(
        default=None,
        metadata={
            "help": "Cross-fit: part the training pictures into so many folds, groups whole, and let each one's prior "
            "come from a primary that was trained on the others. Costs a training for every fold."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prior_folds is not None and self.prior_folds < 2:
            raise InputError(f"--prior_folds {self.prior_folds}: cross-fitting takes at least 2.")


BOOTSTRAP = 300  # draws of the test pictures for the intervals

# Settings that change how a run is watched, saved or shared, never what comes out of it.
_OPERATIONAL = {
    "average_tokens_across_devices", "batch_eval_metrics", "dataloader_persistent_workers", "dataloader_pin_memory",
    "dataloader_prefetch_factor", "ddp_backend", "ddp_broadcast_buffers", "ddp_bucket_cap_mb",
    "ddp_find_unused_parameters", "ddp_timeout", "debug", "disable_tqdm", "do_eval", "do_predict", "do_train",
    "enable_jit_checkpoint", "eval_accumulation_steps", "eval_delay", "eval_do_concat_batches", "eval_on_start",
    "eval_steps", "eval_strategy", "eval_use_gather_object", "greater_is_better", "hub_always_push", "hub_model_id",
    "hub_private_repo", "hub_revision", "hub_strategy", "hub_token", "include_for_metrics",
    "include_num_input_tokens_seen", "load_best_model_at_end", "local_rank", "log_level", "log_level_replica",
    "log_on_each_node", "logging_first_step", "logging_nan_inf_filter", "logging_steps",
    "logging_strategy", "metric_for_best_model", "output_dir", "per_device_eval_batch_size", "prediction_loss_only",
    "project", "push_to_hub", "report_to", "restore_callback_states_from_checkpoint", "resume_from_checkpoint",
    "run_name", "save_on_each_node", "save_only_model", "save_steps", "save_strategy", "save_total_limit",
    "skip_memory_metrics", "torch_empty_cache_steps", "trackio_bucket_id", "trackio_space_id",
    "trackio_static_space_id",
}  # fmt: skip


class Settings(NamedTuple):
    """All settings of a job."""

    model: ModelArguments
    data: DataArguments
    prior: TrainPriorArguments
    operating: OperatingArguments
    licenses: LicenseArguments
    training: KGLTrainingArguments


def parse(arguments: list[str]) -> Settings:
    """`[RECIPE.yaml] [--flag value ...]` to settings; flags win over the recipe."""
    return Settings(*parse_settings("kgl-train", tuple(get_type_hints(Settings).values()), arguments))


def run(settings: Settings) -> dict[str, Any]:
    """
    Train, make priors, train again, compare. Finished parts in the output folder are not done again.

    Returns:
        What `metrics.json` holds: `results` for `plain` and `guided`, and the settings and versions behind them.

    Raises:
        InputError: something given cannot be used, or the folder holds another run.
    """
    training_args = settings.training
    _check(settings.model, training_args)
    splits, oddities = read_defect_dataset(settings.data)
    output_dir = Path(training_args.output_dir)
    folds = _prior_folds(splits["train"], settings)
    stored = _stored(settings, splits)
    image_processor = image_processor_of(settings.model)
    names = splits["train"].features["label"].names
    # Before the folder is claimed for it.
    try_model(settings.model, settings.prior, names, defect_free_label(settings.data))
    with training_args.main_process_first(desc="claiming the output folder"):
        claim(output_dir, stored)
    finished = output_dir / "metrics.json"
    if finished.exists():
        report = json.loads(finished.read_text())
        if training_args.process_index == 0:
            print(f"{output_dir} holds this very run, finished.\n")
            _say_results(report, output_dir)
            _drop_intermediate(output_dir)  # a kill may have left it
            _push_where_asked(settings)
        return report
    if training_args.process_index == 0:
        held = lock(output_dir)
        _say_what_is_there(splits)

    numbered = splits["train"].add_column("index", list(range(len(splits["train"]))))
    started = time.perf_counter()
    collator, pixels = _collator_and_pixels(numbered, image_processor, settings)
    once_seconds = _noted(output_dir / "once_seconds.json", time.perf_counter() - started, training_args)

    def train_phase(phase: str, rows: Dataset) -> float:
        rows = _trained_on(rows, pixels, settings)
        return _train_phase(phase, rows, splits.get("validation"), collator, image_processor, settings)

    primary_seconds = once_seconds + train_phase("primary", numbered)
    fold_seconds = sum(
        train_phase(f"primary_fold{fold}", numbered.select(rest)) for fold, (rest, _) in enumerate(folds)
    )
    started = time.perf_counter()
    priors = _make_priors(output_dir, splits["train"], folds, image_processor, settings)
    prior_seconds = _noted(output_dir / "priors_seconds.json", time.perf_counter() - started, training_args)
    train = with_priors(numbered, priors)
    final_seconds = train_phase("final", train)
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
    results = {arm: _judge(judged[arm], splits["test"], models[arm].config, settings) for arm in models}
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
            "pictures or features made once": once_seconds,
            "primary": primary_seconds - once_seconds,
            "primaries of the folds": fold_seconds,
            "priors": prior_seconds,
            "final": final_seconds,
        },
        "pictures": {name: len(split) for name, split in splits.items()},
        "oddities": [asdict(one) for one in oddities],
        "settings": without_paths(stored),  # this is shared; run.json keeps them
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
        lambda pictures: _maps_of(pictures, models["plain"], image_processor, settings),
        models["guided"].config,
    )
    shutil.copy(output_dir / "grid_test.png", output_dir / "final")  # the card shows it
    write_card(output_dir, report)
    write_json(finished, report)
    _drop_intermediate(output_dir)
    _say_results(report, output_dir)
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
        _repo(training_args),
        settings.licenses,
        private=training_args.hub_private_repo is not False,  # None, too: nothing is public that was not meant to be
        token=training_args.hub_token,
        revision=training_args.hub_revision,
    )
    print(f"Pushed in one commit: {address}")


def _repo(training_args: KGLTrainingArguments) -> str:
    return training_args.hub_model_id or Path(training_args.output_dir).absolute().name


def _drop_intermediate(output_dir: Path) -> None:
    """Resized pictures and what frozen stages gave are large, and of no use once both phases are done."""
    for path in output_dir.glob("frozen_features.npy*"):
        path.unlink()
    if (output_dir / PIXELS).exists():
        shutil.rmtree(output_dir / PIXELS)


def _check(model_args: ModelArguments, training_args: KGLTrainingArguments) -> None:
    if training_args.output_dir in (None, "trainer_output"):  # the latter is what transformers puts in its place
        raise InputError("--output_dir: name a folder for the run.")
    if (model_args.backbone is None) == (model_args.backbone_config is None):
        raise InputError("Give either --backbone (pretrained) or --backbone_config (from scratch).")
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "learning_rate", "num_train_epochs"):
        if vars(training_args)[name] <= 0:
            raise InputError(f"--{name} {vars(training_args)[name]}: it must be above 0.")
    if training_args.eval_strategy != "no":
        raise InputError("--eval_strategy: validation pictures are used once, at the end, for the operating point.")
    if training_args.save_strategy == SaveStrategy.BEST or training_args.load_best_model_at_end:
        raise InputError(
            "--save_strategy best, --load_best_model_at_end: the last weights are taken, none are chosen."
        )
    if training_args.save_only_model:
        raise InputError("--save_only_model: a checkpoint without the optimizer's state cannot be resumed from.")
    if training_args.resume_from_checkpoint is not None:
        raise InputError("--resume_from_checkpoint: leave it out; the same --output_dir resumes by itself.")
    if training_args.push_to_hub:
        check_repo_id(_repo(training_args))
        if training_args.hub_strategy in (HubStrategy.CHECKPOINT, HubStrategy.ALL_CHECKPOINTS):
            raise InputError("--hub_strategy: checkpoints are not pushed; the finished run is, once.")
    training_args.check_pooling(model_args.pooling)
    try:
        for reporter in get_reporting_integration_callbacks(training_args.report_to):
            reporter()
    except RuntimeError as error:
        raise InputError(f"--report_to {' '.join(training_args.report_to)}: {error}") from error
    if training_args.n_gpu > 1:
        raise InputError(
            f"{training_args.n_gpu} GPUs in one process: start with accelerate launch, one process a GPU."
        )


def _collator_and_pixels(
    train: Dataset, image_processor: BaseImageProcessor, settings: Settings
) -> tuple[DefectCollator | FrozenFeatureCollator, Dataset | None]:
    """The collator, and the training pictures resized once where it reads those."""
    training_args, model_args = settings.training, settings.model
    output_dir = Path(training_args.output_dir)
    augmentation = PairedAugmentation() if model_args.augment else None
    if model_args.freeze_stages == 0:
        pixels = None
        if settings.data.decode_once:
            with training_args.main_process_first(desc="resizing"):
                pixels = resized_pixels(train, image_processor, output_dir)
        return DefectCollator(image_processor, augmentation), pixels
    model = _initial_model(train, settings)
    with training_args.main_process_first(desc="frozen stages"):
        features = write_frozen_features(
            output_dir / "frozen_features.npy",
            train,
            model.to(training_args.device),
            image_processor,
            model_args.freeze_stages,
            model_args.frozen_views,
            augmentation,
        )
    size = (model_args.image_height, model_args.image_width)
    return FrozenFeatureCollator(features, size, augmentation), None


def _initial_model(train: Dataset, settings: Settings) -> KGLForImageClassification:
    names = train.features["label"].names
    return initial_model(settings.model, names, defect_free_label(settings.data), settings.training.seed)


def _trained_on(rows: Dataset, pixels: Dataset | None, settings: Settings) -> Dataset:
    """The columns that a phase reads: pictures are decoded for nothing where it reads something else."""
    if pixels is None and settings.model.freeze_stages == 0:
        return rows
    wanted = ("index", "label", "digest", "saliency_prior", "prior_weight")
    rows = rows.select_columns([name for name in wanted if name in rows.column_names])
    if pixels is None:
        return rows
    return concatenate_datasets([rows, pixels.select(rows["index"])], axis=1)


def _train_phase(
    phase: str,
    train: Dataset,
    validation: Dataset | None,
    collator: DefectCollator | FrozenFeatureCollator,
    image_processor: BaseImageProcessor,
    settings: Settings,
) -> float:
    """Train one classifier into `output_dir/phase`, from its last checkpoint where there is one; seconds it took."""
    training_args, model_args = settings.training, settings.model
    folder = Path(training_args.output_dir) / phase
    finished = folder / "phase.json"
    title = {"primary": "Phase 1, the primary classifier", "final": "Phase 2, the guided classifier"}.get(
        phase, f"Phase 1, the primary classifier of prior fold {phase.removeprefix('primary_fold')}"
    )
    if finished.exists():
        if training_args.process_index == 0:
            print(f"{title}: finished before.")
        return json.loads(finished.read_text())["seconds"]
    args = copy.copy(training_args)
    args.output_dir = str(folder)
    args.save_total_limit = None  # WholeCheckpoints deletes the old ones
    args.push_to_hub = False  # the finished run is pushed, not what the Trainer would
    args.run_name = f"{training_args.run_name or Path(training_args.output_dir).name}-{phase}"
    model = _initial_model(train, settings)
    trainer_class = KnowledgeGuidedTrainer if phase == "final" else ClassificationTrainer
    trainer = trainer_class(
        model=model,
        args=args,
        train_dataset=train,
        data_collator=collator,
        processing_class=image_processor,
    )
    checkpoint, before = last_whole_checkpoint(folder)
    if trainer.is_world_process_zero():
        print(f"{title}: {f'goes on from {checkpoint}' if checkpoint else folder}")
    trainer.add_callback(WholeCheckpoints(training_args.save_total_limit, before))
    started = time.perf_counter()
    with stages_bypassed(model, model_args.freeze_stages) if model_args.freeze_stages else nullcontext():
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    seconds = before + time.perf_counter() - started
    if not all(parameter.isfinite().all() for parameter in model.parameters()):
        raise InputError(f"Training diverged in the {phase} phase: weights are not finite. Lower --learning_rate.")
    if trainer.is_world_process_zero():
        trainer.accelerator.unwrap_model(model, keep_fp32_wrapper=False)
        settled = _settle(model, validation, image_processor, settings)
        model.save_pretrained(folder)
        image_processor.save_pretrained(folder)
        trainer.state.save_to_json(str(folder / "trainer_state.json"))
        write_json(finished, {"seconds": seconds, "steps": trainer.state.global_step, "validation": settled})
    trainer.accelerator.wait_for_everyone()
    return seconds


def _settle(
    model: KGLForImageClassification,
    validation: Dataset | None,
    image_processor: BaseImageProcessor,
    settings: Settings,
) -> dict[str, Any] | None:
    """Give a trained model the temperature and the operating point that validation pictures ask for."""
    if not validation:
        return None
    predictions = predict(model, validation, image_processor, settings.training.per_device_eval_batch_size)
    labels = np.asarray(validation["label"])
    settled = settle(predictions.probabilities, labels, model.config.defect_free_id, settings.operating)
    model.config.temperature = settled["temperature"]
    model.config.operating_point = settled["operating_point"]
    return settled


def _judge(predictions: Predictions, test: Dataset, config: KGLConfig, settings: Settings) -> dict[str, Any]:
    """A model's figures on the test pictures."""
    size = (settings.model.image_height, settings.model.image_width)
    results = evaluate_predictions(predictions, test, config.defect_free_id, size)
    labels = np.asarray(test["label"][:])
    results["accuracy_interval"] = wilson_interval(predictions.probabilities.argmax(axis=1) == labels)
    results["ece"] = expected_calibration_error(predictions.probabilities, labels)
    if config.temperature != 1:
        uncalibrated = tempered(predictions.probabilities, 1 / config.temperature)
        results["ece_uncalibrated"] = expected_calibration_error(uncalibrated, labels)
    if config.operating_point is not None:
        scores = defect_scores(predictions.probabilities, config.defect_free_id)
        results |= decision_rates(labels != config.defect_free_id, scores, config.threshold)
    return results


def _prior_folds(train: Dataset, settings: Settings) -> list[tuple[np.ndarray, np.ndarray]]:
    """Which training pictures each fold's primary learns from, and which it makes the priors of; none by default."""
    if settings.prior.prior_folds is None:
        return []
    return group_folds(train, settings.prior.prior_folds, settings.data.split_seed, "--prior_folds")


def _make_priors(
    output_dir: Path,
    train: Dataset,
    folds: list[tuple[np.ndarray, np.ndarray]],
    image_processor: BaseImageProcessor,
    settings: Settings,
) -> Dataset:
    """The priors of all training pictures at `output_dir/priors`, each fold's by the primary that did not see it."""

    training_args = settings.training

    def priors_of(phase: str, pictures: Dataset, folder: Path) -> Dataset:
        model = KGLForImageClassification.from_pretrained(output_dir / phase).to(training_args.device)
        batch_size = training_args.per_device_eval_batch_size
        return write_saliency_priors(pictures, model, image_processor, folder, batch_size, settings.prior)

    together = output_dir / "priors"
    if not folds:
        return priors_of("primary", train, together)
    parts = []
    for fold, (_, held_out) in enumerate(folds):
        phase = f"primary_fold{fold}"
        parts.append(priors_of(phase, train.select(held_out), output_dir / phase / "priors"))
    in_order = np.argsort(np.concatenate([held_out for _, held_out in folds]))
    with training_args.main_process_first(desc="all folds' priors"):
        if not together.exists():
            save_whole(concatenate_datasets(parts).select(in_order), together)
    return load_from_disk(together)


def _noted(path: Path, seconds: float, training_args: KGLTrainingArguments) -> float:
    """The seconds of the attempt that finished something; doing it again finds it done."""
    with training_args.main_process_first(desc="noting the time"):
        if not path.exists():
            write_json(path, seconds)
    return json.loads(path.read_text())


def _stored(settings: Settings, splits: DatasetDict) -> dict[str, Any]:
    """All that decides what comes out of a run."""
    training = {name: value for name, value in settings.training.to_dict().items() if name not in _OPERATIONAL}
    data = asdict(settings.data) | {f"{name}_pictures": fingerprint(split) for name, split in splits.items()}
    stored = {
        "model": asdict(settings.model),
        "data": data,
        "prior": asdict(settings.prior),
        "operating": asdict(settings.operating),
        "training": training
        | {
            "processes": settings.training.world_size,
            "mixed_precision": os.environ.get("ACCELERATE_MIXED_PRECISION", "no"),  # --bf16 or accelerate launch's
        },
    }
    return json.loads(json.dumps(stored, default=str))


def _say_what_is_there(splits: DatasetDict) -> None:
    names = splits["train"].features["label"].names
    for split_name, split in splits.items():
        labels = split["label"]
        counts = ", ".join(f"{labels.count(index)} {name}" for index, name in enumerate(names))
        print(f"{split_name}: {len(split)} pictures ({counts})")


def _say_results(report: dict[str, Any], output_dir: Path) -> None:
    print(f"\n{comparison_table(report['results'])}\n")
    print(
        f"On {report['pictures']['test']} held-out pictures; the guided classifier's seconds include the plain one's, "
        f"which it needs. See report.html, metrics.json and predictions.csv in {output_dir}."
    )


def _log_of(phase: Path) -> list[dict[str, float]]:
    return json.loads((phase / "trainer_state.json").read_text())["log_history"]


def _maps_of(
    pictures: Dataset, primary: KGLForImageClassification, image_processor: BaseImageProcessor, settings: Settings
) -> np.ndarray:
    """The priors that pictures would have had in training, `(N, h, w)` in 0..1."""
    unmarked = without_masks(pictures.remove_columns("digest"))
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
    pictures = {"train": (train, 6, "Training pictures"), "test": (test, 8, "Held-out pictures")}
    for name, (split, count, title) in pictures.items():
        rows = split.select(grid_rows(split, count, models["plain"].config.defect_free_label))
        plain, guided = (predict(model, rows, image_processor, count) for model in models.values())
        save_grid(output_dir / f"grid_{name}.png", rows, plain, guided, size, title)


def main() -> None:
    """The command `kgl-train`."""
    run_command("kgl-train", lambda: run(parse(sys.argv[1:])))


if __name__ == "__main__":
    main()
