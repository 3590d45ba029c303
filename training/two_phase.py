"""The steps of the two-phase job that train or make something; each can be resumed."""

from __future__ import annotations

import copy
import json
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, concatenate_datasets, load_from_disk
from transformers import BaseImageProcessor

from ..data.image_cache import cache_resized_images
from ..data.loading import defect_free_label
from ..data.splits import group_folds
from ..data.storage import save_dataset, write_json
from ..errors import InputError
from ..evaluation.calibration import calibrate
from ..evaluation.predictions import predict
from ..knowledge.saliency_priors import write_saliency_priors
from ..modeling_kgl import KGLForImageClassification
from .augmentation import PairedAugmentation
from .callbacks import CompleteCheckpointCallback, last_complete_checkpoint
from .collator import DefectCollator
from .feature_cache import FrozenFeatureCollator, bypass_frozen_stages, cache_frozen_features
from .model_init import initial_model
from .settings import Settings
from .trainer import ClassificationTrainer, KnowledgeGuidedTrainer
from .training_args import KGLTrainingArguments


def make_collator(
    train: Dataset, image_processor: BaseImageProcessor, settings: Settings
) -> tuple[DefectCollator | FrozenFeatureCollator, Dataset | None]:
    """The collator, and the training images resized once where it reads those."""
    training_args, model_args = settings.training, settings.model
    output_dir = Path(training_args.output_dir)
    augmentation = PairedAugmentation() if model_args.augment else None
    if model_args.freeze_stages == 0:
        pixels = None
        if settings.data.decode_once:
            with training_args.main_process_first(desc="resizing"):
                pixels = cache_resized_images(train, image_processor, output_dir)
        return DefectCollator(image_processor, augmentation), pixels
    model = _initial_model(train, settings)
    with training_args.main_process_first(desc="frozen stages"):
        features = cache_frozen_features(
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


def select_training_columns(rows: Dataset, pixels: Dataset | None, settings: Settings) -> Dataset:
    """The columns that a phase reads: images are decoded for nothing where it reads something else."""
    if pixels is None and settings.model.freeze_stages == 0:
        return rows
    wanted = ("index", "label", "digest", "saliency_prior", "prior_threshold", "prior_weight")
    rows = rows.select_columns([name for name in wanted if name in rows.column_names])
    if pixels is None:
        return rows
    return concatenate_datasets([rows, pixels.select(rows["index"])], axis=1)


def train_phase(
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
    checkpoint, before = last_complete_checkpoint(folder)
    if trainer.is_world_process_zero():
        print(f"{title}: {f'goes on from {checkpoint}' if checkpoint else folder}")
    trainer.add_callback(CompleteCheckpointCallback(training_args.save_total_limit, before))
    started = time.perf_counter()
    with bypass_frozen_stages(model, model_args.freeze_stages) if model_args.freeze_stages else nullcontext():
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
    """Give a trained model the temperature and the operating point that validation images ask for."""
    if not validation:
        return None
    predictions = predict(model, validation, image_processor, settings.training.per_device_eval_batch_size)
    labels = np.asarray(validation["label"])
    settled = calibrate(predictions.probabilities, labels, model.config.defect_free_id, settings.operating)
    model.config.temperature = settled["temperature"]
    model.config.operating_point = settled["operating_point"]
    return settled


def split_prior_folds(train: Dataset, settings: Settings) -> list[tuple[np.ndarray, np.ndarray]]:
    """Which training images each fold's primary learns from, and which it makes the priors of; none by default."""
    if settings.prior.prior_folds is None:
        return []
    return group_folds(train, settings.prior.prior_folds, settings.data.split_seed, "--prior_folds")


def make_priors(
    output_dir: Path,
    train: Dataset,
    folds: list[tuple[np.ndarray, np.ndarray]],
    image_processor: BaseImageProcessor,
    settings: Settings,
) -> Dataset:
    """The priors of all training images at `output_dir/priors`, each fold's by the primary that did not see it."""

    training_args = settings.training

    def priors_of(phase: str, images: Dataset, folder: Path) -> Dataset:
        model = KGLForImageClassification.from_pretrained(output_dir / phase).to(training_args.device)
        batch_size = training_args.per_device_eval_batch_size
        return write_saliency_priors(images, model, image_processor, folder, batch_size, settings.prior)

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
            save_dataset(concatenate_datasets(parts).select(in_order), together)
    return load_from_disk(together)


def load_or_save_seconds(path: Path, seconds: float, training_args: KGLTrainingArguments) -> float:
    """The seconds of the attempt that finished something; doing it again finds it done."""
    with training_args.main_process_first(desc="noting the time"):
        if not path.exists():
            write_json(path, seconds)
    return json.loads(path.read_text())


__all__ = [
    "load_or_save_seconds",
    "make_collator",
    "make_priors",
    "select_training_columns",
    "split_prior_folds",
    "train_phase",
]
