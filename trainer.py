"""A Trainer whose loss also says where to look."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import Trainer, TrainingArguments

from .errors import InputError
from .losses import SCHEDULES, CellBalance, guidance_weight, pseudo_mask_loss


@dataclass
class KGLTrainingArguments(TrainingArguments):
    """[`~transformers.TrainingArguments`] and the settings of the knowledge-guided loss."""

    kg_schedule: str = field(
        default="linear",
        metadata={"help": "How the guidance's weight lambda goes with training: linear, cosine or constant."},
    )
    kg_lambda: float = field(
        default=1.0,
        metadata={"help": "Lambda at the start (linear, cosine) or throughout (constant, where it must be below 1)."},
    )
    # The collator reads columns that the model's forward does not name.
    remove_unused_columns: bool = field(default=False, metadata={"help": "Keep this off: the collator needs them."})

    def __post_init__(self) -> None:
        super().__post_init__()
        # Pinned memory is for copies to a GPU; without one, torch warns at every epoch.
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.cuda.is_available()
        if self.kg_schedule not in SCHEDULES:
            raise InputError(f"--kg_schedule {self.kg_schedule}: choose one of {', '.join(SCHEDULES)}.")
        if not 0 <= self.kg_lambda <= 1:
            raise InputError(f"--kg_lambda {self.kg_lambda}: it must lie in 0..1.")
        if self.kg_schedule == "constant" and self.kg_lambda == 1:
            raise InputError("--kg_schedule constant with --kg_lambda 1 never trains the classifier; lower lambda.")


class KnowledgeGuidedTrainer(Trainer):
    """
    Trains a [`KGLForImageClassification`] on `L = lambda(t) L_kg + (1 - lambda(t)) L_cls` (arXiv 2605.17780).

    `train_dataset` holds the columns of the data contract, `saliency_prior` and `prior_weight` among them, and
    `data_collator` is a [`DefectCollator`], whose augmentation is left out in evaluation. `loss_cls`, `loss_kg` and
    `kg_lambda` are logged beside `loss`, averaged over the logging window, over accumulated batches and processes.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.train_dataset is None:
            raise InputError("KnowledgeGuidedTrainer needs a train_dataset.")
        if self.args.n_gpu > 1:
            raise InputError(f"{self.args.n_gpu} GPUs in one process: use accelerate launch, one process a GPU.")
        missing = {"saliency_prior", "prior_weight"} - set(self.train_dataset.column_names)
        if missing:
            raise InputError(
                f"train_dataset has no {' and no '.join(sorted(missing))}: add_saliency_priors makes them."
            )
        self._balance = _cell_balance(self.train_dataset)
        self._window: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=self.args.device))

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The guided loss in training, a mean over the batch's images; the classification loss in evaluation."""
        inputs.pop("saliency_prior", None)
        mask = inputs.pop("pseudo_mask", None)
        weight = inputs.pop("prior_weight", None)
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training:
            loss_kg = pseudo_mask_loss(outputs.saliency, mask, weight, self._balance)
            progress = self.state.global_step / max(self.state.max_steps, 1)  # 0 before train() is called
            lambda_ = guidance_weight(self.args.kg_schedule, progress, self.args.kg_lambda)
            self._note(loss_cls=loss.detach(), loss_kg=loss_kg.detach(), kg_lambda=torch.tensor(lambda_))
            loss = lambda_ * loss_kg + (1 - lambda_) * loss
        return (loss, outputs) if return_outputs else loss

    def get_eval_dataloader(self, eval_dataset: Dataset | str | None = None) -> DataLoader:
        """The Trainer's, of pictures as they are."""
        with self._unaugmented():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        """The Trainer's, of pictures as they are."""
        with self._unaugmented():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _unaugmented(self) -> Iterator[None]:
        collator = self.data_collator
        self.data_collator = replace(collator, augmentation=None)
        try:
            yield
        finally:
            self.data_collator = collator

    def _note(self, **terms: torch.Tensor) -> None:
        """Add one batch to the window, weighted as the Trainer weights it within its accumulated step."""
        share = 1 / self.current_gradient_accumulation_steps
        for name, value in terms.items():
            self._window[name] += share * value.to(self.args.device)
        self._window["steps"] += share

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the window's averages with the training loss, and start a new window."""
        if "loss" in logs and self._window:
            # One mean over processes, one transfer to the host.
            names = sorted(self._window)
            totals = torch.stack([self._window[name] for name in names]).unsqueeze(0)
            totals = dict(zip(names, self.accelerator.gather(totals).mean(dim=0).tolist(), strict=True))
            steps = totals.pop("steps")
            logs |= {name: total / steps for name, total in totals.items()}
            self._window.clear()
        super().log(logs, start_time)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Leave README.md alone: the Trainer's own card would replace whatever the user wrote there."""


def _cell_balance(train_dataset: Dataset) -> CellBalance:
    priors = train_dataset.select_columns(["saliency_prior", "prior_weight"]).with_format("numpy")
    return CellBalance.of(
        (row["saliency_prior"].astype(np.uint8) for row in priors), (float(row["prior_weight"]) for row in priors)
    )


__all__ = ["KGLTrainingArguments", "KnowledgeGuidedTrainer"]
