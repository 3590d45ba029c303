"""
Measure the search for near-duplicates among many hashes, compare its pairs with those of all pairs, and time workers.

    python benchmarks/duplicates.py [--sizes 100000 1000000 10000000] [--into docs/data_formats.md]

*Same pairs*: of the hashes of three datasets and of 100,000 generated ones, with and without keys. *Search*: seconds
and peak memory per number of hashes, each in its own process; `faiss` is `IndexBinaryMultiHash` of the package
faiss-cpu, where that is installed, whose pairs are found but not joined. *Workers*: images decoded and hashed by one
process and by two, in turns with a computation that shows what two processes can reach on the machine.

A generated hash is that of a real image with 19 to 50% of its bits changed. One in twenty is a copy of another, one in
200 equals one hash, as blank images do, and one in 200 is some bits from one hash, as photographs of one part are. One
JSON line per measurement; lines that the results file holds are skipped.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from kgl.benchmarks.evidence.formatting import markdown_table, replace_block
from kgl.benchmarks.evidence.plan import SHARED
from kgl.benchmarks.evidence.records import append_lines, stored_lines
from kgl.benchmarks.measure import RESULTS, hardware, highest_resident_memory
from kgl.data.duplicates import Pairs, all_pairs, distance_keys, find_near_duplicates, keyed_pairs
from kgl.data.readers.kolektorsdd import read_kolektorsdd
from kgl.data.readers.magnetic_tile import read_magnetic_tile
from kgl.data.readers.neu_det import read_neu_det
from kgl.data.validation import inspect_images


OUTPUT = RESULTS / "duplicates.jsonl"
READERS = {"kolektorsdd": read_kolektorsdd, "magnetic-tile": read_magnetic_tile, "neu-det": read_neu_det}
DISTANCE = 16  # bits, the default
GENERATED = 100_000  # hashes that all pairs are compared of
TIMED = 1344  # images decoded and hashed by one and by two processes
BURN = 180_000_000  # turns of a loop of plain Python, about as long
_BLOCK = 1 << 18


def read_dataset(name: str) -> Dataset:
    """Return the images of one of the three datasets."""
    return READERS[name](SHARED / "data" / name).splits["train"]


def generate_hashes(count: int, real: np.ndarray, seed: int = 0) -> np.ndarray:
    """Return hashes `(count, 4)` made of those of real images, with near-duplicates among them."""
    generator, hashes = np.random.default_rng(seed), np.empty((count, 4), dtype=np.uint64)
    for start in range(0, count, _BLOCK):
        number = min(_BLOCK, count - start)
        one, two, three, four = generator.integers(2**64, size=(4, number, 4), dtype=np.uint64)
        changed = [one, one & (two | three), one & two, one & two & (three | four)]  # 1/2, 3/8, 1/4 and 3/16 of bits
        changed = np.choose(generator.integers(0, 4, (number, 1)), changed)
        hashes[start : start + number] = real[generator.integers(0, len(real), number)] ^ changed
    copies, alike = count // 20, count // 200
    hashes[-copies:] = hashes[generator.integers(0, count - copies, copies)] ^ _few_bits(copies, generator)
    rows = generator.permutation(count)[: 2 * alike]
    hashes[rows[:alike]] = real[0]
    hashes[rows[alike:]] = real[-1] ^ _few_bits(alike, generator)
    return hashes


def _few_bits(count: int, generator: np.random.Generator) -> np.ndarray:
    """Return `(count, 4)` words with at most 8 bits set, 4 in the mean."""
    words = np.zeros((count, 4), dtype=np.uint64)
    for _ in range(8):
        bits = np.uint64(1) << generator.integers(0, 64, count, dtype=np.uint64)
        words[np.arange(count), generator.integers(0, 4, count)] ^= np.where(generator.random(count) < 0.5, bits, 0)
    return words


def pair_set(found: Iterable[Pairs], count: int) -> np.ndarray:
    """Return pairs as ascending numbers, each pair once."""
    return np.unique(np.concatenate([np.minimum(*pair) * count + np.maximum(*pair) for pair in found]))


def compare(name: str, hashes: np.ndarray, distance: int) -> dict[str, Any]:
    """Return whether keys find the pairs of all pairs, and the search the groups that these pairs chain."""
    words, count = np.ascontiguousarray(hashes.T), len(hashes)
    expected = pair_set(all_pairs(words, distance), count)
    keys = distance_keys(distance, min(9, distance + 1), 2 if distance < 30 else 1)
    found = pair_set(keyed_pairs(words, np.arange(count), keys, distance), count)
    edges = coo_array((np.ones(len(expected)), np.divmod(expected, count)), shape=(count, count))
    groups, numbers = connected_components(edges, directed=False)
    joined = np.unique(np.stack([numbers, find_near_duplicates(hashes, distance)]), axis=1)
    same_groups = joined.shape[1] == groups == len(np.unique(joined[1]))
    return {
        "kind": "same pairs", "set": name, "distance": distance, "hashes": count, "keys": len(keys),
        "pairs": len(expected), "same_pairs": bool(np.array_equal(found, expected)), "groups": int(groups),
        "same_groups": bool(same_groups),
    }  # fmt: skip


def search_all_pairs(hashes: np.ndarray) -> int:
    """Return the number of near pairs of different hashes, all compared."""
    return sum(len(first) for first, _ in all_pairs(np.unique(hashes, axis=0).T.copy(), DISTANCE))


def search_with_faiss(hashes: np.ndarray) -> int:
    """Return the number of near pairs of different hashes by nine chunks of 28 bits, one of which may differ."""
    import faiss

    faiss.omp_set_num_threads(1)
    codes = np.unique(hashes, axis=0).view(np.uint8)
    index = faiss.IndexBinaryMultiHash(256, 9, 28)
    index.nflip = 1  # 9 * (1 + 1) > 16, so no pair is missed
    index.add(codes)
    parts = (codes[start : start + 4096] for start in range(0, len(codes), 4096))
    found = sum(int(index.range_search(part, DISTANCE + 1)[0][-1]) for part in parts)
    return (found - len(codes)) // 2  # each pair twice, and each hash with itself


ARMS: dict[str, Callable[[np.ndarray], int]] = {
    "keys": lambda hashes: len(np.unique(find_near_duplicates(hashes, DISTANCE))),
    "all pairs": search_all_pairs,
    "faiss": search_with_faiss,
}
LARGEST = {"keys": 10**8, "all pairs": 10**5, "faiss": 10**6}


def measure(arm: str, file: Path) -> dict[str, Any]:
    """Search in this process."""
    hashes = np.load(file)
    ARMS[arm](hashes[:1000])  # loads code
    started, cpu = time.perf_counter(), time.process_time()
    found = ARMS[arm](hashes)
    seconds, cpu = time.perf_counter() - started, time.process_time() - cpu
    return {"found": found, "seconds": seconds, "cpu_seconds": cpu, "peak_mib": highest_resident_memory()}


def search(arm: str, count: int, real: np.ndarray) -> dict[str, Any]:
    """Search generated hashes in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "hashes.npy"
        np.save(file, generate_hashes(count, real))
        command = [sys.executable, __file__, "--measure", arm, "--file", str(file)]
        measured = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    return {"kind": "search", "arm": arm, "hashes": count, "distance": DISTANCE, **measured}


def burn(turns: int) -> int:
    """Return a sum by a loop of plain Python."""
    return sum(number & 3 for number in range(turns))


def time_workers(rounds: int) -> list[dict[str, Any]]:
    """
    Return seconds of one and of two processes in turns, for decoding and hashing and for a plain loop.

    `cpu` are the CPU seconds of all processes while decoding and hashing, `main_cpu` those of the first one.
    """
    images, lines = read_dataset("magnetic-tile").select(range(TIMED)), []
    with multiprocessing.get_context("fork").Pool(2) as pool:
        for number in range(rounds):
            line: dict[str, Any] = {"kind": "workers", "round": number, "images": len(images)}
            for workers in (1, 2) if number % 2 else (2, 1):
                torch.set_num_threads(workers)  # as OMP_NUM_THREADS does
                before = _cpu_seconds()
                line[f"seconds_{workers}"] = _seconds(lambda: inspect_images(images))
                own, of_workers = (after - one for after, one in zip(_cpu_seconds(), before, strict=True))
                line |= {f"cpu_{workers}": own + of_workers, f"main_cpu_{workers}": own}
                parts = [BURN // workers] * workers
                line[f"control_{workers}"] = _seconds(lambda parts=parts: pool.map(burn, parts, chunksize=1))
            lines.append(line)
    return lines


def _cpu_seconds() -> tuple[float, float]:
    """Return the CPU seconds of this process, and of its ended workers."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return tuple(one.ru_utime + one.ru_stime for one in used)


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def search_table(lines: list[dict[str, Any]]) -> str:
    """Return a Markdown table of time, memory and growth per number of hashes, medians of the searches."""
    frame, rows = pd.DataFrame([line for line in lines if line["kind"] == "search"]), []
    titles = {"keys": "this search", "all pairs": "all pairs", "faiss": "faiss `IndexBinaryMultiHash`"}
    for arm, title in titles.items():
        of_arm = frame[frame["arm"] == arm].groupby("hashes")
        medians = of_arm[["cpu_seconds", "seconds", "peak_mib"]].median()
        growth = np.diff(np.log(medians["cpu_seconds"])) / np.diff(np.log(medians.index.to_numpy(dtype=float)))
        exponents = ["", *(f"{exponent:.2f}" for exponent in growth)]
        for (count, median), number, exponent in zip(medians.iterrows(), of_arm.size(), exponents, strict=False):
            named = {"search": title, "hashes": f"{count:,}", "searches": str(number)}
            seconds = {"CPU seconds": f"{median['cpu_seconds']:.1f}", "seconds": f"{median['seconds']:.1f}"}
            rows.append(named | seconds | {"peak MiB": f"{median['peak_mib']:,.0f}", "exponent": exponent})
    return markdown_table(rows)


def pairs_table(lines: list[dict[str, Any]]) -> str:
    """Return a Markdown table of the comparisons with all pairs."""
    rows = [
        {
            "hashes of": line["set"], "hashes": f"{line['hashes']:,}", "distance": str(line["distance"]),
            "pairs": f"{line['pairs']:,}", "the same by keys": "yes" if line["same_pairs"] else "NO",
            "groups": f"{line['groups']:,}", "the same": "yes" if line["same_groups"] else "NO",
        }
        for line in lines if line["kind"] == "same pairs"
    ]  # fmt: skip
    return markdown_table(rows)


def workers_table(lines: list[dict[str, Any]]) -> str:
    """Return a Markdown table of what a second process brings, medians and quartiles."""
    frame = pd.DataFrame([line for line in lines if line["kind"] == "workers"])
    if frame.empty:
        return "No runs."
    # With cores free, the longer of the first process's own work and of half of that of its workers.
    frame["cpu_bound_1"] = frame["cpu_1"]
    frame["cpu_bound_2"] = np.maximum(frame["main_cpu_2"], (frame["cpu_2"] - frame["main_cpu_2"]) / 2)
    titles = {"seconds": "decode and hash, seconds", "control": "plain loop, the control, seconds"}
    titles["cpu_bound"] = "decode and hash, CPU seconds of the busiest process"
    rows = []
    for column, title in titles.items():
        one, two = frame[f"{column}_1"], frame[f"{column}_2"]
        low, median, high = (one / two).quantile([0.25, 0.5, 0.75])
        speed = f"{median:.2f} ({low:.2f} .. {high:.2f})"
        rows.append({"": title, "1 process": f"{one.median():.2f}", "2": f"{two.median():.2f}", "times": speed})
    return markdown_table(rows)


def run(sizes: list[int], searches: int, rounds: int) -> list[dict[str, Any]]:
    """Measure what the results file lacks and append it; return all lines."""
    lines, named = stored_lines(OUTPUT), {"hardware": hardware(), "torch": torch.__version__}

    def add(*new: dict[str, Any]) -> None:
        lines.extend(new)
        append_lines(OUTPUT, *(line | named for line in new))
        print(*new, sep="\n", flush=True)

    if not any(line["kind"] == "workers" for line in lines):
        add(*time_workers(rounds))
    hashes = {name: inspect_images(read_dataset(name)).hashes for name in READERS}
    real = np.concatenate(list(hashes.values()))
    hashes["generated"] = generate_hashes(GENERATED, real)
    compared = {(line["set"], line["distance"]) for line in lines if line["kind"] == "same pairs"}
    for name, of_set in hashes.items():
        for distance in [one for one in (DISTANCE, 60) if (name, one) not in compared]:
            if name != "generated" or distance == DISTANCE:
                add(compare(name, of_set, distance))
    for arm in [arm for arm in ARMS if arm != "faiss" or importlib.util.find_spec("faiss")]:
        for size in [size for size in sizes if size <= LARGEST[arm]]:
            done = sum(line["kind"] == "search" and (line["arm"], line["hashes"]) == (arm, size) for line in lines)
            for _ in range(done, searches):
                add(search(arm, size, real))
    return lines


def main() -> None:
    """Measure what is missing and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10**5, 10**6, 10**7], help="hashes per search")
    parser.add_argument("--searches", type=int, default=3, help="of each size, the median of which is stated")
    parser.add_argument("--rounds", type=int, default=9, help="of timing one and two processes")
    parser.add_argument("--into", type=Path, help="a page with the markers `duplicates search`, `pairs` and `workers`")
    parser.add_argument("--measure", choices=ARMS, help=argparse.SUPPRESS)  # in the process of a search
    parser.add_argument("--file", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(measure(options.measure, options.file)))
        return
    lines = run(options.sizes, options.searches, options.rounds)
    if options.into is not None:
        text = options.into.read_text(encoding="utf-8")
        for name, table in {"search": search_table, "pairs": pairs_table, "workers": workers_table}.items():
            text = replace_block(text, f"duplicates {name}", table(lines))
        options.into.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
