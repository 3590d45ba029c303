"""All settings of a training job: defaults that depend on others, checks, and the ones that decide its result."""

from __future__ import annotations

import copy
import json
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, asdict, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from accelerate.data_loader import BatchSamplerShard
from datasets import DatasetDict
from torch.utils.data import BatchSampler
from transformers.integrations import get_reporting_integration_callbacks

from ..data.arguments import DataArguments, folder_name
from ..data.schema import dataset_fingerprint
from ..errors import InputError
from ..modeling_kgl import KGLForImageClassification
from .arguments import DEFAULT_STEPS, GuidanceArguments, check_repo_id
from .sharding import check_shardable, check_sharding, uses_fsdp
from .trainer_checks import check_trainer
from .training_args import KGLTrainingArguments, Settings


# Settings of TrainingArguments that change what a run computes. All of ours do, but for the ones about its folder.
_DECIDING = (
    "accelerator_config", "adam_beta1", "adam_beta2", "adam_epsilon", "bf16", "data_seed",
    "dataloader_drop_last", "dataloader_num_workers", "deepspeed", "fp16", "full_determinism",
    "gradient_accumulation_steps", "gradient_checkpointing", "ignore_data_skip", "label_smoothing_factor",
    "learning_rate", "lr_scheduler_kwargs", "lr_scheduler_type", "max_grad_norm", "max_steps", "num_train_epochs",
    "optim", "optim_args", "optim_target_modules", "per_device_train_batch_size", "seed", "tf32", "torch_compile",
    "torch_compile_backend", "torch_compile_mode", "train_sampling_strategy", "use_cpu", "warmup_steps",
    "weight_decay", *(one.name for one in fields(GuidanceArguments)),
)  # fmt: skip

# Settings of a run's record that may differ when it is resumed: the images themselves are compared by content. Records
# of earlier versions hold the last one.
UNDECIDING = (
    "data_dir", "data_file", "hub_dataset", "hub_config", "image_column", "label_column", "mask_column",
    "group_column", "split_column", "decode_once", "on_bad_image", "max_image_megapixels", "auto_find_batch_size",
)  # fmt: skip

# Settings that the fit of heads to frozen features reads; all others of training go with --fine_tune true.
_OF_FROZEN_FEATURES = ("accelerator_config", "full_determinism", "seed", "tf32", "use_cpu")
_OF_STEPS = (
    *(name for name in _DECIDING if name not in _OF_FROZEN_FEATURES), "keep_checkpoints", "logging_steps",
    "logging_strategy", "save_steps", "save_strategy", "save_total_limit",
)  # fmt: skip
_OF_TRAINED_STAGES = ("augment", "freeze_stages", "frozen_views", "fusion_size")
_OF_GUIDANCE = ("kg_lambda", "kg_form", "kg_positive_weight")

_LEAST = {
    "dataloader_num_workers": 0, "dataloader_prefetch_factor": 1, "gradient_accumulation_steps": 1, "max_grad_norm": 0,
    "weight_decay": 0,
}  # fmt: skip

_NO_EVALUATION = "validation images are used once, at the end, to calibrate"
_NO_EFFECT = "it has no effect on this job"
# Settings of TrainingArguments that are refused, with the reason; the help does not show them.
UNSUPPORTED = {
    **dict.fromkeys(
        ("eval_strategy", "eval_steps", "eval_delay", "eval_on_start", "eval_accumulation_steps"), _NO_EVALUATION
    ),
    **dict.fromkeys(
        ("eval_do_concat_batches", "eval_use_gather_object", "prediction_loss_only", "batch_eval_metrics",
         "include_for_metrics", "do_train", "do_eval", "do_predict", "label_names", "length_column_name",
         "neftune_noise_alpha", "use_liger_kernel", "liger_kernel_config", "use_cache", "bf16_full_eval",
         "fp16_full_eval", "include_num_input_tokens_seen", "hub_always_push"),
        _NO_EFFECT,
    ),
    "load_best_model_at_end": "the last weights are taken, none are selected",
    "metric_for_best_model": "the last weights are taken, none are selected",
    "greater_is_better": "the last weights are taken, none are selected",
    "save_only_model": "a checkpoint without the optimizer's state cannot be resumed",
    "resume_from_checkpoint": "leave it out; the same --output_dir resumes from its last checkpoint",
    "save_on_each_node": "the first host saves, and hosts that do not share its folder are sent what they need",
    "hub_strategy": "checkpoints are not pushed; the finished run is, once",
    "parallelism_config": "only the images are shared among processes",
    "remove_unused_columns": "the collator needs the columns that the model does not name",
}  # fmt: skip


def default_output_dir(data: DataArguments) -> str:
    """Return `runs/NAME`, named after the dataset."""
    source = data.hub_dataset or data.data_file or data.data_dir or data.dataset or "run"
    name = Path(source).stem if data.data_file == source else folder_name(Path(source).expanduser().resolve())
    return str(Path("runs") / (re.sub(r"[^\w.-]+", "_", name) or "run"))


def check_settings(settings: Settings) -> None:
    """
    Check settings across groups, before anything is read or written.

    Raises:
        InputError: settings that are out of range, not supported, or exclude each other.
    """
    training_args = settings.training
    defaults = {one.name: one for one in fields(training_args)}
    for name, reason in UNSUPPORTED.items():
        if name in defaults and vars(training_args)[name] != _default_of(defaults[name]):
            raise InputError(f"--{name}: {reason}.")
    if not settings.model.fine_tune:
        _check_frozen(settings)
    elif settings.model.tunes_stage:
        _check_tuned(settings)
    if settings.data.streaming:
        _check_streaming(settings)
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "learning_rate", "num_train_epochs"):
        if vars(training_args)[name] <= 0:
            raise InputError(f"--{name} {vars(training_args)[name]}: it must be above 0.")
    _check_numbers(training_args)
    check_sharding(training_args)
    if training_args.fp16 and training_args.device.type == "cpu":
        raise InputError("--fp16 true: it needs a GPU; on a CPU use --bf16 true --use_cpu true.")
    if training_args.save_strategy == "best":
        raise InputError("--save_strategy best: the last weights are taken, none are selected.")
    if training_args.push_to_hub:
        check_repo_id(repository_name(training_args))
    training_args.check_devices()
    try:
        for reporter in get_reporting_integration_callbacks(training_args.report_to):
            reporter()
    except (RuntimeError, ValueError) as error:
        raise InputError(f"--report_to {' '.join(training_args.report_to)}: {error}") from error


def _check_frozen(settings: Settings) -> None:
    """Refuse settings without an effect on heads that are fitted to frozen features."""
    training = settings.training
    if uses_fsdp(training):
        raise InputError(
            "FSDP (--fsdp or accelerate launch --use_fsdp) goes with --fine_tune true: by default the heads are "
            "fitted to frozen features, without steps."
        )
    # What KGLTrainingArguments fills in where it is not given.
    filled = {"gradient_checkpointing": False, "max_steps": DEFAULT_STEPS, "num_train_epochs": 1.0}
    if training.max_steps == -1:  # --num_train_epochs was given
        filled |= {"max_steps": -1, "num_train_epochs": None}
    reason = "goes with --fine_tune true: by default the heads are fitted to frozen features, without steps."
    _refuse_changed(training, _OF_STEPS, reason, filled)
    _refuse_changed(settings.model, _OF_TRAINED_STAGES, reason)


def _check_tuned(settings: Settings) -> None:
    """Refuse settings without an effect on a stage that is fine-tuned on image labels."""
    reason = "goes with --head avg_max: with --head stages, image labels alone tune a stage."
    _refuse_changed(settings.training, _OF_GUIDANCE, reason)
    _refuse_changed(settings.model, ("fusion_size",), reason)


def _check_streaming(settings: Settings) -> None:
    """Refuse settings that keep something of every image on the disk, or draw images from anywhere."""
    if settings.model.tunes_stage:
        raise InputError(
            "--fine_tune true with --head stages caches features of all images on the disk, which --streaming true is "
            "to avoid; give --head avg_max, or leave --fine_tune out."
        )
    if settings.model.freeze_stages:
        raise InputError(
            f"--freeze_stages {settings.model.freeze_stages}: it caches features of all images on the disk, which "
            "--streaming true is to avoid; leave it out."
        )
    if settings.training.balanced_sampling:
        raise InputError(
            "--balanced_sampling true draws images from anywhere, and --streaming true reads shard by shard; take "
            "--class_weights balanced."
        )


def _refuse_changed(
    arguments: Any, names: Sequence[str], reason: str, filled: Mapping[str, Any] = MappingProxyType({})
) -> None:
    """Refuse settings that have another value than their default, or than the one filled in where none is given."""
    defaults = {one.name: _default_of(one) for one in fields(arguments)} | filled
    for name in names:
        if vars(arguments)[name] != defaults[name]:
            raise InputError(f"--{name} {reason}")


def _check_numbers(training_args: KGLTrainingArguments) -> None:
    for name in ("seed", "data_seed"):
        seed = vars(training_args)[name]
        if seed is not None and not 0 <= seed < 2**32:
            raise InputError(f"--{name} {seed}: it must lie in 0..2**32 - 1.")
    for name, value in vars(training_args).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"--{name} {value}: give a finite number.")
    for name, least in _LEAST.items():
        value = vars(training_args)[name]
        if value is not None and value < least:
            raise InputError(f"--{name} {value}: it must be at least {least}.")
    if not 0 <= training_args.label_smoothing_factor < 1:
        raise InputError(f"--label_smoothing_factor {training_args.label_smoothing_factor}: it must lie in 0..1.")
    if "num_steps" in (training_args.accelerator_config.gradient_accumulation_kwargs or {}):
        raise InputError("--accelerator_config: give the number of steps by --gradient_accumulation_steps.")
    if training_args.to_dict().get("train_sampling_strategy", "random") not in ("random", "sequential"):
        raise InputError("--train_sampling_strategy: images have no length to group by; choose random or sequential.")


def check_trainable(
    training_args: KGLTrainingArguments, model: KGLForImageClassification, size: tuple[int, int], count: int
) -> None:
    """
    Check that the Trainer can train this model on so many images, before anything is written.

    Args:
        training_args: of the job.
        model: untrained.
        size: height and width of the images.
        count: of the training images.

    Raises:
        InputError: settings of the Trainer, gradient checkpointing or batches that cannot be used.
    """
    if training_args.gradient_checkpointing and not model.supports_gradient_checkpointing:
        raise InputError(
            f"--gradient_checkpointing true: the backbone {model.config.backbone_config.model_type} does not support "
            "it; leave it out."
        )
    check_shardable(training_args, model)
    check_trainer(training_args, model, count)
    _check_batches(training_args, model, size, count)


def _check_batches(
    training_args: KGLTrainingArguments, model: KGLForImageClassification, size: tuple[int, int], count: int
) -> None:
    batch_size = training_args.per_device_train_batch_size
    sizes = _batch_sizes(training_args, count)
    if not sizes:
        together = batch_size * (1 if training_args.accelerator_config.split_batches else training_args.world_size)
        raise InputError(
            f"--dataloader_drop_last true: {count} training images are less than one batch of {together}; "
            "lower --per_device_train_batch_size or leave it out."
        )
    if 1 in sizes:
        try:
            with torch.no_grad():
                copy.deepcopy(model).train()(torch.zeros(1, 3, *size))
        except ValueError as error:
            raise InputError(
                f"--per_device_train_batch_size {batch_size}: a batch holds a single image, which batch normalisation "
                f"cannot take on features of 1 x 1 cells; choose another batch size or larger images. ({error})"
            ) from error


def _batch_sizes(training_args: KGLTrainingArguments, count: int) -> set[int]:
    """Return the sizes of the batches that processes train on, as accelerate shares so many images among them."""
    batch_size, processes = training_args.per_device_train_batch_size, training_args.world_size
    config, together = training_args.accelerator_config, batch_size * processes
    few = min(count, 2 * together + count % together)  # whole rounds are alike
    batches = BatchSampler(range(few), batch_size, training_args.dataloader_drop_last)
    if processes == 1:
        return {len(batch) for batch in batches}
    shares = (
        BatchSamplerShard(batches, processes, index, config.split_batches, config.even_batches)
        for index in range(processes)
    )
    return {len(batch) for share in shares for batch in share}


def _default_of(one: Field) -> Any:
    return one.default_factory() if one.default is MISSING else one.default


def installed_versions() -> dict[str, str]:
    """Return the versions of kgl, Python and the libraries that a run depends on."""
    libraries = ("torch", "transformers", "datasets", "accelerate")
    try:
        own = version("kgl-defects")
    except PackageNotFoundError:  # imported from a checkout
        own = "not installed"
    return {
        "kgl": own,
        "python": platform.python_version(),
        **{library: version(library) for library in libraries},
    }


def repository_name(training_args: KGLTrainingArguments) -> str:
    """Return the repository that a run is pushed to: `--hub_model_id`, or the output folder's name."""
    return training_args.hub_model_id or Path(training_args.output_dir).absolute().name


def run_settings(settings: Settings, splits: DatasetDict) -> dict[str, dict[str, Any]]:
    """Return the settings and the data of a run as JSON values; all but [`UNDECIDING`] ones decide its result."""
    training = {name: value for name, value in settings.training.to_dict().items() if name in _DECIDING}
    data = {f"{name}_images": dataset_fingerprint(split) for name, split in splits.items()}
    stored = {
        "model": asdict(settings.model),
        "data": asdict(settings.data) | data,
        "prior": asdict(settings.prior),
        "operating": asdict(settings.operating),
        "training": training
        | {
            "processes": settings.training.world_size,
            **({"fsdp": True} if uses_fsdp(settings.training) else {}),  # its checkpoints are of another kind
            "mixed_precision": os.environ.get("ACCELERATE_MIXED_PRECISION", "no"),  # --bf16 or accelerate launch's
        },
    }
    return json.loads(json.dumps(stored, default=str))


__all__ = [
    "UNDECIDING",
    "UNSUPPORTED",
    "check_settings",
    "check_trainable",
    "default_output_dir",
    "installed_versions",
    "repository_name",
    "run_settings",
]
