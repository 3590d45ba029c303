"""Self-distillation, early stopping and averaged weights."""

import unittest.mock
from types import SimpleNamespace

import pytest
import torch

from kgl.benchmarks.evidence.bench import Bench
from kgl.benchmarks.evidence.controls import DistillationTrainer, KeepBestCallback, WeightAverageCallback
from kgl.benchmarks.evidence.task_data import new_model
from kgl.training.trainer import ClassificationTrainer
from kgl.training.training_args import KGLTrainingArguments


def test_weight_average_decays_by_two_percent_per_step():
    model = torch.nn.Linear(1, 1, bias=False)
    average = WeightAverageCallback()
    for value in (1.0, 2.0, 3.0):
        torch.nn.init.constant_(model.weight, value)
        average.on_step_end(None, None, None, model=model)
    average.on_train_end(None, None, None, model=model)
    assert model.weight.item() == pytest.approx(0.98 * (0.98 * 1 + 0.02 * 2) + 0.02 * 3)


def test_best_weights_are_restored():
    model = torch.nn.Linear(1, 1, bias=False)
    scores = iter([0.1, 0.7, 0.7, 0.2])
    best = KeepBestCallback(lambda: next(scores))
    for step in range(1, 21):  # evaluated at 5, 10, 15 and 20 of 50
        torch.nn.init.constant_(model.weight, step)
        best.on_step_end(None, SimpleNamespace(global_step=step, max_steps=50), None, model=model)
    best.on_train_end(None, None, None, model=model)
    assert model.weight.item() == 10  # the first of equals


def test_distillation_is_half_labels_half_teacher(tmp_path):
    student, teacher = torch.tensor([[2.0, 0.0], [0.5, 1.0]]), torch.tensor([[1.0, -1.0], [0.0, 2.0]])
    model = new_model("smoke", {})
    arguments = KGLTrainingArguments(str(tmp_path), report_to="none", use_cpu=True)
    rows = Bench("smoke", 4, 0, False, False, tmp_path).train_images
    trainer = DistillationTrainer(model=model, args=arguments, train_dataset=rows)
    trainer.teacher = lambda pixel_values: SimpleNamespace(logits=teacher)
    label_loss = torch.nn.functional.cross_entropy(student, torch.tensor([0, 0]))
    target, predicted = (teacher / 2).softmax(1), (student / 2).softmax(1)
    divergence = (target * (target / predicted).log()).sum(1).mean()
    own = (label_loss, SimpleNamespace(logits=student))
    with unittest.mock.patch.object(ClassificationTrainer, "compute_loss", return_value=own):
        loss = trainer.compute_loss(model, {"pixel_values": None})
    assert loss.item() == pytest.approx((0.5 * label_loss + 0.5 * 4 * divergence).item())
