"""
Inject faults into training jobs, resume them, and compare the result with that of a job without a fault.

    python benchmarks/faults.py [--kills 50] [--others 10] [--into docs/reliability.md]

The jobs train on generated surfaces: `two phases` by steps, guided by the primary's maps (primary classifier, priors,
final classifier, evaluation, report), and `tuned stage`, the default with `--fine_tune true`. Each is run once without
a fault, and then with one fault at a time in a process of its own. "The same" means that all weights, metrics and
predictions are equal bit by bit. One JSON line per fault; lines that the results file already holds are skipped.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file

from kgl.benchmarks.evidence.formatting import markdown_table, write_block
from kgl.benchmarks.evidence.records import append_lines, stored_lines
from kgl.benchmarks.measure import RESULTS, hardware
from kgl.cli import train as command
from kgl.training.callbacks import ProgressBarCallback
from kgl.training.run_dir import RunState
from kgl.training.trainer import ClassificationTrainer


OUTPUT = RESULTS / "faults.jsonl"
_SETTINGS = [
    "--dataset", "surfaces", "--num_surfaces", "240", "--surface_size", "64", "--image_height", "64",
    "--image_width", "64", "--backbone", "kgl-tiny", "--max_steps", "100", "--save_steps", "7", "--use_cpu", "true",
]  # fmt: skip
JOBS = {
    "two phases": [*_SETTINGS, "--fine_tune", "true", "--head", "avg_max", "--prior_source", "saliency"],
    "tuned stage": [*_SETTINGS, "--fine_tune", "true"],
}
# Which part of a job is running, by the steps that its state lists as finished, the last one that fits.
_PARTS = {
    "two phases": [("", "start and cache"), ("cache", "primary classifier"), ("primary", "priors"),
                   ("priors", "final classifier"), ("final", "evaluation and report")],
    "tuned stage": [("", "frozen features"), ("frozen_features", "primary classifier"), ("primary", "priors"),
                    ("priors", "tuned stage"), ("tuned", "final classifier"), ("final", "evaluation and report")],
}  # fmt: skip
_MIB = 2**20
_MOST_DISK = 2  # of a finished run's size: features and checkpoints, which are deleted at the end, come to as much


def start(job: str, output: Path, before: Callable[[], None] = lambda: None) -> int:
    """Start a job in a fork of this process, which has imported all of it, and return the fork's id."""
    log = output.with_name(f"{output.name}.log")
    process = os.fork()
    if process == 0:
        os.setsid()
        code = 1
        try:
            with log.open("a") as stream, redirect_stdout(stream), redirect_stderr(stream):
                before()
                command.main([*JOBS[job], "--output_dir", str(output)])
            code = 0
        except SystemExit as ended:
            code = int(ended.code or 0)
        except BaseException:
            with log.open("a") as stream:
                traceback.print_exc(file=stream)
        finally:
            os._exit(code)
    return process


def finish(process: int) -> int:
    """Wait for a fork, and return its exit code; minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def run(job: str, output: Path, before: Callable[[], None] = lambda: None) -> int:
    """Run a job to its end, and return its exit code."""
    return finish(start(job, output, before))


def last_line(output: Path) -> str:
    """Return the last line that a job printed, without the folder."""
    lines = output.with_name(f"{output.name}.log").read_text().strip().splitlines() or [""]
    return lines[-1].replace(str(output), "RUN")


def same(one: Path, other: Path) -> bool:
    """Return whether two finished runs have the same weights, metrics and predictions."""
    for phase in ("primary", "final"):
        weights, others = (load_file(folder / phase / "model.safetensors") for folder in (one, other))
        if weights.keys() != others.keys() or not all(value.equal(others[name]) for name, value in weights.items()):
            return False
    results = []
    for folder in (one, other):
        report = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
        for result in report["results"].values():
            result.pop("seconds")
        results.append([report[name] for name in ("results", "differences", "validation")])
    tables = [(folder / "predictions.csv").read_bytes() for folder in (one, other)]
    return results[0] == results[1] and tables[0] == tables[1]


def part_of(job: str, output: Path) -> str:
    """Return which part of a job a stopped run is in."""
    state = RunState(output)
    return next(name for step, name in reversed(_PARTS[job]) if not step or state.record(step) is not None)


def resumed(job: str, output: Path, reference: Path) -> str:
    """Run a stopped job again, and return what came of it."""
    code = run(job, output)
    if code != 0:
        return f"exit code {code}: {last_line(output)}"
    return "the same" if same(output, reference) else "another result"


def stop_by(number: int, job: str, seconds: float, output: Path, reference: Path) -> dict[str, Any]:
    """Send a signal after so many seconds, and run the job again."""
    process = start(job, output)
    time.sleep(seconds)
    os.kill(process, number)
    code = finish(process)
    part = part_of(job, output) if (output / "state.json").exists() else "start and cache"
    return {"part": part, "code": code, "after": resumed(job, output, reference)}


def after_step(phase: str, step: int, act: Callable[[], None]) -> Callable[[], None]:
    """Return what makes a job do something at the end of a step of a phase."""

    def patch() -> None:
        original = ProgressBarCallback.on_step_end

        def on_step_end(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            original(self, args, state, control, **kwargs)
            if Path(args.output_dir).name == phase and state.global_step == step:
                act()

        ProgressBarCallback.on_step_end = on_step_end

    return patch


def damage_checkpoint(kind: str, job: str, phase: str, output: Path, reference: Path) -> dict[str, Any]:
    """Stop a job, damage its last checkpoint, and run it again."""
    run(job, output, after_step(phase, 20, lambda: os.kill(os.getpid(), signal.SIGKILL)))
    last = RunState(output).checkpoints(phase)[-1]["step"]
    file = random.choice(sorted(path for path in (output / phase / f"checkpoint-{last}").rglob("*") if path.is_file()))
    content = bytearray(file.read_bytes())
    if kind == "cut short":
        file.write_bytes(content[: random.randrange(len(content))])
    elif kind == "with a bit flipped":
        content[random.randrange(len(content))] ^= 1 << random.randrange(8)
        file.write_bytes(content)
    else:
        file.unlink()
    after = resumed(job, output, reference)
    log = output.with_name(f"{output.name}.log").read_text()
    found = f"checkpoint-{last}: {file.name} is" in log and "the checkpoint before it is taken" in log
    return {"part": f"{phase}: {file.name}", "code": None, "after": after if found else f"not found; {after}"}


def fill_disk(size: int, job: str, output: Path, reference: Path) -> dict[str, Any]:
    """Run a job on a file system of so many bytes, make room, and run it again."""
    disk = output.parent / f"{output.name}.disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(disk)], check=True)
    try:
        code = run(job, disk / "run")
        log = (disk / "run.log").read_text()
        line = last_line(disk / "run")
        # The log is on the same disk, whose last line may be cut.
        code_and_line = {"code": code, "line": line, "traceback": "Traceback" in log}
        part = part_of(job, disk / "run") if (disk / "run" / "state.json").exists() else "start and cache"
        subprocess.run(["mount", "-o", f"remount,size={1024 * _MIB}", str(disk)], check=True)
        return {"part": part, **code_and_line, "after": resumed(job, disk / "run", reference)}
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def spoil_loss(job: str, phase: str, output: Path, reference: Path) -> dict[str, Any]:
    """Make the loss of one step infinite."""

    def patch() -> None:
        original = ClassificationTrainer.training_step

        def training_step(self: Any, model: Any, inputs: Any, *args: Any) -> torch.Tensor:
            spoilt = Path(self.args.output_dir).name == phase and self.state.global_step == 17
            if spoilt:
                inputs["pixel_values"] = inputs["pixel_values"] * float("nan")
            return original(self, model, inputs, *args)

        ClassificationTrainer.training_step = training_step

    code, line = run(job, output, patch), last_line(output)
    named = "in step 18 the loss of the batch " in line and f"RUN/{phase}/checkpoint-14" in line
    return {"part": phase, "code": code, "after": "step, images and last checkpoint named" if named else line}


def run_out_of_memory(job: str, output: Path, reference: Path) -> dict[str, Any]:
    """Let memory run out with batches of more than four images."""

    def patch() -> None:
        original = ClassificationTrainer.training_step

        def training_step(self: Any, model: Any, inputs: Any, *args: Any) -> torch.Tensor:
            if len(inputs["labels"]) > 4 and self.state.global_step == 11:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
            return original(self, model, inputs, *args)

        ClassificationTrainer.training_step = training_step

    code = run(job, output, patch)
    log = output.with_name(f"{output.name}.log").read_text()
    named = (
        "memory ran out with 16 images a batch. A step now accumulates the gradients of 2 batches of 8 images" in log
    )
    gap = np.nan
    if code == 0:
        tables = [pd.read_csv(folder / "predictions.csv") for folder in (output, reference)]
        columns = [name for name in tables[0] if "_probability_" in name]
        gap = float(np.abs(tables[0][columns] - tables[1][columns]).to_numpy().max())
    return {"part": "training", "code": code, "after": "halved, said and finished" if named else last_line(output),
            "largest change of a probability": gap}  # fmt: skip


def jump_clock(job: str, output: Path, reference: Path) -> dict[str, Any]:
    """Let the wall clock jump to and fro by up to a day at every reading."""

    def patch() -> None:
        real, jumps = time.time, random.Random(0)
        time.time = lambda: real() + jumps.uniform(-86_400, 86_400)

    code = run(job, output, patch)
    after = "the same" if code == 0 and same(output, reference) else last_line(output)
    return {"part": "whole job", "code": code, "after": after}


def run_twice(job: str, output: Path, reference: Path) -> dict[str, Any]:
    """Start a second job in the folder of a running one."""
    first = start(job, output)
    while not (output / "run.json").exists():
        time.sleep(0.01)
    second = output.with_name(f"{output.name}-second.log")
    refused = subprocess.run(
        [sys.executable, "-m", "kgl.cli.main", "train", *JOBS[job], "--output_dir", str(output)],
        capture_output=True, text=True,
    )  # fmt: skip
    second.write_text(refused.stderr)
    after = "the same" if finish(first) == 0 and same(output, reference) else last_line(output)
    return {"part": "whole job", "code": refused.returncode, "after": after}


def faults(kills: int, others: int, seconds: dict[str, float], size: int) -> list[tuple[dict[str, Any], Callable]]:
    """Return the faults, each with the keys that tell it apart and a function of output folder and reference."""
    draws, listed = random.Random(0), []

    def add(fault: str, job: str, index: int | str, inject: Callable[..., dict[str, Any]], *args: Any) -> None:
        listed.append(({"fault": fault, "job": job, "index": index}, partial(inject, *args)))

    for job in JOBS:
        for index in range(kills if job == "two phases" else others):
            add("SIGKILL", job, index, stop_by, signal.SIGKILL, job, draws.random() * seconds[job])
        for index in range(others):
            add("SIGTERM", job, index, stop_by, signal.SIGTERM, job, draws.random() * seconds[job])
            add("disk full", job, index, fill_disk, (index + 1) * size * _MOST_DISK // (others + 1), job)
        for phase in ("primary", "final") if job == "two phases" else ("tuned",):
            for kind in ("cut short", "with a bit flipped", "missing"):
                add(f"file of a checkpoint {kind}", job, phase, damage_checkpoint, kind, job, phase)
            add("loss not finite", job, phase, spoil_loss, job, phase)
        add("memory runs out", job, 0, run_out_of_memory, job)
        add("clock jumps", job, 0, jump_clock, job)
        add("second job in the folder", job, 0, run_twice, job)
    return listed


def table(lines: list[dict[str, Any]]) -> str:
    """Return a Markdown table of faults, the parts of the job that they met, exit codes and outcomes."""
    rows = []
    for (job, fault), group in pd.DataFrame(lines).groupby(["job", "fault"], sort=False):
        parts = group["part"].value_counts(sort=False)
        codes = sorted({str(int(code)) for code in group["code"].dropna()})
        outcomes = group["after"].value_counts()
        rows.append({
            "job": job, "fault": fault, "times": str(len(group)),
            "in": ", ".join(f"{part} {count}" for part, count in parts.items()),
            "exit code": ", ".join(codes), "after": ", ".join(f"{one} {count}" for one, count in outcomes.items()),
        })  # fmt: skip
    return markdown_table(rows, text_columns=6)


def main() -> None:
    """Inject what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50, help="of the job `two phases`")
    parser.add_argument("--others", type=int, default=10, help="of every other kind at random moments, per job")
    parser.add_argument("--into", type=Path, help="a page with the marker `faults`")
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = stored_lines(OUTPUT)
    done = {(line["fault"], line["job"], line["index"]) for line in lines}
    with tempfile.TemporaryDirectory() as name:
        folder, seconds, size = Path(name), {}, 0
        references = {job: folder / job.replace(" ", "_") for job in JOBS}
        for job, reference in references.items():
            started = time.perf_counter()
            if run(job, reference) != 0:
                raise SystemExit(f"the job without a fault failed: {last_line(reference)}")
            seconds[job] = time.perf_counter() - started
            size = max(size, sum(path.stat().st_size for path in reference.rglob("*") if path.is_file()))
        for index, (keys, inject) in enumerate(faults(options.kills, options.others, seconds, size)):
            if tuple(keys.values()) in done:
                continue
            random.seed(index)
            output = folder / str(index)
            line = keys | inject(output, references[keys["job"]]) | {"hardware": hardware()}
            append_lines(OUTPUT, line)
            lines.append(line)
            print(line, flush=True)
            shutil.rmtree(output, ignore_errors=True)
    if options.into is not None:
        write_block(options.into, "faults", table(lines))


if __name__ == "__main__":
    main()
