"""A resumable map over a dataset in shards, shared by processes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset, Features, IterableDataset, concatenate_datasets, load_from_disk
from tqdm.auto import tqdm

from ..data.storage import lock, save_dataset, write_json
from ..errors import InputError


Columns = dict[str, list[Any]]
_STREAM_SHARD = 256  # rows of a stream held at once, undecoded
_LEAST_SHARD = 64
_MOST_SHARD = 1024
_SHARDS = 32  # as many as several processes can share evenly


def sharded_map(
    dataset: Dataset | IterableDataset,
    compute: Callable[[Columns], Columns],
    identify: Callable[[Columns], str],
    folder: Path,
    *,
    features: Features,
    batch_size: int,
    title: str,
) -> Dataset:
    """
    The columns `compute` makes of each batch, as one table in the order of the rows, at `folder` for `load_from_disk`.

    Under `accelerate launch` each process computes every so-many-th shard. Shards and their batches are the same,
    however many processes there are, so the table is too. Shards are kept beside the folder until all are there: a
    pass that was stopped goes on, and one that is finished computes nothing. A shard is known by `identify`, so none
    is taken for another's.

    Args:
        dataset: rows as `compute` wants them; of a stream no more than one shard is held in memory.
        compute: a batch of columns to new columns of the same length.
        identify: a hash of everything that decides what `compute` makes of these rows.
        folder: where the table goes; `<folder>.json` and `<folder>.shards` are used too.
        features: of the new columns.
        batch_size: rows `compute` gets at once.
        title: what the progress bar says.

    Raises:
        InputError: the folder holds something else, another process is writing it, or it cannot be written to
            (finished shards stay).
    """
    state = PartialState()
    manifest, shards = (folder.with_name(f"{folder.name}.{ending}") for ending in ("json", "shards"))
    if folder.exists() and not manifest.exists():
        raise InputError(f"{folder} holds something that was not made here; choose another folder.")
    try:
        there = json.loads(manifest.read_text()) if folder.exists() else None
    except json.JSONDecodeError as error:
        raise InputError(f"{manifest} is damaged ({error}); choose another folder.") from error
    other = InputError(
        f"{folder} holds what another model, other settings or other images gave; choose another folder."
    )
    if there is None and state.is_main_process:
        held = lock(shards)
    state.wait_for_everyone()
    mine = []
    with tqdm(desc=_titled(title, state), total=_count(dataset, state), unit=" images") as bar:
        for number, rows in _own_shards(dataset, state):
            key = f"{number:06d}-{identify(rows)}"
            mine.append(key)
            count = len(next(iter(rows.values())))
            if there is not None and key not in there:
                raise other
            if there is not None or (shards / key).exists():
                bar.initial += count  # not counted into images a second
                bar.update(count)
                continue
            columns: Columns = {name: [] for name in features}
            for start in range(0, count, batch_size):
                batch = {name: column[start : start + batch_size] for name, column in rows.items()}
                for name, values in compute(batch).items():
                    columns[name] += values
                bar.update(len(next(iter(batch.values()))))
            save_dataset(Dataset.from_dict(columns, features=features), shards / key)
    keys = sorted(gather_object(mine))
    if not keys:
        raise InputError("The dataset has no rows.")
    if there is not None and keys != there:
        raise other
    if there is None and state.is_main_process:
        write_json(manifest, keys)
        save_dataset(concatenate_datasets([load_from_disk(shards / key) for key in keys]), folder)
        held.release()
    if state.is_main_process:
        shutil.rmtree(shards, ignore_errors=True)  # also what a kill left once the table was there
    state.wait_for_everyone()
    return load_from_disk(folder)


def _own_shards(dataset: Dataset | IterableDataset, state: PartialState) -> Iterator[tuple[int, Columns]]:
    """This process's shards with their numbers."""
    size = _shard_size(dataset)
    if isinstance(dataset, Dataset):
        for start in _own_starts(dataset, state):
            yield start // size, dataset[start : start + size]
    else:
        for number, rows in enumerate(dataset.iter(size)):
            if number % state.num_processes == state.process_index:
                yield number, rows


def _shard_size(dataset: Dataset | IterableDataset) -> int:
    if not isinstance(dataset, Dataset):
        return _STREAM_SHARD
    return min(max(-(-len(dataset) // _SHARDS), _LEAST_SHARD), _MOST_SHARD)


def _count(dataset: Dataset | IterableDataset, state: PartialState) -> int | None:
    """How many rows this process has, where that is known."""
    if not isinstance(dataset, Dataset):
        return None
    size = _shard_size(dataset)
    return sum(min(size, len(dataset) - start) for start in _own_starts(dataset, state))


def _own_starts(dataset: Dataset, state: PartialState) -> range:
    """Where this process's shards begin."""
    size = _shard_size(dataset)
    return range(state.process_index * size, len(dataset), state.num_processes * size)


def _titled(title: str, state: PartialState) -> str:
    return title if state.num_processes == 1 else f"{title}, process {state.process_index + 1}"


__all__ = ["Columns", "sharded_map"]
