"""Balanced sampling."""

from collections import Counter

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as PILImage
from tiny import tiny_model
from torch.utils.data import DataLoader
from transformers import TrainerState
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.training.callbacks import SamplerEpochCallback
from kgl.training.collator import DefectCollator
from kgl.training.sampler import BalancedSampler
from kgl.training.trainer import ClassificationTrainer
from kgl.training.training_args import KGLTrainingArguments


LABELS = np.array([0] * 30 + [1] * 7 + [2] * 3)


@pytest.mark.parametrize("epoch", range(3))
def test_classes_are_drawn_equally_and_images_in_turn(epoch):
    sampler = BalancedSampler(LABELS, seed=1)
    sampler.set_epoch(epoch)
    drawn = list(sampler)
    assert len(drawn) == len(sampler) == 40
    assert sorted(Counter(LABELS[drawn]).values()) == [13, 13, 14]
    times = Counter(drawn)
    assert all(times[row] <= 1 for row in range(30))
    assert all(1 <= times[row] <= 2 for row in range(30, 37))
    assert all(4 <= times[row] <= 5 for row in range(37, 40))


def test_order_depends_on_seed_and_epoch():
    one, other = BalancedSampler(LABELS, 1), BalancedSampler(LABELS, 1)
    torch.manual_seed(5)
    first = list(one)
    assert first == list(one) == list(other) != list(BalancedSampler(LABELS, 2))
    one.set_epoch(1)
    assert list(one) != first


def loader(epoch, processes=1, process=0):
    """A loader as the Trainer has it at the start of an epoch; not every version of accelerate sets the epoch."""
    sampler = BalancedSampler(LABELS, 3)
    loader = DataLoader(list(range(40)), batch_size=4, sampler=sampler)
    loader = prepare_data_loader(loader, num_processes=processes, process_index=process, put_on_device=False)
    loader.set_epoch(epoch)
    SamplerEpochCallback(sampler).on_epoch_begin(None, TrainerState(epoch=float(epoch)), None)
    return loader


def test_processes_share_one_order_and_resumed_runs_continue_in_it():
    whole = [batch.tolist() for batch in loader(2)]
    assert whole != [batch.tolist() for batch in loader(1)]
    parts = [[batch.tolist() for batch in loader(2, 2, process)] for process in (0, 1)]
    assert [batch for pair in zip(*parts, strict=True) for batch in pair] == whole
    resumed = skip_first_batches(loader(2), 4)
    resumed.set_epoch(2)
    assert [batch.tolist() for batch in resumed] == whole[4:]


def test_run_of_two_processes_resumes_in_its_epoch():
    """accelerate's wrappers do not set the epoch there; the callback does."""
    whole = [batch.tolist() for batch in loader(2)]
    for process in (0, 1):
        sampler = BalancedSampler(LABELS, 3)
        fresh = DataLoader(list(range(40)), batch_size=4, sampler=sampler)
        fresh = prepare_data_loader(fresh, num_processes=2, process_index=process, put_on_device=False)
        resumed = skip_first_batches(fresh, 2)
        resumed.set_epoch(2)
        SamplerEpochCallback(sampler).on_epoch_begin(None, TrainerState(epoch=2.4), None)
        assert [batch.tolist() for batch in resumed] == whole[process::2][2:]


def test_every_epoch_of_a_training_has_a_new_order(tmp_path, monkeypatch):
    orders = []
    draw = BalancedSampler.__iter__

    def record(sampler):
        orders.append(list(draw(sampler)))
        return iter(orders[-1])

    monkeypatch.setattr(BalancedSampler, "__iter__", record)
    rows = Dataset.from_dict(
        {"image": [PILImage.new("L", (32, 32), 10 * index) for index in range(12)], "label": [0] * 8 + [1] * 4},
        features=Features(image=Image(), label=ClassLabel(names=["good", "scratch"])),
    )
    for _ in range(2):  # as the two phases do
        args = KGLTrainingArguments(
            output_dir=str(tmp_path), num_train_epochs=3, per_device_train_batch_size=4, balanced_sampling=True,
            save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        collator = DefectCollator(ViTImageProcessorPil(size={"height": 32, "width": 32}))
        model = tiny_model(id2label={0: "good", 1: "scratch"})
        ClassificationTrainer(model=model, args=args, train_dataset=rows, data_collator=collator).train()
    primary, final = orders[:3], orders[3:]
    assert primary == final
    assert len({tuple(order) for order in primary}) == 3
