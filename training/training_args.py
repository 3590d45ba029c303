"""Training arguments: transformers', the measured recipe as defaults, and the knowledge-guided loss."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import TrainingArguments
from transformers.integrations import is_deepspeed_available

from ..data.arguments import DataArguments
from ..errors import InputError
from ..knowledge.arguments import TrainPriorArguments
from .arguments import (
    DEFAULT_STEPS,
    GuidanceArguments,
    LicenseArguments,
    ModelArguments,
    OperatingArguments,
    RecipeArguments,
)


_JSON = ("activation_checkpointing_kwargs", "gradient_checkpointing_kwargs", "lr_scheduler_kwargs")
_JSON_FILES = ("accelerator_config", "fsdp_config")


@dataclass
class KGLTrainingArguments(RecipeArguments, GuidanceArguments, TrainingArguments):
    """[`~transformers.TrainingArguments`] with the settings of the knowledge-guided loss and measured defaults."""

    # The collator reads columns that the model's forward does not name.
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay off: the collator needs them."})
    auto_find_batch_size: bool = field(
        default=True,
        metadata={"help": "Where memory runs out, train on with smaller batches and as many images a step."},
    )

    def __post_init__(self) -> None:
        if self.max_steps != -1 and self.max_steps < 1:
            raise InputError(f"--max_steps {self.max_steps}: it must be at least 1.")
        if self.num_train_epochs is None:
            self.max_steps = DEFAULT_STEPS if self.max_steps == -1 else self.max_steps
            self.num_train_epochs = 1.0  # max_steps decides
        self._check_json()
        if self.lr_scheduler_type in ("reduce_lr_on_plateau", "greedy"):
            raise InputError(
                f"--lr_scheduler_type {self.lr_scheduler_type}: it follows an evaluation loss, and validation images "
                "are used once, at the end."
            )
        if isinstance(self.fsdp, str) and self.fsdp.lower() in ("true", "false"):
            self.fsdp = True if self.fsdp.lower() == "true" else None
        if self.deepspeed is not None and not is_deepspeed_available():
            raise InputError("--deepspeed: the package deepspeed is not installed; pip install deepspeed.")
        if self.ddp_backend is not None and "RANK" not in os.environ:
            raise InputError(f"--ddp_backend {self.ddp_backend}: it goes with accelerate launch or torchrun.")
        if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not torch.cuda.is_available():
            self.use_cpu = True  # processes without GPUs are joined only if they are asked for
        super().__post_init__()
        reentrant = (self.gradient_checkpointing_kwargs or {}).get("use_reentrant", False)
        if self.gradient_checkpointing and self.ddp_find_unused_parameters is None and not reentrant:
            # The Trainer would not look for them with checkpointing; norms of Swin's hidden states are unused.
            self.ddp_find_unused_parameters = True
        # Pinned memory is for copies to a GPU; without one, torch warns at every epoch.
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.cuda.is_available()
        self.check_guidance()
        if not self.uses_model_loss and self.label_smoothing_factor > 0:
            raise InputError("--label_smoothing_factor goes with --cls_loss cross_entropy --class_weights none.")

    def _check_json(self) -> None:
        """
        Check settings that are JSON objects or files of one.

        Raises:
            InputError: text that is neither.
        """
        for name in (*_JSON, *_JSON_FILES):
            text = vars(self).get(name)  # not all versions of transformers have them all
            if not isinstance(text, str):
                continue
            in_file = name in _JSON_FILES and not text.startswith("{")
            kinds = "a JSON object or a file of one" if name in _JSON_FILES else "a JSON object"
            try:
                content = json.loads(Path(text).read_text(encoding="utf-8") if in_file else text)
            except (OSError, ValueError) as error:
                raise InputError(f"--{name} {text}: give {kinds}. ({error})") from error
            if not isinstance(content, dict):
                raise InputError(f"--{name} {text}: give {kinds}.")

    def check_devices(self) -> None:
        """
        Check that every process has one GPU at most.

        Raises:
            InputError: this process sees several.
        """
        if self.n_gpu > 1:
            raise InputError(f"{self.n_gpu} GPUs in one process: use accelerate launch, which starts one per GPU.")


class Settings(NamedTuple):
    """All settings of a job."""

    model: ModelArguments
    data: DataArguments
    prior: TrainPriorArguments
    operating: OperatingArguments
    licenses: LicenseArguments
    training: KGLTrainingArguments


__all__ = ["KGLTrainingArguments", "Settings"]
