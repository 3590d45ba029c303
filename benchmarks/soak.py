"""
Run training, `kgl predict --watch` and the Space's app side by side under load, and look at what they hold over time.

    python benchmarks/soak.py [--minutes 120] [--folder FOLDER] [--into docs/reliability.md]
    python benchmarks/soak.py --from_samples FOLDER --into docs/reliability.md

Three processes, each with one thread of torch: *training* runs two small jobs with two seeds in turns, again and again
in one process; *prediction* watches a folder that whole, slowly written, broken, mended and changed files come to;
*app* is used by clients of several addresses (`benchmarks/soak_clients.py`). Afterwards all runs of a job and seed
must have ended in the same weights, metrics and predictions, bit by bit; every file must have one row, that of `kgl
predict` without `--watch`; every request must have been answered rightly or refused by a sentence.

Memory, open files and threads of each process are read every ten seconds, and kept as 120 medians. *Flat* means, as
decided before: from the second tenth of the time to the last one, the median of resident memory grows by less than
5 %, and those of open files and threads by two at most. The slope is that of a line through the medians of these nine
tenths, with Student's 95 % interval. `--from_samples` writes the table and the figure of a soak that has ended.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
import torch
from safetensors.torch import load_file
from scipy import stats

from kgl.benchmarks.evidence.formatting import markdown_table, write_block
from kgl.benchmarks.evidence.records import append_lines, stored_lines
from kgl.benchmarks.measure import (
    RESULTS,
    anonymous_memory,
    count_open_files,
    count_threads,
    hardware,
    resident_memory,
)
from kgl.benchmarks.soak_clients import Clients, start_app
from kgl.benchmarks.soak_requests import count_requests
from kgl.benchmarks.watch import (
    SUFFIXES,
    Watch,
    compare,
    deliver,
    make_image,
    read_rows,
    stamp_of,
    train_model,
    write_slowly,
)
from kgl.cli import train as command
from kgl.evaluation.prediction_table import file_stamp


OUTPUT = RESULTS / "soak.jsonl"
FIGURE = Path(__file__).parents[1] / "docs" / "soak.png"
MEASURES = {"resident": "resident memory, MiB", "files": "open files", "threads": "threads"}
_SETTINGS = [
    "--dataset", "surfaces", "--num_surfaces", "80", "--surface_size", "64", "--image_height", "64",
    "--image_width", "64", "--backbone", "kgl-tiny", "--use_cpu", "true",
]  # fmt: skip
_STEPS = ["--max_steps", "30", "--save_steps", "15", "--fine_tune", "true"]
JOBS = {
    "frozen backbone": _SETTINGS,
    "two phases": [*_SETTINGS, *_STEPS, "--head", "avg_max", "--prior_source", "saliency"],
}
SEEDS = (0, 1)
_SAMPLE_EVERY = 10.0  # seconds
_POINTS = 120
_LOOK_EVERY = 2.0  # of the watch, seconds
_MAX_GROWTH, _MAX_MORE = 0.05, 2


def digest_run(output: Path) -> str:
    """Return a digest of the weights, metrics and predictions of a finished run."""
    digest = hashlib.sha256((output / "predictions.csv").read_bytes())
    for phase in ("primary", "final"):
        for name, value in sorted(load_file(output / phase / "model.safetensors").items()):
            digest.update(name.encode() + value.numpy().tobytes())
    report = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    for result in report["results"].values():
        result.pop("seconds")
    for name in ("results", "differences", "validation"):
        digest.update(json.dumps(report[name], sort_keys=True).encode())
    return digest.hexdigest()


def train_again_and_again(folder: Path) -> None:
    """Train until the file `stop` is there, with pauses as long as the runs, and note each run in `runs.jsonl`."""
    torch.set_num_threads(1)
    number = 0
    while not (folder / "stop").exists():
        job, seed = list(JOBS)[number % 2], SEEDS[number // 2 % 2]
        line, started = {"job": job, "seed": seed, "digest": None}, time.perf_counter()
        try:
            command.main([*JOBS[job], "--seed", str(seed), "--output_dir", str(folder / "run")])
            line["digest"] = digest_run(folder / "run")
        except SystemExit as ended:
            line["code"] = ended.code
        seconds = time.perf_counter() - started
        append_lines(folder / "runs.jsonl", line | {"seconds": round(seconds, 1)})
        shutil.rmtree(folder / "run", ignore_errors=True)
        time.sleep(seconds)
        number += 1


def start_training(folder: Path) -> subprocess.Popen:
    """Start a process that trains again and again."""
    folder.mkdir()
    with (folder / "log.txt").open("w") as log:
        return subprocess.Popen(
            [sys.executable, __file__, "--train", str(folder)],
            stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip


def count_runs(folder: Path) -> dict[str, Any]:
    """Return how many runs there were, how many failed, and how many ended otherwise than the first of their kind."""
    runs = pd.DataFrame(stored_lines(folder / "runs.jsonl"))
    finished = runs.dropna(subset="digest")
    first = finished.groupby(["job", "seed"])["digest"].transform("first")
    return {"runs": len(runs), "kinds": len(JOBS) * len(SEEDS), "failed": int(runs["digest"].isna().sum()),
            "other_results": int((finished["digest"] != first).sum())}  # fmt: skip


class Feeder:
    """A thread that fills the folder of a watch until it is stopped."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._stop, self._draws = folder, threading.Event(), np.random.default_rng(0)
        self.changed: set[str] = set()
        self.broken: set[str] = set()
        self.mended: set[str] = set()
        self.failure = ""
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """
        End it.

        Raises:
            RuntimeError: it had failed.
        """
        self._stop.set()
        self._thread.join()
        if self.failure:
            raise RuntimeError(f"The feeder failed: {self.failure}")

    def _run(self) -> None:
        number = 0
        try:
            while not self._stop.wait(2.0):
                self._feed(number)
                number += 1
        except Exception as error:
            self.failure = f"{type(error).__name__}: {error}"

    def _feed(self, number: int) -> None:
        """Deliver a file, and now and then a slow, a broken, a mended or a changed one."""
        deliver(self._folder, {f"{number}.png": number})
        if number % 10 == 9:
            name = f"slow_{number}{SUFFIXES[number // 10 % len(SUFFIXES)]}"
            write_slowly(self._folder, name, number + 1, self._draws.uniform(0.2, 1.5, 3))
        if number % 15 == 14:
            name = f"{self._draws.integers(number)}.png"
            deliver(self._folder, {name: 100_000 + number})
            self.changed.add(name)
        if number % 20 == 19:
            content = make_image(self._folder, f"broken_{number}.png", number).read_bytes()
            (self._folder / "line" / f"broken_{number}.png").write_bytes(content[: len(content) // 2])
            self.broken.add(f"broken_{number}.png")
        if number % 40 == 39 and number > 60:
            name = f"broken_{number - 40}.png"
            deliver(self._folder, {name: number})
            self.broken.remove(name)
            self.mended.add(name)


def finish_watch(watch: Watch, feeder: Feeder, folder: Path, model: str) -> dict[str, Any]:
    """End the feeder, wait for the rows of all whole files, end the watch, and compare its rows with a prediction."""
    feeder.stop()
    line, table, log = folder / "line", folder / "out" / "predictions.csv", folder / "log.txt"
    stamps = {path.name: file_stamp(path) for path in line.iterdir() if path.name not in feeder.broken}
    watch.wait_for(lambda: {row["file_name"]: stamp_of(row) for row in read_rows(table)} == stamps)
    watch.wait_for(lambda: all(name in log.read_text() for name in feeder.broken))
    watch.process.terminate()
    code = watch.process.wait()  # 1: images were unusable
    if code != int(bool(feeder.broken)):
        raise RuntimeError(f"The watch ended with exit code {code}: {log.read_text()[-2000:]}")
    counts = {"broken": len(feeder.broken), "mended": len(feeder.mended), "changed": len(feeder.changed)}
    return compare(folder, model, stamps, feeder.changed) | counts


def cpu_seconds(process: int) -> float:
    """Return the seconds of the processor that a process has used."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def read_process(process: int) -> dict[str, float]:
    """Return what a process holds: memory in MiB, open files and threads."""
    return {
        "resident": round(resident_memory(process), 1), "anonymous": round(anonymous_memory(process), 1),
        "files": count_open_files(process), "threads": count_threads(process), "cpu": cpu_seconds(process),
    }  # fmt: skip


def sample(processes: dict[str, int], minutes: float, file: Path) -> None:
    """Append what the processes hold to a file, every ten seconds for so many minutes."""
    started = time.monotonic()
    while (passed := time.monotonic() - started) < 60 * minutes:
        for name, process in processes.items():
            append_lines(file, {"process": name, "seconds": round(passed, 1)} | read_process(process))
        time.sleep(_SAMPLE_EVERY)


def soak(minutes: float, folder: Path) -> None:
    """Run all three under load, and leave `samples.jsonl` and `summary.json` in the folder."""
    model = train_model(folder / "model")
    (folder / "watch" / "line").mkdir(parents=True)
    app = start_app(model, folder)
    watch = Watch(folder / "watch", model, _LOOK_EVERY)
    training = start_training(folder / "training")
    try:
        watch.wait_until_watching()
        feeder, clients = Feeder(folder / "watch"), Clients(app, model, folder)
        processes = {"training": training.pid, "prediction": watch.process.pid, "app": app.process.pid}
        sample(processes, minutes, folder / "samples.jsonl")
        clients.stop()
        (folder / "training" / "stop").touch()
        prediction = finish_watch(watch, feeder, folder / "watch", model)
        codes = {"training": training.wait(120)}
        app.process.send_signal(signal.SIGTERM)
        codes["app"] = app.process.wait(60)
    finally:
        for process in (training, watch.process, app.process):
            process.kill()
    results = {
        "training": count_runs(folder / "training"), "prediction": prediction, "app": count_requests(app.requests),
        "client_failures": clients.failures[:20], "exit_codes": codes,
    }  # fmt: skip
    versions = {name: version(name) for name in ("torch", "transformers", "datasets", "accelerate")}
    versions["python"] = platform.python_version()
    summary = {"summary": results, "minutes": minutes, "hardware": hardware(), "versions": versions}
    (folder / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")


def condense(samples: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the medians of samples over equal spans of time, at most 120 per process, with the seconds of the CPU."""
    frame = pd.DataFrame(samples)
    span = max(_SAMPLE_EVERY, (frame["seconds"].max() + _SAMPLE_EVERY) / _POINTS)
    frame["minute"] = ((frame["seconds"] // span + 0.5) * span / 60).round(2)
    grouped = frame.groupby(["process", "minute"], sort=False)
    medians = grouped[["resident", "anonymous", *list(MEASURES)[1:]]].median().round(1)
    return medians.assign(cpu=grouped["cpu"].last().round(1)).reset_index().to_dict("records")


def growth(minutes: np.ndarray, values: np.ndarray) -> dict[str, float]:
    """Return the medians of the second and of the last tenth, and the slope per hour from tenth to tenth."""
    tenths = [(np.median(some), np.median(minutes[part])) for some, part in zip(
        np.array_split(values, 10), np.array_split(np.arange(len(values)), 10), strict=True)][1:]  # fmt: skip
    levels, hours = np.array([level for level, _ in tenths]), np.array([middle for _, middle in tenths]) / 60
    fit = stats.linregress(hours, levels)
    width = stats.t.ppf(0.975, len(levels) - 2) * fit.stderr
    return {"first": float(levels[0]), "last": float(levels[-1]), "slope": float(fit.slope),
            "low": float(fit.slope - width), "high": float(fit.slope + width)}  # fmt: skip


def is_flat(found: dict[str, dict[str, float]]) -> bool:
    """Return whether memory, open files and threads of a process have not grown."""
    memory, *others = (found[measure] for measure in MEASURES)
    return memory["last"] < (1 + _MAX_GROWTH) * memory["first"] and all(
        other["last"] <= other["first"] + _MAX_MORE for other in others
    )


def growth_table(lines: list[dict[str, Any]]) -> str:
    """Return a Markdown table of what each process holds in the second and in the last tenth of the time."""
    rows = []
    for process, group in pd.DataFrame(lines).groupby("process", sort=False):
        found = {of: growth(group["minute"].to_numpy(), group[of].to_numpy()) for of in MEASURES}
        memory = found["resident"]
        more = memory["last"] - memory["first"]
        cores = group["cpu"].diff().sum() / (60 * group["minute"].diff().sum())
        rows.append({
            "process": str(process), "memory, second tenth": f"{memory['first']:.0f} MiB",
            "last tenth": f"{memory['last']:.0f} MiB", "growth": f"{more:+.1f} MiB, {more / memory['first']:+.1%}",
            "per hour": f"{memory['slope']:+.1f} ({memory['low']:+.1f} .. {memory['high']:+.1f}) MiB",
            "open files": f"{found['files']['first']:g}, {found['files']['last']:g}",
            "threads": f"{found['threads']['first']:g}, {found['threads']['last']:g}",
            "flat": "yes" if is_flat(found) else "no", "processor": f"{cores:.2f} cores",
        })  # fmt: skip
    return markdown_table(rows)


def requests_table(found: dict[str, Any]) -> str:
    """Return a Markdown table of the requests to the app and their outcomes."""
    outcomes = ("answered", "refused", "queue full", "left", "lost", "wrong")
    rows = []
    for kind, counts in sorted(found["kinds"].items()):
        limit = found["limits"].get(kind)
        held = "" if limit is None else f"{limit['above']} admitted above, {limit['below']} refused below"
        rows.append({"requests to the app": kind, "sent": f"{sum(counts.values()):,}"}
                    | {one: f"{counts.get(one, 0):,}" for one in outcomes} | {"rate limit": held})  # fmt: skip
    return markdown_table(rows)


def block(lines: list[dict[str, Any]], summary: dict[str, Any]) -> str:
    """Return what the page says: both tables, and training and prediction in words."""
    results = summary["summary"]
    training, rows = results["training"], results["prediction"]
    words = (
        f"{summary['minutes']:g} minutes on {summary['hardware']}. {training['runs']} training runs of "
        f"{training['kinds']} kinds: {training['failed']} failed, {training['other_results']} ended otherwise than "
        f"the first of their kind. {rows['files']} whole files, {rows['changed']} of them changed and "
        f"{rows['mended']} mended, had {rows['rows']} rows: {rows['more_than_one_row']} too many, "
        f"{rows['missing']} missing, "
        f"{rows['changed_with_old_row']} of a former content, {rows['other_decisions']} with another decision than "
        f"`kgl predict` makes without `--watch` (largest difference of P(defect): "
        f"{rows['largest_score_difference']:.0e}); {rows['broken']} broken files were named."
    )
    room = f"{results['app']['refused_with_room']} requests were refused for a full queue that certainly had room."
    return f"{growth_table(lines)}\n\n{words}\n\n{requests_table(results['app'])}\n\n{room}"


def draw(lines: list[dict[str, Any]]) -> None:
    """Plot memory, open files and threads over time, one line per process."""
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(len(MEASURES), figsize=(7, 6), sharex=True, constrained_layout=True)
    for axis, (measure, title) in zip(axes, MEASURES.items(), strict=True):
        for process, group in pd.DataFrame(lines).groupby("process", sort=False):
            axis.plot(group["minute"], group[measure], label=process)
        axis.set(ylim=(0, None), ylabel=title)
    axes[0].legend(loc="lower right")
    axes[-1].set(xlabel="minutes")
    figure.savefig(FIGURE, dpi=110)


def main() -> None:
    """Soak, or take the samples of a soak that has ended; write the results, the figure and the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=120)
    parser.add_argument("--folder", type=Path, help="to work in, new or empty; a temporary one by default")
    parser.add_argument("--from_samples", type=Path, help="the folder of a soak that has ended")
    parser.add_argument("--into", type=Path, help="a page with the markers `soak`; writes results and figure, too")
    parser.add_argument("--train", type=Path, help=argparse.SUPPRESS)  # in the process of the training
    options = parser.parse_args()
    if options.train is not None:
        train_again_and_again(options.train)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.from_samples or options.folder or Path(temporary)
        if options.from_samples is None:
            folder.mkdir(parents=True, exist_ok=True)
            soak(options.minutes, folder)
        lines = condense(stored_lines(folder / "samples.jsonl"))
        summary = json.loads((folder / "summary.json").read_text())
    print(block(lines, summary))
    if options.into is not None:
        OUTPUT.unlink(missing_ok=True)
        append_lines(OUTPUT, *lines, summary)
        draw(lines)
        write_block(options.into, "soak", block(lines, summary))


if __name__ == "__main__":
    main()
