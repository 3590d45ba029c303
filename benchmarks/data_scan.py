"""
Measure time and memory of reading, hashing and splitting many images.

    python benchmarks/data_scan.py [--counts 25000 50000 100000] [--folder FOLDER]

Synthetic 64 px files, one in a hundred a copy of an earlier one, half of the copies in another compression. Each count
is read in its own process, whose peak memory includes all imports. On a machine with other load, only the growth of
the seconds with the count is meaningful.
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
from PIL import Image
from tqdm import tqdm

from kgl.benchmarks.measure import store


def generate_images(folder: Path, count: int) -> None:
    """Write images 0 to `count`, a tenth of them defective, where they do not exist."""
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


def measure_reading(folder: Path) -> dict[str, object]:
    """Read and split the images of a folder in this process."""
    from kgl.data.arguments import DataArguments
    from kgl.data.loading import read_images, split_images

    args = DataArguments(data_dir=str(folder), defect_free_label="good")
    started = time.perf_counter()
    loaded = read_images(args)
    reading = time.perf_counter() - started
    splits = split_images(loaded, args).splits
    return {
        "images": sum(len(split) for split in loaded.splits.values()),
        "reading_seconds": reading,
        "splitting_seconds": time.perf_counter() - started - reading,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "splits": {name: len(split) for name, split in splits.items()},
        "near_duplicates": sum(issue.kind == "near-duplicates" for issue in loaded.issues),
        "identical_images": sum(issue.kind == "identical images" for issue in loaded.issues),
    }


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", type=int, nargs="+", default=[25_000, 50_000, 100_000], help="images per run")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()) / "kgl_many_images")
    parser.add_argument("--measure", action="store_true", help=argparse.SUPPRESS)  # in the process of a count
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(measure_reading(options.folder)))
        return
    rows = []
    print("| images | seconds reading | seconds splitting | peak MiB | near-duplicates found |\n|" + " ---: |" * 5)
    for count in options.counts:
        folder = options.folder / str(count)
        generate_images(folder, count)
        command = [sys.executable, __file__, "--measure", "--folder", str(folder)]
        rows.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        printed = [rows[-1][key] for key in ("images", "reading_seconds", "splitting_seconds", "peak_mib")]
        print(
            "| " + " | ".join(f"{value:.0f}" for value in printed), rows[-1]["near_duplicates"], sep=" | ", end=" |\n"
        )
    store("data_scan", {}, rows)


if __name__ == "__main__":
    main()
