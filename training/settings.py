"""All settings of a training job: checks, and the ones that decide its result."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from datasets import DatasetDict
from transformers.integrations import get_reporting_integration_callbacks
from transformers.trainer_utils import HubStrategy, SaveStrategy

from ..data.arguments import DataArguments
from ..data.schema import dataset_fingerprint
from ..errors import InputError
from ..hub.arguments import check_repo_id
from ..knowledge.arguments import TrainPriorArguments
from .arguments import LicenseArguments, ModelArguments, OperatingArguments
from .training_args import KGLTrainingArguments


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


def check_settings(settings: Settings) -> None:
    """
    Raises:
        InputError: settings that are missing, out of range, or do not go together.
    """
    model_args, training_args = settings.model, settings.training
    if training_args.output_dir in (None, "trainer_output"):  # the latter is what transformers puts in its place
        raise InputError("--output_dir: name a folder for the run.")
    if (model_args.backbone is None) == (model_args.backbone_config is None):
        raise InputError("Give either --backbone (pretrained) or --backbone_config (from scratch).")
    for name in ("per_device_train_batch_size", "per_device_eval_batch_size", "learning_rate", "num_train_epochs"):
        if vars(training_args)[name] <= 0:
            raise InputError(f"--{name} {vars(training_args)[name]}: it must be above 0.")
    if training_args.eval_strategy != "no":
        raise InputError("--eval_strategy: validation images are used once, at the end, for the operating point.")
    if training_args.save_strategy == SaveStrategy.BEST or training_args.load_best_model_at_end:
        raise InputError(
            "--save_strategy best, --load_best_model_at_end: the last weights are taken, none are chosen."
        )
    if training_args.save_only_model:
        raise InputError("--save_only_model: a checkpoint without the optimizer's state cannot be resumed from.")
    if training_args.resume_from_checkpoint is not None:
        raise InputError("--resume_from_checkpoint: leave it out; the same --output_dir resumes by itself.")
    if training_args.push_to_hub:
        check_repo_id(repository_of(training_args))
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


def repository_of(training_args: KGLTrainingArguments) -> str:
    """Where a run is pushed: `--hub_model_id`, or called like its output folder."""
    return training_args.hub_model_id or Path(training_args.output_dir).absolute().name


def deciding_settings(settings: Settings, splits: DatasetDict) -> dict[str, Any]:
    """All that decides what comes out of a run."""
    training = {name: value for name, value in settings.training.to_dict().items() if name not in _OPERATIONAL}
    data = asdict(settings.data) | {f"{name}_images": dataset_fingerprint(split) for name, split in splits.items()}
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


__all__ = ["Settings", "check_settings", "deciding_settings", "repository_of"]
