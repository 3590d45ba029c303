"""Processes of one job, on one host or several: what all must agree on, and signs of life between hosts."""

from __future__ import annotations

import atexit
import os
import re
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from typing import Any, NoReturn

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from transformers.integrations.fsdp import is_fsdp_enabled

from ..errors import InputError
from .storage import Result, run_on_main_process


_LONG_WAIT = timedelta(days=1)  # for another process's share of a large set; a lost host is noticed by the watch
_INTERVAL = 5.0  # seconds between two signs of life
_SILENCE = timedelta(seconds=40)
_GRACE = 2.0  # seconds for a process to end with its own sentence, where all end
_LOST_IN_TEXT = ("gloo/transport", "NCCL error", "monitoredBarrier", "Connection closed by peer")


def share_from_main_process(step: Callable[[], Result]) -> Result:
    """
    Run a step in the main process, and return its result in all.

    Raises:
        InputError: the step raised it; every process does.
    """
    box = [run_on_main_process(step)]
    broadcast_object_list(box)
    return box[0]


def run_on_all_processes(step: Callable[[], Result]) -> Result:
    """
    Run a step in every process, and return each one's result.

    Raises:
        InputError: the step raised it in one; every process does, so that none waits for one that has ended. Those
            where it succeeded name the process and its host.
    """
    result, message = None, None
    try:
        result = step()
    except InputError as error:
        message = str(error)
    for number, (host, other) in enumerate(gather_object([(socket.gethostname(), message)])):
        if message is not None:
            raise InputError(message)
        if other is not None:
            raise InputError(f"Process {number} on {host}: {other}")
    return result


def check_equal(settings: dict[str, dict[str, Any]]) -> None:
    """
    Check that all processes have the same settings and the same images.

    Args:
        settings: JSON values by group; a fingerprint of images has a name that ends in `images`.

    Raises:
        InputError: they differ; the message names the first process that differs from process 0, its host, and what
            differs.
    """
    everyone = gather_object([(socket.gethostname(), settings)])
    main_host, expected = everyone[0]
    for number, (host, found) in enumerate(everyone):
        names = [
            (group, name)
            for group in expected
            for name in expected[group].keys() | found[group].keys()
            if expected[group].get(name) != found[group].get(name)
        ]
        if not names:
            continue
        named = [f"{name} is {expected[group].get(name)!r} there and {found[group].get(name)!r} here"
                 for group, name in sorted(names) if not name.endswith("images")]  # fmt: skip
        if len(named) < len(names):
            named.append("the images are not the same ones")
        raise InputError(
            f"Process {number} on {host} was not started like process 0 on {main_host}: {'; '.join(named)}. Give all "
            "hosts the same files and the same command."
        )


class HostWatch:
    """
    Signs of life between the processes of several hosts, exchanged by a thread of its own.

    A host whose network is cut off closes no connection: the others would wait for it until torch's `ddp_timeout`. The
    watch ends the process with one sentence and exit code 1 once another one has been silent for 40 seconds, or is
    gone, whatever the main thread waits for. On one host there is none: its launcher sees every process end.

    Args:
        command: starts the sentence.
    """

    current: HostWatch | None = None

    def __init__(self, command: str) -> None:
        self._command, self._stopping = command, threading.Event()
        self._hosts = gather_object([socket.gethostname()])
        self._group = torch.distributed.new_group(backend="gloo", timeout=_SILENCE)
        self._thread = threading.Thread(target=self._exchange, name="kgl-host-watch", daemon=True)
        self._thread.start()

    @classmethod
    def start(cls, command: str) -> None:
        """Start the watch where the job has processes on several hosts; all processes call it."""
        processes = PartialState().num_processes
        on_this_host = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
        if processes > on_this_host:
            cls.current = cls(command)

    def stop(self) -> None:
        """End the watch in all processes at once, before they leave their group; all processes call it."""
        self._stopping.set()
        self._thread.join()

    def silence(self) -> None:
        """Let the watch end nothing any more: this process ends with a sentence of its own."""
        self._stopping.set()

    def wait(self, seconds: float) -> None:
        """Give the watch time to end the process with the name of the host that is lost."""
        self._thread.join(seconds)

    def _exchange(self) -> None:
        while True:
            self._stopping.wait(_INTERVAL)
            stopping = torch.tensor(int(self._stopping.is_set()))
            try:
                torch.distributed.monitored_barrier(self._group, timeout=_SILENCE)
                torch.distributed.all_reduce(stopping, torch.distributed.ReduceOp.MIN, group=self._group)
            except RuntimeError as error:
                time.sleep(_GRACE)
                if not self._stopping.is_set():
                    _end_with(self._command, self._sentence(str(error)))
                return
            if stopping.item():
                return

    def _sentence(self, error: str) -> str:
        others = [number for number in range(len(self._hosts)) if number != PartialState().process_index]
        named = re.search(r"Rank (\d+) failed to pass", error)  # process 0 finds out which
        if named is None and PartialState().is_main_process and len(others) > 1:
            return _lost_process("Another process")
        lost = int(named[1]) if named else others[0]  # the others wait for process 0
        return _lost_process(f"process {lost} on {self._hosts[lost]}")


def join_processes(command: str) -> PartialState:
    """
    Join the processes of a job that shares the work of one model, and watch their hosts; all processes call it.

    Args:
        command: see [`HostWatch`].

    Raises:
        InputError: the job was started with FSDP, where transformers loads weights in the main process only.
    """
    state = PartialState(cpu=not torch.cuda.is_available(), timeout=_LONG_WAIT)
    if is_fsdp_enabled():
        raise InputError("accelerate launch --use_fsdp: each process needs the whole model here; leave it out.")
    HostWatch.start(command)
    return state


def leave_process_group() -> None:
    """End the process group, when all processes have done what they do together; all processes call it."""
    if HostWatch.current is not None:
        HostWatch.current.stop()
        HostWatch.current = None
    PartialState().destroy_process_group()


def end_other_process() -> None:
    """End this process with exit code 0, if it is not the main one, when a command that trains has no more to do."""
    if not PartialState().is_main_process:
        end_process(0)


def end_process(code: int) -> NoReturn:
    """
    End this one of several processes, without Python's clean-up after the functions of `atexit`.

    Models hold the process group after it is left, so its threads run on. One of them may wait for Python's lock to
    release the tensor of the last step: in Python's clean-up it aborts, or waits for ever (pytorch issue 190489).
    """
    if HostWatch.current is not None:  # its thread may wait for processes that have ended
        HostWatch.current.silence()
    atexit._run_exitfuncs()
    _exit_now(code)


def end_after(command: str, error: Exception) -> NoReturn:
    """
    End this one of several processes after an error of no sentence, with exit code 1.

    It ends with the traceback, or with a sentence where the error is that of torch for a process that cannot be
    reached.
    """
    if is_lost_connection(error):
        if HostWatch.current is not None:
            HostWatch.current.wait(2 * _SILENCE.total_seconds())  # it knows which, and ends this process
        _end_with(command, _lost_process("Another process"))
    traceback.print_exception(error)
    end_process(1)


def is_lost_connection(error: Exception) -> bool:
    """Return whether an error is that of torch for a process that ended or cannot be reached."""
    return isinstance(error, torch.distributed.DistError) or any(sign in str(error) for sign in _LOST_IN_TEXT)


def _lost_process(name: str) -> str:
    """Return the sentence about a process that is gone."""
    return (
        f"{name} has ended or cannot be reached; see what it printed, and run the same command again on all hosts to "
        "go on."
    )


def _end_with(command: str, message: str) -> NoReturn:
    """Print a sentence and end this process, whose other threads may wait for ever, with exit code 1."""
    sys.stderr.write(f"{command}: error in process {os.environ.get('RANK', '0')}: {message}\n")
    _exit_now(1)


def _exit_now(code: int) -> NoReturn:
    """End this process without any clean-up, which could wait for other processes."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


__all__ = [
    "HostWatch",
    "check_equal",
    "end_after",
    "end_other_process",
    "end_process",
    "is_lost_connection",
    "join_processes",
    "leave_process_group",
    "run_on_all_processes",
    "share_from_main_process",
]
