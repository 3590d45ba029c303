"""Training arguments with the settings of the knowledge-guided loss and measured defaults."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from ..errors import InputError
from .arguments import GuidanceArguments


DEFAULT_STEPS = 500  # the length that the evidence was measured at


@dataclass
class KGLTrainingArguments(GuidanceArguments, TrainingArguments):
    """[`~transformers.TrainingArguments`] with the knowledge-guided loss; defaults are the measured recipe."""

    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay of AdamW."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up, in steps or as a share of them below 1."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Training batch size per device."})
    per_device_eval_batch_size: int = field(
        default=16, metadata={"help": "Batch size of predictions and priors per device."}
    )
    max_steps: int = field(
        default=-1,
        metadata={"help": f"Training steps per phase (default: {DEFAULT_STEPS}, or --num_train_epochs)."},
    )
    num_train_epochs: float | None = field(
        default=None, metadata={"help": "Training epochs per phase, in place of --max_steps."}
    )
    logging_steps: float = field(default=50, metadata={"help": "Log the loss terms every this many steps."})
    save_steps: float = field(default=100, metadata={"help": "Write a checkpoint every this many steps."})
    save_total_limit: int | None = field(default=1, metadata={"help": "Checkpoints kept while a phase is trained."})
    # The collator reads columns that the model's forward does not name.
    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay off: the collator needs them."})

    def __post_init__(self) -> None:
        if self.num_train_epochs is None:
            self.max_steps = DEFAULT_STEPS if self.max_steps == -1 else self.max_steps
            self.num_train_epochs = 1.0  # max_steps decides
        super().__post_init__()
        # Pinned memory is for copies to a GPU; without one, torch warns at every epoch.
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.cuda.is_available()
        self.check_guidance()
        if not self.uses_model_loss and self.label_smoothing_factor > 0:
            raise InputError("--label_smoothing_factor goes with --cls_loss cross_entropy --class_weights none.")


__all__ = ["DEFAULT_STEPS", "KGLTrainingArguments"]
