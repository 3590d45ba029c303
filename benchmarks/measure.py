"""What the benchmarks share: paired timing, peak memory, and where results go."""

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
from transformers import ResNetConfig


# ResNet-18 up to stage 3, as in the recipes.
BACKBONE = ResNetConfig(
    layer_type="basic", embedding_size=64, depths=[2, 2, 2], hidden_sizes=[64, 128, 256], out_features=["stage3"]
)


def paired(
    with_it: Callable[[], object], without_it: Callable[[], object], rounds: int, warmups: int = 3
) -> dict[str, object]:
    """Seconds of both in turns, the order changing every round, and the quartiles of their ratio."""

    def seconds(call: Callable[[], object]) -> float:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        started = time.perf_counter()
        call()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return time.perf_counter() - started

    for _ in range(warmups):
        with_it(), without_it()
    times = {"with": [], "without": []}
    for index in range(rounds):
        pair = [("with", with_it), ("without", without_it)]
        for name, call in pair if index % 2 else pair[::-1]:
            times[name].append(seconds(call))
    ratios = np.asarray(times["with"]) / np.asarray(times["without"])
    low, median, high = np.quantile(ratios, (0.25, 0.5, 0.75)).round(4).tolist()
    return {"ratio": median, "quartiles": [low, high], **times}


def peak_memory(call: Callable[[], object]) -> float:
    """
    MiB that `call` takes at its peak beyond what was there before.

    On a GPU by torch's own account; on Linux's CPUs by the process's resident memory in the second of two calls (the
    first loads code), in a fork whose allocator gives back what is freed, so that none of it is found again.
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
        libc.mallopt(-3, 1 << 16)  # M_MMAP_THRESHOLD: blocks from 64 KiB on go back to the system
        call()
        libc.malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        before = _resident("VmRSS")
        call()
        os.write(writing, f"{_resident('VmHWM') - before}".encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answer:
        kibibytes = answer.read()
    if os.waitpid(child, 0)[1] != 0:
        raise RuntimeError("The call failed while its memory was measured.")
    return int(kibibytes) / 1024


def resident_memory() -> float:
    """MiB that this process holds."""
    return _resident("VmRSS") / 1024


def hardware() -> str:
    """The name of the GPU, or of the processor."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    cpuinfo = Path("/proc/cpuinfo")
    names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
    return names[0] if names else platform.processor()


def store(name: str, settings: dict[str, Any], results: Any) -> None:
    """Write a benchmark's figures, every round of them, to `benchmarks/results/<name>.json`."""
    path = Path(__file__).parent / "results" / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    record = {"hardware": hardware(), "torch": torch.__version__, **settings, "results": results}
    path.write_text(json.dumps(record, indent=1) + "\n")


def lines_of(path: Path) -> list[dict[str, Any]]:
    """
    The runs in a `.jsonl` file.

    Raises:
        ValueError: a line is not whole, as when a run was killed while it wrote.
    """
    runs = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            runs.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not a whole run: delete that line ({error}).") from error
    return runs


def _resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1])
    raise RuntimeError(f"No {field} in /proc/self/status.")
