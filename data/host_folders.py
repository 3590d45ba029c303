"""Folders that hosts share, or that each has its own of: who writes, and files sent between processes."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import chain
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from ..errors import InputError
from .processes import run_on_all_processes, share_from_main_process


_PART = 2**24  # bytes sent at once


def find_writers(folder: Path) -> list[int]:
    """
    Return for each process the lowest one that sees the same folder, which writes for both; all processes call it.

    A list of zeros where all share it. The folder is made where it is missing.

    Raises:
        InputError: a process cannot write to it.
    """
    state = PartialState()
    if state.num_processes == 1:
        return [0]
    token = share_from_main_process(lambda: secrets.token_hex(8))
    mark = folder / f".{token}-{state.process_index}"

    def write_mark() -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            mark.touch()
        except OSError as error:
            raise InputError(f"{folder}: it cannot be used as a folder. {error}") from error

    run_on_all_processes(write_mark)
    seen = [int(path.name.rpartition("-")[2]) for path in folder.glob(f".{token}-*")]
    writers = gather_object([min(seen)])
    mark.unlink()
    state.wait_for_everyone()  # a folder with marks in it would not be claimed
    return writers


@contextmanager
def writer_first(folder: Path) -> Iterator[None]:
    """Let one process of those that share a folder run the block before the others of them; all processes enter it."""
    state = PartialState()
    is_writer = find_writers(folder)[state.process_index] == state.process_index
    if not is_writer:
        state.wait_for_everyone()
    try:
        yield
    finally:  # the others meet the same error
        if is_writer:
            state.wait_for_everyone()


def send_to_hosts(path: Path, writers: list[int]) -> None:
    """
    Send what the main process has at a path to the hosts that do not see it; all processes call it.

    Args:
        path: a file, or a folder, of which the files directly in it are sent.
        writers: from [`find_writers`] of the folder that it lies in.
    """
    if any(writers):
        index = PartialState().process_index
        send(path, 0, wanted=index != 0 and writers[index] == index)
    PartialState().wait_for_everyone()


def send(path: Path, source: int, wanted: bool) -> None:
    """
    Send a file, or the files directly in a folder, from one process to the same path elsewhere; all processes call it.

    Args:
        path: of the file or folder; the latter is complete where it was not there before.
        source: the process that has it.
        wanted: whether this process writes it.
    """
    if PartialState().process_index == source:
        for part in chain(_parts(path), [None]):
            broadcast_object_list([part], from_process=source)
        return
    parts = _receive(source)
    if not wanted:
        for _ in parts:
            pass
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}-unfinished-", dir=path.parent) as unfinished:
        received = Path(unfinished) / path.name
        for name, content in parts:
            file = received / name if name else received
            file.parent.mkdir(exist_ok=True)
            with file.open("ab") as stream:
                stream.write(content)
        _move(received, path)


def _receive(source: int) -> Iterator[tuple[str, bytes]]:
    while True:
        box = [None]
        broadcast_object_list(box, from_process=source)
        if box[0] is None:
            return
        yield box[0]


def _parts(path: Path) -> Iterator[tuple[str, bytes]]:
    """Yield the name of a file in the folder, empty for a single file, and a part of its content."""
    for file in [path] if path.is_file() else sorted(path.iterdir()):
        if file.is_file():
            name = "" if file == path else file.name
            with file.open("rb") as content:
                part = content.read(_PART)
                yield name, part
                while part := content.read(_PART):
                    yield name, part


def _move(received: Path, path: Path) -> None:
    if received.is_dir() and path.exists():  # a checkpoint, where each process writes a file of its own
        for file in received.iterdir():
            file.replace(path / file.name)
    elif received.exists():
        received.replace(path)


__all__ = ["find_writers", "send", "send_to_hosts", "writer_first"]
