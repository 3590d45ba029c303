"""The two-phase job: a primary classifier, its priors, a guided classifier, and how the two compare."""

from __future__ import annotations

import copy
import json
import os
import platform
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import accelerate
import datasets
import numpy as np
import torch
import transformers
from datasets import Dataset, DatasetDict, concatenate_datasets, load_from_disk
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import BaseImageProcessor, set_seed
from transformers.image_utils import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.integrations import get_reporting_integration_callbacks
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
from transformers.trainer_utils import SaveStrategy
from transformers.utils import logging

from kgl.augmentation import PairedAugmentation
from kgl.collator import DefectCollator
from kgl.commands import parse_settings, run_command
from kgl.configuration_kgl import KGLConfig
from kgl.data import DataArguments, defect_free_label, load_defect_dataset
from kgl.errors import InputError
from kgl.evaluation import evaluate_predictions, predict
from kgl.frozen import FrozenFeatureCollator, check_freezable, stages_bypassed, write_frozen_features
from kgl.modeling_kgl import KGLForImageClassification
from kgl.prior import PriorArguments, try_method, with_priors, write_saliency_priors
from kgl.report import comparison_table, grid_rows, save_grid
from kgl.runs import WholeCheckpoints, claim, last_whole_checkpoint, lock, save_whole, write_json
from kgl.schema import fingerprint
from kgl.splits import group_folds
from kgl.trainer import ClassificationTrainer, KGLTrainingArguments, KnowledgeGuidedTrainer


@dataclass
class ModelArguments:
    """The classifier, the same in both phases."""

    backbone: str | None = field(
        default=None, metadata={"help": "A pretrained backbone: a folder, a Hub id, or timm/NAME."}
    )
    backbone_config: dict | str | None = field(
        default=None, metadata={"help": "Or the settings of one to train from scratch, as JSON with its model_type."}
    )
    out_features: list[str] | None = field(
        default=None, metadata={"help": "Backbone stages to use, finest first (stage2 stage3); the last by default."}
    )
    fusion_size: int = field(default=256, metadata={"help": "Channels that several stages are projected to."})
    pooling: str = field(
        default="avg_max",
        metadata={
            "help": "What the classifier sees of features F and saliency H: avg_max (the paper's), attention, topk or "
            "saliency; see KGLConfig.",
            "choices": ["avg_max", "attention", "topk", "saliency"],
        },
    )
    detach_saliency: bool = field(
        default=False, metadata={"help": "Stop the classification gradient at the saliency logits."}
    )
    freeze_stages: int = field(
        default=0,
        metadata={
            "help": "Leave the backbone's stem and first so many stages as they are (ResNet, ConvNeXt), and compute "
            "what they give once: an epoch takes a fraction of the time."
        },
    )
    frozen_views: int = field(
        default=8,
        metadata={"help": "With --freeze_stages: in how many ways each picture is augmented, once for all epochs."},
    )
    image_height: int = field(default=224, metadata={"help": "Pictures are resized to this height."})
    image_width: int = field(default=224, metadata={"help": "Pictures are resized to this width."})
    augment: bool = field(default=True, metadata={"help": "Flips, small moves, brightness and contrast."})


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


def parse(arguments: list[str]) -> tuple[ModelArguments, DataArguments, TrainPriorArguments, KGLTrainingArguments]:
    """`[RECIPE.yaml] [--flag value ...]` to settings; flags win over the recipe."""
    dataclasses = (ModelArguments, DataArguments, TrainPriorArguments, KGLTrainingArguments)
    return parse_settings("kgl-train", dataclasses, arguments)


def run(
    model_args: ModelArguments,
    data_args: DataArguments,
    prior_args: TrainPriorArguments,
    training_args: KGLTrainingArguments,
) -> dict[str, Any]:
    """
    Train, make priors, train again, compare. Finished parts in `training_args.output_dir` are not done again.

    Returns:
        What `metrics.json` holds: `results` for `plain` and `guided`, and the settings and versions behind them.

    Raises:
        InputError: something given cannot be used, or the folder holds another run.
    """
    _check(model_args, training_args)
    splits = load_defect_dataset(data_args)
    output_dir = Path(training_args.output_dir)
    folds = _prior_folds(splits["train"], data_args, prior_args)
    settings = _settings(model_args, data_args, prior_args, training_args, splits)
    image_processor = _image_processor(model_args)
    _try_model(
        model_args, data_args, prior_args, splits["train"].features["label"].names
    )  # before the folder is claimed for it
    with training_args.main_process_first(desc="claiming the output folder"):
        claim(output_dir, settings)
    finished = output_dir / "metrics.json"
    if finished.exists():
        report = json.loads(finished.read_text())
        if training_args.process_index == 0:
            print(f"{output_dir} holds this very run, finished.\n")
            _say_results(report, output_dir)
            _drop_features(output_dir)  # a kill may have left them
        return report
    if training_args.process_index == 0:
        held = lock(output_dir)
        _say_what_is_there(splits)

    started = time.perf_counter()
    collator = _collator(splits["train"], image_processor, model_args, data_args, training_args)
    frozen_seconds = _noted(output_dir / "frozen_seconds.json", time.perf_counter() - started, training_args)

    def train_phase(phase: str, pictures: Dataset) -> float:
        if model_args.freeze_stages > 0:  # its pictures would be decoded for nothing
            wanted = ("index", "label", "digest", "saliency_prior", "prior_weight")
            pictures = pictures.select_columns([name for name in wanted if name in pictures.column_names])
        return _train_phase(phase, pictures, collator, image_processor, model_args, data_args, training_args)

    numbered = splits["train"].add_column("index", list(range(len(splits["train"]))))
    primary_seconds = frozen_seconds + train_phase("primary", numbered)
    primary = KGLForImageClassification.from_pretrained(output_dir / "primary").to(training_args.device)
    fold_seconds = sum(
        train_phase(f"primary_fold{fold}", numbered.select(rest)) for fold, (rest, _) in enumerate(folds)
    )
    started = time.perf_counter()
    priors = _make_priors(output_dir, splits["train"], folds, image_processor, prior_args, training_args)
    prior_seconds = _noted(output_dir / "priors_seconds.json", time.perf_counter() - started, training_args)
    train = with_priors(numbered, priors)
    final_seconds = train_phase("final", train)
    if training_args.process_index > 0:
        return {}

    final = KGLForImageClassification.from_pretrained(output_dir / "final").to(training_args.device)
    results = {}
    size = (model_args.image_height, model_args.image_width)
    for arm, model in (("plain", primary), ("guided", final)):
        predictions = predict(model, splits["test"], image_processor, training_args.per_device_eval_batch_size)
        results[arm] = evaluate_predictions(predictions, splits["test"], model.config.defect_free_id, size)
    results["plain"]["seconds"] = primary_seconds
    results["guided"]["seconds"] = primary_seconds + fold_seconds + prior_seconds + final_seconds
    _draw(output_dir, splits, train, primary, final, image_processor, size)
    report = {
        "results": results,
        "seconds": {
            "primary": primary_seconds,
            "primaries of the folds": fold_seconds,
            "priors": prior_seconds,
            "final": final_seconds,
        },
        "pictures": {name: len(split) for name, split in splits.items()},
        "settings": settings,
        "versions": {
            "python": platform.python_version(),
            **{module.__name__: module.__version__ for module in (torch, transformers, datasets, accelerate)},
        },
    }
    write_json(finished, report)
    _drop_features(output_dir)
    _say_results(report, output_dir)
    held.release()
    return report


def _drop_features(output_dir: Path) -> None:
    """What frozen stages gave is large, and of no use once both phases are done."""
    for path in output_dir.glob("frozen_features.npy*"):
        path.unlink()


def _check(model_args: ModelArguments, training_args: KGLTrainingArguments) -> None:
    if training_args.output_dir in (None, "trainer_output"):  # the latter is what transformers puts in its place
        raise InputError("--output_dir: name a folder for the run.")
    if (model_args.backbone is None) == (model_args.backbone_config is None):
        raise InputError("Give either --backbone (pretrained) or --backbone_config (from scratch).")
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "learning_rate", "num_train_epochs"):
        if vars(training_args)[name] <= 0:
            raise InputError(f"--{name} {vars(training_args)[name]}: it must be above 0.")
    if training_args.eval_strategy != "no":
        raise InputError("--eval_strategy: there is no validation split, and the test split is used once, at the end.")
    if training_args.save_strategy == SaveStrategy.BEST or training_args.load_best_model_at_end:
        raise InputError("--save_strategy best and --load_best_model_at_end need a validation split; there is none.")
    if training_args.save_only_model:
        raise InputError("--save_only_model: a checkpoint without the optimizer's state cannot be resumed from.")
    if training_args.resume_from_checkpoint is not None:
        raise InputError("--resume_from_checkpoint: leave it out; the same --output_dir resumes by itself.")
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


def _build_model(model_args: ModelArguments, data_args: DataArguments, names: list[str]) -> KGLForImageClassification:
    config = {
        "id2label": dict(enumerate(names)),
        "label2id": {name: index for index, name in enumerate(names)},
        "defect_free_label": defect_free_label(data_args),
        "fusion_size": model_args.fusion_size,
        "pooling": model_args.pooling,
        "detach_saliency": model_args.detach_saliency,
    }
    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # a backbone's checkpoint holds more than the backbone, which needs no report
    try:
        if model_args.backbone is not None:
            return KGLForImageClassification.from_backbone(
                model_args.backbone, out_features=model_args.out_features, **config
            )
        backbone_config = model_args.backbone_config
        if isinstance(backbone_config, str):
            backbone_config = json.loads(backbone_config)
        if model_args.out_features is not None:
            backbone_config = {**backbone_config, "out_features": model_args.out_features}
        return KGLForImageClassification(KGLConfig(backbone_config=backbone_config, **config))
    except (ImportError, OSError, SafetensorError, StrictDataclassError, TypeError, ValueError) as error:
        option = "--backbone" if model_args.backbone is not None else "--backbone_config"
        message = " ".join(str(error).split())
        raise InputError(f"{option} {model_args.backbone or model_args.backbone_config}: {message}") from error
    finally:
        logging.set_verbosity(verbosity)


@torch.no_grad()
def _try_model(
    model_args: ModelArguments, data_args: DataArguments, prior_args: TrainPriorArguments, names: list[str]
) -> None:
    """One blank picture through an untrained model, so that what cannot work is known before anything is written."""
    size = (model_args.image_height, model_args.image_width)
    if min(size) < 1:
        raise InputError(f"--image_height {size[0]} --image_width {size[1]}: pictures have at least one pixel.")
    model = _build_model(model_args, data_args, names).eval()
    if model_args.freeze_stages != 0:
        check_freezable(model, model_args.freeze_stages)
    if model_args.frozen_views < 1:
        raise InputError(f"--frozen_views {model_args.frozen_views}: it must be at least 1.")
    try:
        model(torch.zeros(1, 3, *size))
    except (RuntimeError, ValueError) as error:
        raise InputError(f"The backbone cannot take pictures of {size[0]} x {size[1]} pixels: {error}") from error
    noise = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))  # a blank picture hides differences
    try_method(noise, model, prior_args)


def _image_processor(model_args: ModelArguments) -> BaseImageProcessor:
    """Resizing to the size asked for, and the backbone's own normalisation where it has one."""
    mean, std = IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    if model_args.backbone is not None and model_args.backbone.startswith("timm/"):
        try:
            from timm.models import get_pretrained_cfg
        except ImportError as error:
            raise InputError(f"--backbone {model_args.backbone}: it needs timm; pip install it first.") from error
        own = get_pretrained_cfg(model_args.backbone.removeprefix("timm/"))
        if own is not None:
            mean, std = own.mean, own.std
    elif model_args.backbone is not None:
        try:
            # Only the numbers: AutoImageProcessor needs torchvision in older versions of transformers.
            own, _ = BaseImageProcessor.get_image_processor_dict(model_args.backbone)
            mean, std = own["image_mean"], own["image_std"]
        except (KeyError, OSError, TypeError) as error:
            raise InputError(
                f"--backbone {model_args.backbone}: there is no such model, or no preprocessor_config.json with "
                f"image_mean and image_std in it. {' '.join(str(error).split())}"
            ) from error
    size = {"height": model_args.image_height, "width": model_args.image_width}
    return ViTImageProcessorPil(size=size, image_mean=list(mean), image_std=list(std))


def _initial_model(
    model_args: ModelArguments, data_args: DataArguments, training_args: KGLTrainingArguments, names: list[str]
) -> KGLForImageClassification:
    """The classifier both phases start from; what is drawn afterwards is the same too: they see the same batches."""
    set_seed(training_args.seed)
    return _build_model(model_args, data_args, names)


def _collator(
    train: Dataset,
    image_processor: BaseImageProcessor,
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: KGLTrainingArguments,
) -> DefectCollator | FrozenFeatureCollator:
    """Of pictures, or, where stages are frozen, of what these give for the training pictures."""
    augmentation = PairedAugmentation() if model_args.augment else None
    if model_args.freeze_stages == 0:
        return DefectCollator(image_processor, augmentation)
    model = _initial_model(model_args, data_args, training_args, train.features["label"].names)
    with training_args.main_process_first(desc="frozen stages"):
        features = write_frozen_features(
            Path(training_args.output_dir) / "frozen_features.npy",
            train,
            model.to(training_args.device),
            image_processor,
            model_args.freeze_stages,
            model_args.frozen_views,
            augmentation,
        )
    return FrozenFeatureCollator(features, (model_args.image_height, model_args.image_width), augmentation)


def _train_phase(
    phase: str,
    train: Dataset,
    collator: DefectCollator | FrozenFeatureCollator,
    image_processor: BaseImageProcessor,
    model_args: ModelArguments,
    data_args: DataArguments,
    training_args: KGLTrainingArguments,
) -> float:
    """Train one classifier into `output_dir/phase`, from its last checkpoint where there is one; seconds it took."""
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
    args.run_name = f"{training_args.run_name or Path(training_args.output_dir).name}-{phase}"
    model = _initial_model(model_args, data_args, training_args, train.features["label"].names)
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
        model.save_pretrained(folder)
        image_processor.save_pretrained(folder)
        trainer.state.save_to_json(str(folder / "trainer_state.json"))
        write_json(finished, {"seconds": seconds, "steps": trainer.state.global_step})
    trainer.accelerator.wait_for_everyone()
    return seconds


def _prior_folds(
    train: Dataset, data_args: DataArguments, prior_args: TrainPriorArguments
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Which training pictures each fold's primary learns from, and which it makes the priors of; none by default."""
    if prior_args.prior_folds is None:
        return []
    return group_folds(train, prior_args.prior_folds, data_args.split_seed, "--prior_folds")


def _make_priors(
    output_dir: Path,
    train: Dataset,
    folds: list[tuple[np.ndarray, np.ndarray]],
    image_processor: BaseImageProcessor,
    prior_args: TrainPriorArguments,
    training_args: KGLTrainingArguments,
) -> Dataset:
    """The priors of all training pictures at `output_dir/priors`, each fold's by the primary that did not see it."""

    def priors_of(phase: str, pictures: Dataset, folder: Path) -> Dataset:
        model = KGLForImageClassification.from_pretrained(output_dir / phase).to(training_args.device)
        batch_size = training_args.per_device_eval_batch_size
        return write_saliency_priors(pictures, model, image_processor, folder, batch_size, prior_args)

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


def _settings(
    model_args: ModelArguments,
    data_args: DataArguments,
    prior_args: TrainPriorArguments,
    training_args: KGLTrainingArguments,
    splits: DatasetDict,
) -> dict[str, Any]:
    """All that decides what comes out of a run."""
    training = {name: value for name, value in training_args.to_dict().items() if name not in _OPERATIONAL}
    data = asdict(data_args) | {f"{name}_pictures": fingerprint(split) for name, split in splits.items()}
    settings = {
        "model": asdict(model_args),
        "data": data,
        "prior": asdict(prior_args),
        "training": training
        | {
            "processes": training_args.world_size,
            "mixed_precision": os.environ.get("ACCELERATE_MIXED_PRECISION", "no"),  # --bf16 or accelerate launch's
        },
    }
    return json.loads(json.dumps(settings, default=str))


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
        f"which it needs. See also metrics.json and grid_*.png in {output_dir}."
    )


def _draw(
    output_dir: Path,
    splits: DatasetDict,
    train: Dataset,
    primary: KGLForImageClassification,
    final: KGLForImageClassification,
    image_processor: BaseImageProcessor,
    size: tuple[int, int],
) -> None:
    pictures = {"train": (train, 6, "Training pictures"), "test": (splits["test"], 8, "Held-out pictures")}
    for name, (split, count, title) in pictures.items():
        rows = split.select(grid_rows(split, count, primary.config.defect_free_label))
        plain, guided = (predict(model, rows, image_processor, count) for model in (primary, final))
        save_grid(output_dir / f"grid_{name}.png", rows, plain, guided, size, title)


def main() -> None:
    """The command `kgl-train`."""
    run_command("kgl-train", lambda: run(*parse(sys.argv[1:])))


if __name__ == "__main__":
    main()
