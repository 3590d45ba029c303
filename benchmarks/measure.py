"""Shared by the benchmarks: paired timing, peak memory, hardware, results files."""

from __future__ import annotations

import ctypes
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import ResNetConfig


RESULTS = Path(__file__).parent / "results"
# ResNet-18 to stage 3, the default backbone.
BACKBONE = ResNetConfig(
    layer_type="basic", embedding_size=64, depths=[2, 2, 2], hidden_sizes=[64, 128, 256], out_features=["stage3"]
)


def paired(
    call: Callable[[], object], baseline: Callable[[], object], rounds: int, warmups: int = 3
) -> dict[str, object]:
    """
    Time two calls in turns, in alternating order.

    Returns:
        `ratio` and `quartiles` of the rounds' ratios, and both calls' `seconds` and `baseline_seconds` of every round.
    """

    def seconds(timed: Callable[[], object]) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        started = time.perf_counter()
        timed()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - started

    for _ in range(warmups):
        call(), baseline()
    times = {"seconds": [], "baseline_seconds": []}
    for index in range(rounds):
        pair = [("seconds", call), ("baseline_seconds", baseline)]
        for name, timed in pair if index % 2 else pair[::-1]:
            times[name].append(seconds(timed))
    ratios = np.asarray(times["seconds"]) / np.asarray(times["baseline_seconds"])
    low, median, high = np.quantile(ratios, (0.25, 0.5, 0.75)).round(4).tolist()
    return {"ratio": median, "quartiles": [low, high], **times}


def in_mode(
    model: nn.Module, images: torch.Tensor, dtype: torch.dtype, channels_last: bool, compiled: bool
) -> tuple[nn.Module, torch.Tensor]:
    """Convert a model in place, and return what to call, compiled where asked, and images of the mode."""
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(dtype).to(memory_format=layout)
    return torch.compile(model) if compiled else model, images.to(dtype).to(memory_format=layout)


def peak_memory(call: Callable[[], object]) -> float:
    """
    Return the MiB that `call` allocates at its peak.

    On a GPU by torch's statistics; on a CPU under Linux by the process's resident memory in the second of two calls
    (the first loads code), in a fork whose allocator returns freed memory to the system.

    Raises:
        RuntimeError: the call failed in the fork.
    """
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        call()
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        libc = ctypes.CDLL(None)
        libc.mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: blocks from 64 KiB on are returned to the system
        call()
        libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        before = _process_status("VmRSS")
        call()
        os.write(writing, f"{_process_status('VmHWM') - before}".encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        kibibytes = answer.read()
    if os.waitpid(child, 0)[1] != 0:
        raise RuntimeError("The call failed while its memory was measured.")
    return int(kibibytes) / 1024


def resident_memory(process: int | str = "self") -> float:
    """Return the resident memory of a process in MiB."""
    return _process_status("VmRSS", process) / 1024


def anonymous_memory(process: int | str = "self") -> float:
    """Return the memory that a process holds itself, without pages of mapped files, in MiB."""
    return _process_status("RssAnon", process) / 1024


def count_threads(process: int | str = "self") -> int:
    """Return how many threads a process has."""
    return _process_status("Threads", process)


def count_open_files(process: int | str = "self") -> int:
    """Return how many files, sockets and pipes a process has open."""
    return len(os.listdir(f"/proc/{process}/fd"))


def highest_resident_memory() -> float:
    """Return the highest resident memory that this process has had, in MiB."""
    return _process_status("VmHWM") / 1024


def hardware() -> str:
    """Return the name of the GPU, or of the processor."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
    return names[0] if names else platform.processor()


def store(name: str, settings: dict[str, Any], results: Any) -> None:
    """Write the measurements of a benchmark, every round of them, to `benchmarks/results/<name>.json`."""
    RESULTS.mkdir(exist_ok=True)
    record = {"hardware": hardware(), "torch": torch.__version__, **settings, "results": results}
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=1) + "\n")


def _process_status(field: str, process: int | str = "self") -> int:
    for line in Path(f"/proc/{process}/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise RuntimeError(f"No {field} in /proc/{process}/status.")
