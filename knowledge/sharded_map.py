"""A map over a dataset's rows in batches: in memory, or on disk in shards that processes share and that resume."""

from __future__ import annotations

import json
import shutil
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from itertools import chain, islice
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from datasets import Dataset, Features, IterableDataset, concatenate_datasets, load_from_disk
from tqdm.auto import tqdm

from ..data.host_folders import find_writers, send, send_to_hosts
from ..data.in_order import map_in_order
from ..data.processes import run_on_all_processes, share_from_main_process
from ..data.progress import progress_bar
from ..data.storage import lock, run_on_main_process, save_dataset, write_json
from ..errors import InputError


Columns = dict[str, list[Any]]
Row = dict[str, Any]
Loaded = TypeVar("Loaded")
_STREAM_SHARD = 256  # rows of a stream held in memory, undecoded
_MIN_SHARD = 64
_MAX_SHARD = 1024
_SHARDS = 32  # enough for several processes to share evenly


def map_batches(
    dataset: Dataset,
    load: Callable[[Row], Loaded],
    compute: Callable[[Columns, list[Loaded]], Columns],
    *,
    features: Features,
    batch_size: int,
    bar: tqdm,
) -> Dataset:
    """
    Return the columns that `compute` makes of each batch, as one table in memory.

    Args:
        dataset: the rows.
        load: see [`sharded_map`].
        compute: see [`sharded_map`].
        features: of the new columns.
        batch_size: rows per call of `compute`.
        bar: a progress bar, advanced by the rows of each batch.
    """
    with _loaded(map(_Batch, dataset.iter(batch_size)), load, batch_size) as batches:
        return _table(batches, compute, features, bar)


class _Batch(NamedTuple):
    rows: Columns
    shard: str = ""
    shard_batches: int = 0  # of which the shard consists


@contextmanager
def _loaded(
    batches: Iterable[_Batch], load: Callable[[Row], Loaded], ahead: int
) -> Iterator[Iterator[tuple[_Batch, list[Loaded]]]]:
    """Pair batches with what `load` makes of their rows, in as many threads as torch uses and so many in advance."""
    taken: deque[_Batch] = deque()

    def rows() -> Iterator[Row]:
        for batch in batches:
            taken.append(batch)
            for values in zip(*batch.rows.values(), strict=True):
                yield dict(zip(batch.rows, values, strict=True))

    def regroup(loaded: Iterator[Loaded]) -> Iterator[tuple[_Batch, list[Loaded]]]:
        for first in loaded:
            batch = taken.popleft()
            yield batch, [first, *islice(loaded, _num_rows(batch.rows) - 1)]

    pool = ThreadPoolExecutor(torch.get_num_threads(), thread_name_prefix="kgl load")
    try:
        yield regroup(map_in_order(pool, load, rows(), ahead))
    finally:
        pool.shutdown(cancel_futures=True)


def _table(
    batches: Iterable[tuple[_Batch, list[Loaded]]],
    compute: Callable[[Columns, list[Loaded]], Columns],
    features: Features,
    bar: tqdm,
) -> Dataset:
    columns: Columns = {name: [] for name in features}
    for batch, loaded in batches:
        for name, values in compute(batch.rows, loaded).items():
            columns[name] += values
        bar.update(_num_rows(batch.rows))
    return Dataset.from_dict(columns, features=features)


def sharded_map(
    dataset: Dataset | IterableDataset,
    load: Callable[[Row], Loaded],
    compute: Callable[[Columns, list[Loaded]], Columns],
    identify: Callable[[Columns], str],
    folder: Path,
    *,
    features: Features,
    batch_size: int,
    title: str,
) -> Dataset:
    """
    Write the columns that `compute` makes of each batch as one table, in the order of the rows, to `folder`.

    Under `accelerate launch` the processes share the shards; the table does not depend on their number. Hosts that do
    not share the folder get a copy each. Finished shards are kept beside it until the table is complete: a stopped
    pass resumes, and a finished pass computes nothing. `identify` tells a shard of other rows or settings.

    Args:
        dataset: the rows; of a stream a shard and a batch are held in memory, undecoded.
        load: from a row to what `compute` needs besides; threads call it, for at most a batch in advance.
        compute: from a batch of columns, and what was loaded of its rows, to new columns of the same length.
        identify: from a shard's rows to a hash of everything that decides what `compute` makes of them.
        folder: the table, for `load_from_disk`; `<folder>.json` and `<folder>.shards` are used too.
        features: of the new columns.
        batch_size: rows per call of `compute`.
        title: of the progress bar, shown by the main process on a terminal.

    Raises:
        InputError: the folder holds something else, another process writes it, or it is full; finished shards stay.
    """
    state = PartialState()
    manifest, shards = (folder.with_name(f"{folder.name}.{ending}") for ending in ("json", "shards"))
    writers = find_writers(folder.parent)
    finished = _finished_keys(folder, manifest, is_writer=writers[state.process_index] == state.process_index)
    own_keys: list[str] = []

    def own_shards() -> Iterator[tuple[str, Columns]]:
        for number, rows in _own_shards(dataset, state):
            own_keys.append(key := f"{number:06d}-{identify(rows)}")
            if finished is not None and key not in finished:
                raise _other_table(folder)
            yield key, rows

    def write_missing_shards() -> None:
        bar = _progress_bar(title, dataset, state)
        with bar, _loaded(_missing_batches(own_shards(), shards, stored, batch_size, bar), load, batch_size) as loaded:
            _write_shards(loaded, compute, features, bar, shards)

    with _locked(shards) if finished is None else nullcontext():
        stored = finished or share_from_main_process(lambda: [path.name for path in shards.iterdir()])
        run_on_all_processes(write_missing_shards)
        keys = _collect(shards, own_keys, stored, writers)
        if finished is None and state.is_main_process:
            _join_shards(keys, shards, manifest, folder)
    if finished is not None and keys != finished:
        raise _other_table(folder)
    return _share(folder, manifest, shards, writers)


@contextmanager
def _locked(shards: Path) -> Iterator[None]:
    """Keep other jobs out of the folder of shards within."""
    held = run_on_main_process(lambda: lock(shards))
    try:
        yield
    finally:
        if held is not None:
            held.release()


def _missing_batches(
    own_shards: Iterable[tuple[str, Columns]], shards: Path, stored: Collection[str], batch_size: int, bar: tqdm
) -> Iterator[_Batch]:
    """Yield the batches of the shards that are not stored yet."""
    for key, rows in own_shards:
        if key in stored or (shards / key).exists():
            bar.update(_num_rows(rows))
        else:
            batches = list(_split(rows, batch_size))
            yield from (_Batch(batch, key, len(batches)) for batch in batches)


def _write_shards(
    batches: Iterator[tuple[_Batch, list[Loaded]]],
    compute: Callable[[Columns, list[Loaded]], Columns],
    features: Features,
    bar: tqdm,
    shards: Path,
) -> None:
    """Write the tables of shards whose batches follow each other."""
    for first in batches:
        of_shard = chain([first], islice(batches, first[0].shard_batches - 1))
        save_dataset(_table(of_shard, compute, features, bar), shards / first[0].shard)


def _join_shards(keys: list[str], shards: Path, manifest: Path, folder: Path) -> None:
    write_json(manifest, keys)
    save_dataset(concatenate_datasets([load_from_disk(shards / key) for key in keys]), folder)


def _share(folder: Path, manifest: Path, shards: Path, writers: list[int]) -> Dataset:
    """Send the table to the hosts that do not see it, delete the shards, and return the table."""
    state = PartialState()
    for path in (manifest, folder):
        send_to_hosts(path, writers)
    if writers[state.process_index] == state.process_index:
        shutil.rmtree(shards, ignore_errors=True)  # also after a kill between the table and this line
    state.wait_for_everyone()
    return load_from_disk(folder)


def _collect(shards: Path, own_keys: list[str], stored: Collection[str], writers: list[int]) -> list[str]:
    """
    Return the keys of all processes, sorted, and send the main process the shards that it does not see.

    Raises:
        InputError: there are none.
    """
    everyone = gather_object([own_keys])
    if not any(everyone):
        raise InputError("The dataset has no rows; give one with images.")
    for number, keys in enumerate(everyone):
        for key in keys if writers[number] != 0 else ():
            if key not in stored:
                send(shards / key, number, wanted=PartialState().is_main_process)
    return sorted(key for keys in everyone for key in keys)


def _progress_bar(title: str, dataset: Dataset | IterableDataset, state: PartialState) -> tqdm:
    """Return the bar over this process's rows; only the main process shows one, and only on a terminal."""
    return progress_bar(
        title=title if state.num_processes == 1 else f"{title}, process 1 of {state.num_processes}",
        total=_num_own_rows(dataset, state),
        unit=" images",
        disable=not state.is_main_process,
    )


def _finished_keys(folder: Path, manifest: Path, is_writer: bool) -> list[str] | None:
    """Return the keys of the shards behind the main process's finished table, None where there is no table yet."""

    def read() -> list[str] | None:
        if not is_writer or not folder.exists():
            return None
        if not manifest.exists():
            raise InputError(f"{folder} exists already and was not made here; choose another folder.")
        try:
            return json.loads(manifest.read_text())
        except json.JSONDecodeError as error:
            raise InputError(f"{manifest} is damaged ({error}); choose another folder.") from error

    keys = run_on_all_processes(read)
    return share_from_main_process(lambda: keys)


def _other_table(folder: Path) -> InputError:
    return InputError(
        f"{folder} holds the results of another model, other settings or other images; choose another folder."
    )


def _own_shards(dataset: Dataset | IterableDataset, state: PartialState) -> Iterator[tuple[int, Columns]]:
    """Yield this process's shards with their numbers."""
    if isinstance(dataset, Dataset):
        size = _shard_size(dataset)
        for start in _own_starts(dataset, state):
            yield start // size, dataset[start : start + size]
    else:
        for number, rows in enumerate(dataset.iter(_STREAM_SHARD)):
            if number % state.num_processes == state.process_index:
                yield number, rows


def _shard_size(dataset: Dataset) -> int:
    return min(max(-(-len(dataset) // _SHARDS), _MIN_SHARD), _MAX_SHARD)


def _own_starts(dataset: Dataset, state: PartialState) -> range:
    """Return the first rows of this process's shards."""
    size = _shard_size(dataset)
    return range(state.process_index * size, len(dataset), state.num_processes * size)


def _num_own_rows(dataset: Dataset | IterableDataset, state: PartialState) -> int | None:
    """Return the number of this process's rows, None for a stream."""
    if not isinstance(dataset, Dataset):
        return None
    size = _shard_size(dataset)
    return sum(min(size, len(dataset) - start) for start in _own_starts(dataset, state))


def _split(rows: Columns, batch_size: int) -> Iterator[Columns]:
    for start in range(0, _num_rows(rows), batch_size):
        yield {name: column[start : start + batch_size] for name, column in rows.items()}


def _num_rows(rows: Columns) -> int:
    return len(next(iter(rows.values())))


__all__ = ["Columns", "Row", "map_batches", "sharded_map"]
