"""Shuffling of images in shards."""

import numpy as np
import pytest
import torch
from accelerate.data_loader import prepare_data_loader, skip_first_batches
from torch.utils.data import DataLoader

from kgl.training.sampler import ShardSampler


BLOCKS = [np.arange(start, start + 6) for start in range(0, 60, 6)]


def sampler(epoch=0, seed=1, readers=1):
    sampler = ShardSampler(BLOCKS, seed, buffered=3, batch_size=4, readers=readers)
    sampler.set_epoch(epoch)
    return sampler


@pytest.mark.parametrize("readers", [1, 2, 3, 20])
def test_every_image_is_drawn_once(readers):
    assert sorted(sampler(readers=readers)) == list(range(60))
    assert len(sampler(readers=readers)) == 60


def test_order_depends_on_seed_and_epoch():
    torch.manual_seed(5)
    first = list(sampler())
    assert first == list(sampler()) != list(sampler(seed=2))
    assert first != list(sampler(epoch=1))


def test_images_of_few_blocks_are_shuffled_together():
    drawn = list(sampler())
    for start in range(0, 54, 18):
        assert len({row // 6 for row in drawn[start : start + 18]}) == 3
    assert drawn[:18] != sorted(drawn[:18])


def loader(process, processes=2):
    """A loader as the Trainer has it; accelerate sets the epoch of the sampler with its own."""
    data = DataLoader(list(range(60)), batch_size=4, sampler=sampler(readers=processes))
    loader = prepare_data_loader(data, num_processes=processes, process_index=process, put_on_device=False)
    loader.set_epoch(2)
    return loader


def test_processes_read_blocks_of_their_own():
    drawn = [[row for batch in loader(process) for row in batch.tolist()] for process in (0, 1)]
    assert set(drawn[0] + drawn[1]) == set(range(60))
    first, second = ({row // 6 for row in rows[:28]} for rows in drawn)
    assert not first & second  # up to the last batches, which they share


def test_resumed_loader_continues_without_reading():
    whole = [batch.tolist() for batch in loader(1)]
    resumed = skip_first_batches(loader(1), 3)
    resumed.set_epoch(2)
    assert [batch.tolist() for batch in resumed] == whole[3:]
