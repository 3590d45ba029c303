"""The steps of the two-phase job that train or make something; a stopped run resumes each of them."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets, load_from_disk
from transformers import BaseImageProcessor, PrinterCallback, ProgressCallback, TrainerState, set_seed

from ..data.host_folders import find_writers, send_to_hosts, writer_first
from ..data.image_cache import cache_resized_images
from ..data.processes import leave_process_group, share_from_main_process
from ..errors import InputError, Terminated
from ..knowledge.arguments import TrainPriorArguments
from ..knowledge.prior_columns import with_priors
from ..knowledge.priors import write_priors
from ..modeling_kgl import KGLForImageClassification
from .augmentation import PairedAugmentation
from .batch_size import halve_batches
from .callbacks import CollatorEpochCallback, ProgressBarCallback, TerminationCallback
from .checkpoints import CompleteCheckpointCallback, last_good_checkpoint
from .collator import DefectCollator
from .feature_cache import (
    FrozenFeatureCollator,
    bypass_frozen_stages,
    cache_frozen_features,
)
from .run_dir import CACHE_FOLDER, RunState
from .sharding import check_checkpoint_folders, freeze_unused, uses_fsdp
from .trainer import ClassificationTrainer, DivergedError, KnowledgeGuidedTrainer
from .training_args import KGLTrainingArguments


PRIORS_FOLDER = "priors"  # the table of priors, in the run's folder


@dataclass(frozen=True)
class Inputs:
    """
    What both phases train on.

    Attributes:
        rows: the training images, with their `index`.
        collator: turns rows into batches.
        pixels: the resized images of all rows, where the collator reads those.
        freeze_stages: how many stages are frozen; the collator then yields their features.
        seconds: that caching took.
    """

    rows: Dataset
    collator: DefectCollator | FrozenFeatureCollator
    pixels: Dataset | None = None
    freeze_stages: int = 0
    seconds: float = 0.0

    def select_columns(self, rows: Dataset) -> Dataset:
        """Return the columns that a phase reads; images that it does not read would be decoded for nothing."""
        if self.pixels is None and self.freeze_stages == 0:
            return rows
        wanted = ("index", "label", "digest", "saliency_prior", "prior_threshold", "prior_weight")
        rows = rows.select_columns([name for name in wanted if name in rows.column_names])
        return rows if self.pixels is None else concatenate_datasets([rows, self.pixels.select(rows["index"])], axis=1)


@dataclass(frozen=True)
class TrainedPhase:
    """
    A trained classifier on disk.

    Attributes:
        folder: where it is saved.
        seconds: of training, earlier attempts included.
        steps: of the optimizer.
        validation: the result of its calibration, None without validation images.
    """

    folder: Path
    seconds: float
    steps: int
    validation: dict[str, Any] | None


@dataclass(frozen=True)
class Priors:
    """The table of priors, one row per training image, and the seconds that they took."""

    table: Dataset
    seconds: float


@dataclass(frozen=True)
class Recipe:
    """
    How a classifier is trained, the same in all phases.

    Attributes:
        new_model: builds the classifier with new heads; called after seeding.
        image_processor: the classifier's.
        args: of the Trainer; `output_dir` is the run's folder.
        calibrate: sets temperature, thresholds and training range of a trained model, and returns what the run records
            of the first two.
    """

    new_model: Callable[[], KGLForImageClassification]
    image_processor: BaseImageProcessor
    args: KGLTrainingArguments
    calibrate: Callable[[KGLForImageClassification], dict[str, Any] | None]

    @property
    def output_dir(self) -> Path:
        """The run's folder."""
        return Path(self.args.output_dir)

    def initial_model(self) -> KGLForImageClassification:
        """Build the classifier that every phase starts from; later draws are the same too, so batches are."""
        set_seed(self.args.seed)
        return self.new_model()


def cache_inputs(
    train: Dataset,
    recipe: Recipe,
    state: RunState,
    *,
    phases: Sequence[str],
    augment: bool,
    freeze_stages: int,
    views: int,
    resize_once: bool,
) -> Inputs:
    """
    Cache resized images, or features of frozen stages, and return what the phases train on.

    Args:
        train: the training images.
        recipe: of the run.
        state: of the run; records the seconds as `cache`.
        phases: that train on them; where all are finished, nothing is cached.
        augment: whether training images are augmented.
        freeze_stages: how many stages are frozen.
        views: with frozen stages, augmented views cached per image.
        resize_once: without frozen stages, cache the resized images.

    Raises:
        InputError: there is no space for the cache.
    """
    started, args = time.perf_counter(), recipe.args
    rows = train.add_column("index", list(range(len(train))))
    if state.is_finished(*phases):
        return Inputs(rows, DefectCollator(recipe.image_processor), seconds=state.record("cache")["seconds"])
    augmentation = PairedAugmentation() if augment else None
    size = (recipe.image_processor.size["height"], recipe.image_processor.size["width"])
    folder = recipe.output_dir / CACHE_FOLDER
    if freeze_stages > 0:
        model = recipe.initial_model().to(args.device)
        with writer_first(recipe.output_dir):
            folder.mkdir(exist_ok=True)
            features = cache_frozen_features(
                folder / "frozen_features.npy", rows, model, recipe.image_processor, freeze_stages,
                views if augment else 1, augmentation,
            )  # fmt: skip
        inputs = Inputs(
            rows, FrozenFeatureCollator(features, size, augmentation, args.seed), freeze_stages=freeze_stages
        )
    else:
        pixels = None
        if resize_once:
            with writer_first(recipe.output_dir):
                folder.mkdir(exist_ok=True)
                pixels = cache_resized_images(rows, recipe.image_processor, folder)
        inputs = Inputs(rows, DefectCollator(recipe.image_processor, augmentation, args.seed), pixels)
    record = state.record("cache") or state.finish("cache", seconds=time.perf_counter() - started)
    return replace(inputs, seconds=record["seconds"])


def train_phase(
    phase: str,
    title: str,
    rows: Dataset,
    inputs: Inputs,
    recipe: Recipe,
    state: RunState,
) -> TrainedPhase:
    """
    Train one classifier into the run's folder `phase`, from its last checkpoint where there is one.

    Args:
        phase: `primary`, `final` or `tuned`; `final` is trained with the knowledge-guided loss.
        title: what the terminal calls it.
        rows: training rows, with priors for `final`.
        inputs: of the phase.
        recipe: of the phase.
        state: of the run; records `seconds`, `steps` and `validation` under the phase's name.

    Raises:
        InputError: training diverged, or hosts that share no folder would each keep a part of its checkpoints.
    """
    record, folder = state.record(phase), recipe.output_dir / phase
    say = recipe.args.process_index == 0
    if record is not None:
        if say:
            print(f"{title}: finished before.")
        return TrainedPhase(folder, **record)
    trainer, seconds, loss = halve_batches(
        lambda args: _train(phase, title, rows, inputs, replace(recipe, args=args), state), recipe.args, title
    )
    model, validation = trainer.full_model(), None
    if trainer.is_world_process_zero():
        model.config.has_heat_map = phase == "final"
        validation = recipe.calibrate(model)
        model.save_pretrained(folder)
        recipe.image_processor.save_pretrained(folder)
        trainer.state.save_to_json(str(folder / "trainer_state.json"))
    trainer.accelerator.wait_for_everyone()
    record = state.finish(phase, seconds=seconds, steps=trainer.state.global_step, validation=validation)
    if say:
        mean_loss = "" if loss is None else f", mean loss {loss:.3f}"
        print(f"{title}: {record['steps']} steps in {seconds:.0f} s{mean_loss}.")
    return TrainedPhase(folder, **record)


def _train(
    phase: str, title: str, rows: Dataset, inputs: Inputs, recipe: Recipe, state: RunState
) -> tuple[ClassificationTrainer, float, float | None]:
    """Return the trained Trainer, the seconds of all attempts, and the mean loss; None of a resumed training."""
    folder, say = recipe.output_dir / phase, recipe.args.process_index == 0
    model = recipe.initial_model()
    if uses_fsdp(recipe.args):
        freeze_unused(model, (recipe.image_processor.size["height"], recipe.image_processor.size["width"]))
    trainer = _trainer(phase, title, model, inputs.select_columns(rows), inputs, recipe)
    last = last_good_checkpoint(state, phase, folder)
    checkpoint = None if last is None else folder / f"checkpoint-{last['step']}"
    before = 0.0 if last is None else last["seconds"]
    if checkpoint is not None:
        _log_as_before(trainer, checkpoint)
        if say:
            print(f"{title}: resumed from {checkpoint}.")
    deletes, termination = _prepare_checkpoints(recipe, checkpoint), TerminationCallback()
    trainer.add_callback(termination)
    trainer.add_callback(CompleteCheckpointCallback(state, phase, recipe.args.save_total_limit, before, deletes))
    started = time.perf_counter()
    try:
        bypass = bypass_frozen_stages(model, inputs.freeze_stages) if inputs.freeze_stages > 0 else nullcontext()
        with termination.watching(), bypass:
            result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        trainer.check_weights()
    except DivergedError as error:
        complete = state.checkpoints(phase)
        kept = f" The last good checkpoint is {folder / 'checkpoint-'}{complete[-1]['step']}." if complete else ""
        raise InputError(
            f"Training of the {phase} classifier diverged: {error}{kept} Look at the images, or train with a lower "
            "--learning_rate into another --output_dir."
        ) from error
    if termination.stopped:
        if say:
            print(f"{title}: stopped by SIGTERM after step {trainer.state.global_step}, which is saved.")
        leave_process_group()
        raise Terminated
    mean_loss = None if checkpoint else result.training_loss  # the Trainer would count the earlier steps as 0
    return trainer, before + time.perf_counter() - started, mean_loss


def _log_as_before(trainer: ClassificationTrainer, checkpoint: Path) -> None:
    """Take the steps that a share in `--logging_steps` came to; transformers warns that it is not that number."""
    if trainer.args.logging_steps < 1:
        stored = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        trainer.args.logging_steps = stored.logging_steps


def _prepare_checkpoints(recipe: Recipe, checkpoint: Path | None) -> bool:
    """Send the checkpoint to hosts that do not share it; return whether this process deletes those of its host."""
    writers = find_writers(recipe.output_dir)
    check_checkpoint_folders(recipe.args, shared=not any(writers))
    if checkpoint is not None:
        send_to_hosts(checkpoint, writers)
    return writers[recipe.args.process_index] == recipe.args.process_index


def _trainer(
    phase: str, title: str, model: KGLForImageClassification, rows: Dataset, inputs: Inputs, recipe: Recipe
) -> ClassificationTrainer:
    args = copy.copy(recipe.args)
    args.output_dir = str(recipe.output_dir / phase)
    args.save_total_limit = None  # CompleteCheckpointCallback deletes the old ones
    args.auto_find_batch_size = False  # the Trainer's would change how many images a step sees
    args.push_to_hub = False  # the finished run is pushed, not what the Trainer would push
    args.run_name = f"{recipe.args.run_name or recipe.output_dir.name}-{phase}"
    trainer_class = KnowledgeGuidedTrainer if phase == "final" else ClassificationTrainer
    trainer = trainer_class(
        model=model,
        args=args,
        train_dataset=rows,
        data_collator=inputs.collator,
        processing_class=recipe.image_processor,
        callbacks=[ProgressBarCallback(title), CollatorEpochCallback(inputs.collator)],
        file_names=inputs.rows["file_name"][:],
    )
    for printing in (PrinterCallback, ProgressCallback):  # they print every logged value
        trainer.remove_callback(printing)
    return trainer


def run_phase_1(inputs: Inputs, recipe: Recipe, state: RunState) -> TrainedPhase:
    """Train the primary classifier."""
    return train_phase("primary", "Phase 1, primary classifier", inputs.rows, inputs, recipe, state)


def has_priors(recipe: Recipe, state: RunState) -> bool:
    """Return whether the priors of the run are made, and not deleted; all processes call it."""
    folder = recipe.output_dir / PRIORS_FOLDER
    return share_from_main_process(lambda: state.is_finished("priors") and folder.exists())


def make_priors(
    train: Dataset,
    primary: TrainedPhase,
    recipe: Recipe,
    state: RunState,
    prior_args: TrainPriorArguments,
    new_cell_model: Callable[[], KGLForImageClassification],
) -> Priors:
    """
    Make the priors of all training images at `priors` in the run's folder; those that are there are kept.

    Args:
        train: the training images.
        primary: of phase 1.
        recipe: of the run.
        state: of the run; records the seconds as `priors`.
        prior_args: how priors are made; the source is not `auto`.
        new_cell_model: returns the pretrained model with a fitted cell projection; called for priors from good parts.

    Raises:
        InputError: as [`~kgl.knowledge.priors.write_priors`].
    """
    started, args, folder = time.perf_counter(), recipe.args, recipe.output_dir / PRIORS_FOLDER
    writers = find_writers(recipe.output_dir)
    if has_priors(recipe, state):
        send_to_hosts(folder, writers)
        return Priors(load_from_disk(folder), state.record("priors")["seconds"])
    send_to_hosts(primary.folder, writers)
    cell_model = None if prior_args.prior_source == "saliency" else new_cell_model()
    model = KGLForImageClassification.from_pretrained(primary.folder).to(args.device)
    grid = model.saliency_grid((recipe.image_processor.size["height"], recipe.image_processor.size["width"]))
    table = write_priors(
        train, model, cell_model, recipe.image_processor, folder, args.per_device_eval_batch_size, prior_args, grid
    )
    record = state.record("priors") or state.finish("priors", seconds=time.perf_counter() - started)
    return Priors(table, record["seconds"])


def run_phase_2(inputs: Inputs, priors: Priors, recipe: Recipe, state: RunState) -> TrainedPhase:
    """Train the final classifier with the knowledge-guided loss."""
    rows = with_priors(inputs.rows, priors.table)
    return train_phase("final", "Phase 2, final classifier", rows, inputs, recipe, state)


__all__ = [
    "Inputs",
    "Priors",
    "Recipe",
    "TrainedPhase",
    "cache_inputs",
    "has_priors",
    "make_priors",
    "run_phase_1",
    "run_phase_2",
    "train_phase",
]
