"""All settings of a training job: defaults that depend on others, checks, and the ones that decide its result."""

from __future__ import annotations

import json
import os
import re
from dataclasses import MISSING, Field, asdict, fields
from pathlib import Path
from typing import Any, NamedTuple

from datasets import DatasetDict
from transformers.integrations import get_reporting_integration_callbacks

from ..data.arguments import DataArguments
from ..data.schema import dataset_fingerprint
from ..errors import InputError
from ..knowledge.arguments import TrainPriorArguments
from .arguments import GuidanceArguments, LicenseArguments, ModelArguments, OperatingArguments, check_repo_id
from .training_args import KGLTrainingArguments


# Settings of TrainingArguments that change what a run computes. All of ours do, but for the ones about its folder.
_DECIDING = (
    "accelerator_config", "adam_beta1", "adam_beta2", "adam_epsilon", "auto_find_batch_size", "bf16", "data_seed",
    "dataloader_drop_last", "dataloader_num_workers", "deepspeed", "fp16", "fsdp", "fsdp_config", "full_determinism",
    "gradient_accumulation_steps", "gradient_checkpointing", "ignore_data_skip", "label_smoothing_factor",
    "learning_rate", "lr_scheduler_kwargs", "lr_scheduler_type", "max_grad_norm", "max_steps", "num_train_epochs",
    "optim", "optim_args", "optim_target_modules", "per_device_train_batch_size", "seed", "tf32", "torch_compile",
    "torch_compile_backend", "torch_compile_mode", "train_sampling_strategy", "use_cpu", "warmup_steps",
    "weight_decay", *(one.name for one in fields(GuidanceArguments)),
)  # fmt: skip

# Settings of a run's record that may differ when it is resumed: the images themselves are compared by content.
UNDECIDING = (
    "data_dir", "data_file", "hub_dataset", "hub_config", "image_column", "label_column", "mask_column",
    "group_column", "split_column", "decode_once", "on_bad_image",
)  # fmt: skip

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
    "hub_strategy": "checkpoints are not pushed; the finished run is, once",
    "remove_unused_columns": "the collator needs the columns that the model does not name",
}  # fmt: skip


class Settings(NamedTuple):
    """All settings of a job."""

    model: ModelArguments
    data: DataArguments
    prior: TrainPriorArguments
    operating: OperatingArguments
    licenses: LicenseArguments
    training: KGLTrainingArguments


def default_output_dir(data: DataArguments) -> str:
    """Return `runs/NAME`, named after the dataset."""
    source = data.hub_dataset or data.data_file or data.data_dir or data.dataset or "run"
    name = Path(source).stem if data.data_file == source else Path(source).expanduser().resolve().name
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
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "learning_rate", "num_train_epochs"):
        if vars(training_args)[name] <= 0:
            raise InputError(f"--{name} {vars(training_args)[name]}: it must be above 0.")
    if training_args.save_strategy == "best":
        raise InputError("--save_strategy best: the last weights are taken, none are selected.")
    if training_args.push_to_hub:
        check_repo_id(repository_name(training_args))
    training_args.check_devices()
    training_args.check_pooling(settings.model.pooling)
    try:
        for reporter in get_reporting_integration_callbacks(training_args.report_to):
            reporter()
    except RuntimeError as error:
        raise InputError(f"--report_to {' '.join(training_args.report_to)}: {error}") from error


def _default_of(one: Field) -> Any:
    return one.default_factory() if one.default is MISSING else one.default


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
            "mixed_precision": os.environ.get("ACCELERATE_MIXED_PRECISION", "no"),  # --bf16 or accelerate launch's
        },
    }
    return json.loads(json.dumps(stored, default=str))


__all__ = [
    "UNDECIDING",
    "UNSUPPORTED",
    "Settings",
    "check_settings",
    "default_output_dir",
    "repository_name",
    "run_settings",
]
