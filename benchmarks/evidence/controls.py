"""Training variants of single arms: self-distillation, early stopping, averaged weights."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F
from transformers import TrainerCallback

from kgl.modeling_kgl import KGLForImageClassification
from kgl.training.trainer import ClassificationTrainer


class DistillationTrainer(ClassificationTrainer):
    """Trainer with half cross-entropy, half agreement with a teacher at temperature 2 (Hinton et al. 2015)."""

    teacher: KGLForImageClassification

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """Return the mean of both losses over the batch."""
        loss, outputs = super().compute_loss(model, inputs, return_outputs=True, num_items_in_batch=num_items_in_batch)
        with torch.no_grad():
            target = (self.teacher(inputs["pixel_values"]).logits / 2).log_softmax(dim=1)
        predicted = (outputs.logits / 2).log_softmax(dim=1)
        loss = 0.5 * loss + 0.5 * 4 * F.kl_div(predicted, target, reduction="batchmean", log_target=True)
        return (loss, outputs) if return_outputs else loss


class KeepBestCallback(TrainerCallback):
    """Evaluate ten times during training and restore the weights of the highest score at the end."""

    def __init__(self, evaluate: Callable[[], float]) -> None:
        self._evaluate = evaluate
        self._best: tuple[float, dict[str, torch.Tensor]] = (-float("inf"), {})

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        if state.global_step % max(1, state.max_steps // 10) == 0:
            score = self._evaluate()
            if score > self._best[0] or not self._best[1]:
                self._best = (score, copy.deepcopy(model.state_dict()))

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        model.load_state_dict(self._best[1])


class WeightAverageCallback(TrainerCallback):
    """Replace the weights by their exponential moving average (decay 0.98 per step) at the end of training."""

    def __init__(self) -> None:
        self._average: dict[str, torch.Tensor] = {}

    def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        for name, value in model.state_dict().items():
            if name in self._average and value.is_floating_point():
                self._average[name].lerp_(value, 0.02)
            else:
                self._average[name] = value.clone()

    def on_train_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        model.load_state_dict(self._average)
