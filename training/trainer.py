"""Trainer with the knowledge-guided loss."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer

from ..errors import InputError
from ..modeling_kgl import KGLImageClassifierOutput
from ..saliency.cam import layer_cam
from .arguments import CELL_OBJECTIVES
from .callbacks import SamplerEpochCallback
from .losses import (
    CellBalance,
    balanced_class_weight,
    combined_loss,
    consistency_loss,
    focal_loss,
    guidance_weight,
    pseudo_mask,
    saliency_loss,
)
from .sampler import BalancedSampler
from .training_args import KGLTrainingArguments


class ClassificationTrainer(Trainer):
    """
    A Trainer of defect classifiers: the loss that the arguments ask for, and evaluation of images as they are.

    `data_collator` is a [`DefectCollator`], whose augmentation is left out in evaluation.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.train_dataset is None:
            raise InputError(f"{type(self).__name__} needs a train_dataset.")
        if self.args.n_gpu > 1:
            raise InputError(f"{self.args.n_gpu} GPUs in one process: use accelerate launch, one process a GPU.")
        self._class_weight = None
        if self.args.class_weights == "balanced":
            labels = self.train_dataset["label"]
            self._class_weight = balanced_class_weight(labels, self.model.config.num_labels).to(self.args.device)

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The classification loss, a mean over the batch's images."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if not self.args.uses_model_loss:
            gamma = 2.0 if self.args.cls_loss == "focal" else 0.0
            loss = focal_loss(outputs.logits, inputs["labels"], gamma, self._class_weight)
        return (loss, outputs) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        if not self.args.balanced_sampling:
            return super()._get_train_sampler(train_dataset)
        rows = self.train_dataset if train_dataset is None else train_dataset
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        sampler = BalancedSampler(rows["label"][:], seed)
        self.add_callback(SamplerEpochCallback(sampler))
        return sampler

    def get_eval_dataloader(self, eval_dataset: Dataset | str | None = None) -> DataLoader:
        """The Trainer's, of images as they are."""
        with self._unaugmented():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        """The Trainer's, of images as they are."""
        with self._unaugmented():
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _unaugmented(self) -> Iterator[None]:
        collator = self.data_collator
        self.data_collator = collator.unaugmented()
        try:
            yield
        finally:
            self.data_collator = collator

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """The Trainer's of a model, without `training_args.bin`: a pickle of any object, which nothing reads."""
        if self.args.should_save:
            output_dir = self.args.output_dir if output_dir is None else output_dir
            self.accelerator.unwrap_model(self.model).save_pretrained(output_dir, state_dict=state_dict)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(output_dir)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Leave README.md alone: the Trainer's own card would replace whatever the user wrote there."""


class KnowledgeGuidedTrainer(ClassificationTrainer):
    """
    Trains a [`KGLForImageClassification`] on `L = L_cls + lambda(t) L_kg`, or, as arXiv 2605.17780 does, on
    `L = (1 - lambda(t)) L_cls + lambda(t) L_kg` (`kg_form="convex"`, `kg_lambda=1`).

    `train_dataset` holds the columns of the data contract, `saliency_prior` and `prior_weight` among them. `loss_cls`,
    `loss_kg` and `kg_lambda` are logged beside `loss`, averaged over the logging window, over accumulated batches and
    processes.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        missing = {"saliency_prior", "prior_weight"} - set(self.train_dataset.column_names)
        if missing:
            raise InputError(
                f"train_dataset has no {' and no '.join(sorted(missing))}: add_saliency_priors makes them."
            )
        self.args.check_pooling(self.model.config.pooling)
        self.data_collator = replace(self.data_collator, ignore_band=self.args.kg_ignore_band)
        self._balance = {
            objective: _cell_balance(objective, self.train_dataset, self.args)
            for objective in self.args.kg_objective
            if objective in CELL_OBJECTIVES
        }
        self._window: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=self.args.device))

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """The guided loss in training, a mean over the batch's images; the classification loss in evaluation."""
        prior = {name: inputs.pop(name, None) for name in ("saliency_prior", "pseudo_mask", "known", "prior_weight")}
        labels = inputs["labels"]
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training:
            loss_kg = self._guidance(outputs, labels, **prior)
            progress = self.state.global_step / max(self.state.max_steps, 1)  # 0 before train() is called
            lambda_ = guidance_weight(self.args.kg_schedule, progress, self.args.kg_lambda)
            self._note(loss_cls=loss.detach(), loss_kg=loss_kg.detach(), kg_lambda=torch.tensor(lambda_))
            loss = combined_loss(self.args.kg_form, lambda_, loss_kg, loss)
        return (loss, outputs) if return_outputs else loss

    def _guidance(
        self,
        outputs: KGLImageClassifierOutput,
        labels: torch.Tensor,
        saliency_prior: torch.Tensor,
        pseudo_mask: torch.Tensor,
        known: torch.Tensor,
        prior_weight: torch.Tensor,
    ) -> torch.Tensor:
        total = torch.zeros((), device=prior_weight.device)
        for objective in self.args.kg_objective:
            if objective == "otsu_bce":
                target, cells = pseudo_mask, known
            elif objective == "soft_bce":
                target, cells = saliency_prior, torch.ones_like(known)
            else:
                model = self.accelerator.unwrap_model(self.model)
                class_map = layer_cam(model, outputs.feature_map, outputs.saliency, labels)
                total = total + consistency_loss(objective, class_map, saliency_prior, prior_weight)
                continue
            total = total + saliency_loss(outputs.saliency, target, cells, prior_weight, self._balance[objective])
        return total

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


def _cell_balance(objective: str, train_dataset: Dataset, args: KGLTrainingArguments) -> CellBalance:
    rows = train_dataset.select_columns(["saliency_prior", "prior_weight"])
    targets, cells = [], []
    for stored in rows["saliency_prior"]:
        prior = np.asarray(stored, dtype=np.uint8)
        if objective == "otsu_bce":
            target, known = pseudo_mask(prior, args.kg_ignore_band)
        else:
            target, known = prior / 255, np.ones(prior.shape, dtype=bool)
        targets.append(target)
        cells.append(known)
    return CellBalance.of(targets, cells, rows["prior_weight"], args.kg_positive_weight)


__all__ = ["ClassificationTrainer", "KnowledgeGuidedTrainer"]
