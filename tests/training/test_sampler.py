"""Balanced sampling."""

from collections import Counter

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from tiny import make_images
from torch.utils.data import DataLoader
from transformers import TrainerState

from kgl.train import parse, run
from kgl.training.callbacks import SamplerEpochCallback
from kgl.training.sampler import BalancedSampler


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


def test_every_epoch_has_a_new_order(tmp_path, monkeypatch):
    drawn = []
    order_of = BalancedSampler.__iter__
    monkeypatch.setattr(
        BalancedSampler, "__iter__", lambda self: iter(drawn.append(list(order_of(self))) or drawn[-1])
    )
    make_images(tmp_path / "images")
    flags = [
        "--data_dir", str(tmp_path / "images"), "--defect_free_label", "good", "--validation_share", "0",
        "--image_height", "32", "--image_width", "32", "--output_dir", str(tmp_path / "out"), "--backbone_config",
        '{"model_type": "resnet", "layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8], "depths": [1]}',
        "--num_train_epochs", "3", "--per_device_train_batch_size", "4", "--use_cpu", "true", "--report_to", "none",
        "--balanced_sampling", "true", "--freeze_stages", "0",
    ]  # fmt: skip
    run(parse(flags))
    primary, final = drawn[:3], drawn[3:]
    assert primary == final  # both phases draw the same batches
    assert len({tuple(order) for order in primary}) == 3
