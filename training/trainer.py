"""Trainer with the knowledge-guided loss."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.utils.data import DataLoader, Sampler
from transformers import Trainer

from ..data.shard_files import BUFFERED_GROUPS, shard_blocks
from ..errors import InputError
from ..knowledge.prior_columns import PRIOR_COLUMNS
from ..modeling_kgl import KGLForImageClassification
from .callbacks import SamplerEpochCallback, any_process
from .losses import (
    CellBalance,
    balanced_class_weight,
    combined_loss,
    focal_loss,
    saliency_loss,
)
from .sampler import BalancedSampler, ShardSampler
from .sharding import gather_model


class DivergedError(InputError):
    """The loss or the weights are no longer finite."""


class ClassificationTrainer(Trainer):
    """
    Trainer of defect classifiers without guidance: classification loss, sampling, and unaugmented evaluation.

    `data_collator` is a [`DefectCollator`] or a [`FrozenFeatureCollator`]. `train` ends with a [`DivergedError`] at
    the first loss that is not finite, and saves no checkpoint whose weights are not.

    Args:
        file_names: of the images by the `index` of collators, for messages.
    """

    def __init__(self, *args: Any, file_names: Sequence[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._file_names = file_names
        if self.train_dataset is None:
            raise InputError(f"{type(self).__name__} needs a train_dataset.")
        self.args.check_devices()
        self._class_weight = None
        if self.args.class_weights == "balanced":
            labels = self.train_dataset["label"]
            self._class_weight = balanced_class_weight(labels, self.model.config.num_labels).to(self.args.device)

    def training_step(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """
        Compute a batch's gradients, and return its loss.

        Raises:
            DivergedError: the loss is not finite, in this process or in another one.
        """
        rows = inputs.pop("index", None)
        loss = super().training_step(model, inputs, num_items_in_batch)
        diverged = not bool(loss.isfinite().all())
        if any_process(diverged):
            images = ""
            if diverged and rows is not None and self._file_names:
                images = f" of the batch {', '.join(self._file_names[row] for row in rows.tolist())}"
            where = "the loss" if diverged else "the loss of another process"
            raise DivergedError(f"in step {self.state.global_step + 1} {where}{images} is not finite.")
        return loss

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Compute the classification loss, a mean over the batch's images."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if not self.args.uses_model_loss:
            gamma = 2.0 if self.args.cls_loss == "focal" else 0.0
            loss = focal_loss(outputs.logits, inputs["labels"], gamma, self._class_weight)
        return (loss, outputs) if return_outputs else loss

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        rows, args = self.train_dataset if train_dataset is None else train_dataset, self.args
        seed = args.seed if args.data_seed is None else args.data_seed
        blocks = shard_blocks(rows) if "image" in rows.column_names else None
        if args.balanced_sampling:
            sampler = BalancedSampler(rows["label"][:], seed)
        elif blocks is not None and args.to_dict().get("train_sampling_strategy", "random") == "random":
            readers = args.world_size * max(1, args.dataloader_num_workers)
            sampler = ShardSampler(blocks, seed, BUFFERED_GROUPS, args.train_batch_size, readers)
        else:
            return super()._get_train_sampler(train_dataset)
        self.add_callback(SamplerEpochCallback(sampler))
        return sampler

    def get_eval_dataloader(self, eval_dataset: Dataset | str | None = None) -> DataLoader:
        """Return the Trainer's data loader, without augmentation."""
        with self._unaugmented():
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        """Return the Trainer's data loader, without augmentation."""
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

    def check_weights(self) -> None:
        """
        Check that all weights are finite, those that other processes hold too.

        Raises:
            DivergedError: they are not.
        """
        if any_process(not all(bool(parameter.isfinite().all()) for parameter in self.model.parameters())):
            raise DivergedError(f"after step {self.state.global_step} weights are not finite.")

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step >= self.state.max_steps:  # resumed after the last step: the Trainer takes one more
            self.control.should_training_stop = True
        else:
            super()._run_epoch(*args, **kwargs)

    def _save_checkpoint(self, *args: Any, **kwargs: Any) -> None:
        self.check_weights()
        super()._save_checkpoint(*args, **kwargs)

    def full_model(self) -> KGLForImageClassification | None:
        """Return the trained model with all its weights; where FSDP shards it, None but in the main process."""
        if self.is_fsdp_enabled:
            return gather_model(self.model, self.args.device)
        return self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Save the model and its image processor, but no `training_args.bin`: a pickle can hold any code."""
        if self.args.should_save:
            output_dir = self.args.output_dir if output_dir is None else output_dir
            model = self.accelerator.unwrap_model(self.model)
            if self.is_fsdp_enabled:  # only the weights in `state_dict` are whole
                with torch.device("meta"):
                    model = KGLForImageClassification(model.config)
            model.save_pretrained(output_dir, state_dict=state_dict)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(output_dir)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write nothing: the Trainer's card would replace the user's README.md."""


class KnowledgeGuidedTrainer(ClassificationTrainer):
    """
    Trainer of a [`KGLForImageClassification`] with the knowledge-guided loss.

    The loss at training progress t is `L_cls + lambda(t) L_kg`, or `(1 - lambda(t)) L_cls + lambda(t) L_kg` as in
    arXiv 2605.17780 (`kg_form="convex"`, `kg_lambda=1`). `L_kg` compares the saliency logits with the priors' masks;
    `lambda(t)` falls linearly from `kg_lambda` to 0.

    `train_dataset` has the prior columns `saliency_prior`, `prior_threshold` and `prior_weight`. `loss_cls`, `loss_kg`
    and `kg_lambda` are logged beside `loss`, averaged over the logging window, accumulated batches and processes.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        _check_prior_columns(self.train_dataset)
        self._balance = _cell_balance(self.train_dataset, self.args.kg_positive_weight)
        self._window: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros((), device=self.args.device))

    def compute_loss(
        self,
        model: torch.nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, Any]:
        """Compute the guided loss in training, a mean over the batch's images; in evaluation `L_cls` alone."""
        mask, weight = (inputs.pop(name, None) for name in ("prior_mask", "prior_weight"))
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        if model.training:
            loss_kg = saliency_loss(outputs.saliency, mask, weight, self._balance)
            progress = self.state.global_step / max(self.state.max_steps, 1)  # max_steps is 0 before train()
            lambda_ = self.args.kg_lambda * (1 - progress)
            self._add_to_window(loss_cls=loss.detach(), loss_kg=loss_kg.detach(), kg_lambda=torch.tensor(lambda_))
            loss = combined_loss(self.args.kg_form, lambda_, loss_kg, loss)
        return (loss, outputs) if return_outputs else loss

    def _add_to_window(self, **terms: torch.Tensor) -> None:
        """Add one batch's terms to the logging window, with the batch's share of its optimizer step."""
        share = 1 / self.current_gradient_accumulation_steps
        for name, value in terms.items():
            self._window[name] += share * value.to(self.args.device)
        self._window["steps"] += share

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the terms' averages over the window with the training loss, and start a new window."""
        if "loss" in logs and self._window:
            # All terms in one tensor: one gather over the processes and one transfer to the host.
            names = sorted(self._window)
            totals = torch.stack([self._window[name] for name in names]).unsqueeze(0)
            totals = dict(zip(names, self.accelerator.gather(totals).mean(dim=0).tolist(), strict=True))
            steps = totals.pop("steps")
            logs |= {name: total / steps for name, total in totals.items()}
            self._window.clear()
        super().log(logs, start_time)


def _check_prior_columns(dataset: Dataset) -> None:
    missing = [name for name in PRIOR_COLUMNS if name not in dataset.column_names]
    if missing == ["prior_threshold"]:
        raise InputError("train_dataset has no column prior_threshold: kgl.add_prior_thresholds(dataset) adds it.")
    if missing:
        raise InputError(
            f"train_dataset has no column {' and no column '.join(missing)}: kgl.add_saliency_priors adds the prior."
        )


def _cell_balance(dataset: Dataset, positive_weight: float | None) -> CellBalance:
    """Compute the weights of defect cells and other cells over the training set."""
    rows = dataset.select_columns(list(PRIOR_COLUMNS))
    masks = (
        np.asarray(prior, dtype=np.uint8) > threshold
        for prior, threshold in zip(rows["saliency_prior"], rows["prior_threshold"], strict=True)
    )
    return CellBalance.of(masks, rows["prior_weight"], positive_weight)


__all__ = ["ClassificationTrainer", "DivergedError", "KnowledgeGuidedTrainer"]
