"""
How soon `kgl predict --watch` decides a file, whether it waits for whole files, and what kills do to its table.

    python benchmarks/watch.py [--model RUN/final] [--into docs/inference.md]

Generated surfaces, and `kgl-tiny` with heads trained on such ones unless `--model` names another classifier. The delay
is that from a whole file in the folder to its row in the table, read every 20 ms. Files arrive one by one, in bursts,
or are written slowly in place. Then the command is killed (SIGKILL) again and again at random moments while files
arrive and change; in the end the table is compared with the files, and with `kgl predict` without `--watch`. The
results go to `benchmarks/results/watch.json`.
"""

from __future__ import annotations

import argparse
import csv
import io
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from kgl.benchmarks.evidence.formatting import markdown_table, write_block
from kgl.benchmarks.measure import store
from kgl.data.synthetic import CLASSES, generate_surface
from kgl.evaluation.predict_folder import predict_folder
from kgl.evaluation.prediction_table import Stamp, file_stamp


ROOT = Path(__file__).parents[1]
SECONDS = (0.5, 2.0)  # between two looks
SUFFIXES = (".png", ".jpg", ".bmp")  # a part of a BMP file is the hardest to tell from a whole one
_SIZE = 96
_BURST = 25
_READ_EVERY = 0.02
_TIMEOUT = 300


def read_rows(table: Path) -> list[dict[str, str]]:
    """Return the whole rows of a table; none where there is no table."""
    content = table.read_bytes() if table.exists() else b""
    return list(csv.DictReader(io.StringIO(content[: content.rfind(b"\n") + 1].decode("utf-8"), newline="")))


def stamp_of(row: dict[str, str]) -> Stamp:
    """Return the stamp of the file that a row was written for."""
    return row["file_size"], row["file_modified"]


class RowTimes:
    """While entered, notes in `first_seen` when each row (file name and stamp) came into a table."""

    def __init__(self, table: Path) -> None:
        self.first_seen: dict[tuple[str, Stamp], float] = {}
        self._table, self._stop = table, threading.Event()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> RowTimes:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stop.set()
        self._thread.join()

    def _read(self) -> None:
        before = None
        while not self._stop.wait(_READ_EVERY):
            state = self._table.stat() if self._table.exists() else None
            changed = state and (state.st_ino, state.st_size, state.st_mtime_ns)
            if changed != before:
                now, before = time.time(), changed
                for row in read_rows(self._table):
                    self.first_seen.setdefault((row["file_name"], stamp_of(row)), now)


class Watch:
    """`kgl predict --watch` as a process: images of `folder/line`, output in `folder/out`."""

    def __init__(self, folder: Path, model: str, seconds: float) -> None:
        self._log = folder / "log.txt"
        self._log.unlink(missing_ok=True)
        arguments = ["predict", str(folder / "line"), "--model", model, "--output", str(folder / "out")]
        with self._log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", "from kgl.cli.main import main; main()", *arguments, "--watch", f"{seconds:g}"],
                stdout=log, stderr=log, env=os.environ | {"OMP_NUM_THREADS": "1"},
            )  # fmt: skip

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """
        Wait until a condition holds.

        Raises:
            RuntimeError: the command ended, or it takes too long.
        """
        deadline = time.monotonic() + _TIMEOUT
        while not condition():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"The watch ended or hangs: {self._log.read_text()}")
            time.sleep(_READ_EVERY)

    def wait_until_watching(self) -> None:
        """Wait until the model is loaded and the folders are looked at."""
        self.wait_for(lambda: "Watching" in self._log.read_text())

    def kill(self) -> None:
        """End it by SIGKILL."""
        self.process.kill()
        self.process.wait()

    def end(self) -> None:
        """
        End it by SIGTERM.

        Raises:
            RuntimeError: the exit code is not 0.
        """
        self.process.terminate()
        if self.process.wait(_TIMEOUT) != 0:
            raise RuntimeError(f"The watch failed: {self._log.read_text()}")


Arrival = tuple[str, Stamp, float]  # file name, its stamp, and when it was whole


def make_image(folder: Path, name: str, number: int) -> Path:
    """Write a generated surface beside the line and return its path; the number decides on class and pixels."""
    path = folder / "made" / name
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(generate_surface(CLASSES[number % len(CLASSES)], _SIZE, number).image).save(path)
    return path


def deliver(folder: Path, numbers: dict[str, int]) -> list[Arrival]:
    """Make the images of these names, and then put each whole file into the line at once."""
    paths, arrivals = [make_image(folder, name, number) for name, number in numbers.items()], []
    for path in paths:
        stamp = file_stamp(path)
        os.replace(path, folder / "line" / path.name)
        arrivals.append((path.name, stamp, time.time()))
    return arrivals


def write_slowly(folder: Path, name: str, number: int, pauses: np.ndarray) -> Arrival:
    """Write a file into the line in parts, with pauses (in seconds) between them."""
    content, target = make_image(folder, name, number).read_bytes(), folder / "line" / name
    edges = np.linspace(0, len(content), len(pauses) + 2).astype(int)
    with target.open("wb", buffering=0) as file:
        for start, end, pause in zip(edges[:-1], edges[1:], [*pauses, 0.0], strict=True):
            file.write(content[start:end])
            time.sleep(pause)
    return name, file_stamp(target), time.time()


def measure_delays(folder: Path, model: str, seconds: float, files: int, generator: np.random.Generator) -> dict:
    """
    Return the delays of files that arrive one by one, in bursts and slowly, and the number of rows of part files.

    Args:
        folder: an empty folder to work in.
        model: the classifier.
        seconds: between two looks.
        files: files of each kind; a fourth as many are written slowly.
        generator: of gaps and pauses.
    """
    (folder / "line").mkdir(parents=True)
    table, delivered = folder / "out" / "predictions.csv", {"one by one": [], "in bursts": [], "slowly": []}
    watch = Watch(folder, model, seconds)
    watch.wait_until_watching()
    with RowTimes(table) as rows:

        def wait_for_rows() -> None:
            expected = {(name, stamp) for kind in delivered.values() for name, stamp, _ in kind}
            watch.wait_for(lambda: expected <= rows.first_seen.keys())

        for index in range(files):
            time.sleep(generator.uniform(0.2, 0.8) + 0.2 * seconds * generator.random())
            delivered["one by one"] += deliver(folder, {f"single_{index}.png": index})
        wait_for_rows()
        for start in range(0, files, _BURST):
            burst = range(start, min(start + _BURST, files))
            delivered["in bursts"] += deliver(folder, {f"burst_{index}.png": 1000 + index for index in burst})
            wait_for_rows()
        for index in range(files // 4):
            pauses = generator.uniform(0.1, 1.5, 5) * seconds
            name = f"slow_{index}{SUFFIXES[index % len(SUFFIXES)]}"
            delivered["slowly"].append(write_slowly(folder, name, 2000 + index, pauses))
        wait_for_rows()
    watch.end()
    number = sum(map(len, delivered.values()))
    delays = {
        kind: [round(rows.first_seen[name, stamp] - arrived, 3) for name, stamp, arrived in of_kind]
        for kind, of_kind in delivered.items()
    }
    return {
        "seconds": seconds,
        "delays": delays,
        "rows_of_part_files": len(rows.first_seen) - number,
    }


def measure_kills(folder: Path, model: str, kills: int, files: int, generator: np.random.Generator) -> dict[str, Any]:
    """
    Kill and restart the command while files arrive and change, and compare the table with the files in the end.

    Args:
        folder: an empty folder to work in.
        model: the classifier.
        kills: how often; every third one before the command has begun to watch.
        files: that arrive between two kills; the first ten of them change later.
        generator: of the moments.
    """
    (folder / "line").mkdir(parents=True)
    table, changed, rows_at_kill = folder / "out" / "predictions.csv", set(), []
    for number in range(kills):
        watch = Watch(folder, model, 0.1)
        if number % 3 == 2:
            time.sleep(generator.uniform(0.1, 5))
        else:
            watch.wait_until_watching()
        deliver(folder, {f"part_{number}_{index}.png": 100 * number + index for index in range(files)})
        if number > 0:
            again = {f"part_{number - 1}_{index}.png": 5000 + 100 * number + index for index in range(min(10, files))}
            deliver(folder, again)
            changed |= again.keys()
        time.sleep(generator.uniform(0, 1.5))
        watch.kill()
        rows_at_kill.append(len(read_rows(table)))
    watch = Watch(folder, model, 0.1)
    watch.wait_until_watching()
    stamps = {path.name: file_stamp(path) for path in (folder / "line").iterdir()}
    watch.wait_for(lambda: {row["file_name"]: stamp_of(row) for row in read_rows(table)} == stamps)
    time.sleep(2)  # for rows that should not come
    watch.end()
    found = compare(folder, model, stamps, changed)
    return {"kills": kills, "rows_at_kill": rows_at_kill, "changed": len(changed), **found}


def compare(folder: Path, model: str, stamps: dict[str, Stamp], changed: set[str]) -> dict[str, Any]:
    """Return how the rows of a watch differ from the files, and from the rows of `kgl predict` without `--watch`."""
    rows = read_rows(folder / "out" / "predictions.csv")
    predict_folder([folder / "line"], model, folder / "whole")
    whole = {row["file_name"]: row for row in read_rows(folder / "whole" / "predictions.csv")}
    names = [row["file_name"] for row in rows]
    differences = [abs(float(row["defect_score"]) - float(whole[row["file_name"]]["defect_score"])) for row in rows]
    former = [row for row in rows if row["file_name"] in changed and stamp_of(row) != stamps[row["file_name"]]]
    return {
        "files": len(stamps),
        "rows": len(rows),
        "more_than_one_row": len(names) - len(set(names)),
        "missing": len(stamps.keys() - set(names)),
        "changed_with_old_row": len(former),
        "other_decisions": sum(row["decision"] != whole[row["file_name"]]["decision"] for row in rows),
        "largest_score_difference": max(differences),
    }  # fmt: skip


def train_model(folder: Path) -> str:
    """Train heads on `kgl-tiny` and 120 generated surfaces, and return the final classifier's folder."""
    command = [sys.executable, str(ROOT / "train.py"), "--dataset", "surfaces", "--num_surfaces", "120"]
    command += ["--surface_size", f"{_SIZE}", "--image_height", f"{_SIZE}", "--image_width", f"{_SIZE}"]
    command += ["--backbone", "kgl-tiny", "--output_dir", str(folder)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"})
    return str(folder / "final")


def watch_table(results: dict[str, Any]) -> str:
    """Return the table of delays, and what became of part files and of kills in words."""
    rows = []
    for one in results["delays"]:
        for kind, delays in one["delays"].items():
            row = {"`--watch`": f"{one['seconds']:g}", "files come": kind, "files": str(len(delays))}
            titles = ("delay, median", "95 % are faster than", "longest")
            values = np.quantile(delays, (0.5, 0.95, 1))
            rows.append(row | {title: f"{value:.2f} s" for title, value in zip(titles, values, strict=True)})
    early, kills = sum(one["rows_of_part_files"] for one in results["delays"]), results["kills"]
    slow = sum(len(one["delays"]["slowly"]) for one in results["delays"])
    words = (
        f"{slow} files were written slowly, in six parts: {early} rows came before a file was whole. After "
        f"{kills['kills']} kills, {kills['files']} files, {kills['changed']} of them changed in between, had "
        f"{kills['rows']} rows: {kills['more_than_one_row']} too many, {kills['missing']} missing, "
        f"{kills['changed_with_old_row']} of a former content, and {kills['other_decisions']} with another decision "
        "than `kgl predict` makes without `--watch`."
    )
    return f"{markdown_table(rows, text_columns=2)}\n\n{words}"


def main() -> None:
    """Measure, and write the results and the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", help="a classifier of kgl train")
    parser.add_argument("--files", type=int, default=50)
    parser.add_argument("--kills", type=int, default=9)
    parser.add_argument("--into", type=Path, help="a page with the markers `watch`")
    options = parser.parse_args()
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        model = options.model or train_model(folder / "run")
        delays = [
            measure_delays(folder / f"every {seconds:g} s", model, seconds, options.files, generator)
            for seconds in SECONDS
        ]
        results = {"delays": delays, "kills": measure_kills(folder / "kills", model, options.kills, 30, generator)}
    store("watch", {"files": options.files, "kills": options.kills}, results)
    if options.into is not None:
        write_block(options.into, "watch", watch_table(results))


if __name__ == "__main__":
    main()
