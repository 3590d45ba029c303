"""
How long many images take to be read, hashed and split, and how much memory.

    python benchmarks/data_scan.py [--counts 25000 50000 100000] [--folder FOLDER]

Generated 64 px files, one in a hundred a copy of an earlier one (half of them in another compression). Each count is
read in a process of its own, whose peak memory is the largest it ever held, everything imported. Seconds are of a
shared machine; their growth with the count is what they are for.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from measure import store
from PIL import Image
from tqdm import tqdm


def generate(folder: Path, count: int) -> None:
    """Images 0 to `count`, a tenth of them defective; those that are there are left alone."""
    for index in tqdm(range(count), "Generating"):
        label = "defect" if index % 10 == 0 else "good"
        path = folder / label / f"{index // 1000:03d}" / f"{index:06d}.{'jpg' if index % 200 == 199 else 'png'}"
        if path.exists():
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        seed = index - 37 if index % 100 == 99 else index  # a copy, of the same class
        generator = np.random.default_rng(seed)
        coarse = Image.fromarray(generator.integers(60, 190, (12, 12), dtype=np.uint8)).resize((64, 64))
        pixels = np.asarray(coarse).astype(float) + generator.normal(0, 4, (64, 64))
        Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)).save(path, quality=95, compress_level=1)


def measure(folder: Path, count: int) -> dict[str, object]:
    """Read the first `count` images, in this process."""
    from kgl.data.arguments import DataArguments
    from kgl.data.loading import read_images, split_images

    args = DataArguments(data_dir=str(folder), defect_free_label="good")
    started = time.perf_counter()
    loaded = read_images(args, show_progress=False)
    read = time.perf_counter() - started
    splits = split_images(loaded, args).splits
    return {
        "count": count,
        "seconds_reading_and_hashing": read,
        "seconds_splitting": time.perf_counter() - started - read,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "splits": {name: len(split) for name, split in splits.items()},
        "near_duplicates": sum(issue.kind == "near-duplicates" for issue in loaded.issues),
        "equal": sum(issue.kind == "identical images" for issue in loaded.issues),
    }


def main() -> None:
    """Print and store a row a count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[25_000, 50_000, 100_000])
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "kgl_many_images")
    parser.add_argument("--measure", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure is not None:
        print(json.dumps(measure(options.folder, options.measure)))
        return
    rows = []
    print("| images | seconds reading | seconds splitting | peak MiB | near-duplicates found |\n" + "| ---: |" * 5)
    for count in options.counts:
        folder = options.folder / str(count)
        generate(folder, count)
        command = [sys.executable, __file__, "--measure", str(count), "--folder", str(folder)]
        rows.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        shown = [rows[-1][key] for key in ("count", "seconds_reading_and_hashing", "seconds_splitting", "peak_mib")]
        print("| " + " | ".join(f"{value:.0f}" for value in shown), rows[-1]["near_duplicates"], sep=" | ", end=" |\n")
    store("data_scan", {}, rows)


if __name__ == "__main__":
    main()
