"""
Count pairs of images by the distance of their perceptual hashes, within a group of the dataset and across groups.

    python benchmarks/duplicate_distances.py [--shared ../shared/data]

`--duplicate_distance` of a dataset lies below the distances of pairs that show different things and above those of
pairs that show the same. Look at the pairs before trusting a gap.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
from datasets import disable_progress_bars

from kgl.benchmarks.measure import store
from kgl.data.readers.kolektorsdd import read_kolektorsdd
from kgl.data.readers.magnetic_tile import read_magnetic_tile
from kgl.data.readers.neu_det import read_neu_det
from kgl.data.validation import inspect_images


EDGES = [0, 1, 9, 17, 33, 49, 61, 73, 81, 91, 101, 257]  # of the bins, in bits of 256
CASES = {
    "kolektorsdd": (read_kolektorsdd, "kolektorsdd"),
    "magnetic_tile": (read_magnetic_tile, "magnetic-tile"),
    "neu_det": (read_neu_det, "neu-det"),
}


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--shared", type=Path, default=shared, help="folder of the datasets")
    options = parser.parse_args()
    disable_progress_bars()
    pairs: dict[str, dict[str, list[int]]] = {}
    bins = [f"{low}" if high == low + 1 else f"{low}-{high - 1}" for low, high in pairwise(EDGES)]
    print("| pairs at distance | " + " | ".join(bins) + " |\n| --- |" + " ---: |" * len(bins))
    for name, (read, folder) in CASES.items():
        images = read(options.shared / folder).splits["train"]
        hashes, groups = inspect_images(images).hashes, np.asarray(images["group"][:])
        first, second = np.triu_indices(len(hashes), 1)
        distances = np.bitwise_count(hashes[first] ^ hashes[second]).sum(axis=1)
        same = groups[first] == groups[second]
        pairs[name] = {
            "same_group": np.histogram(distances[same], EDGES)[0].tolist(),
            "different_groups": np.histogram(distances[~same], EDGES)[0].tolist(),
        }
        for kind, counts in pairs[name].items():
            title = f"{name}, {kind.replace('_', ' ')}"
            print(f"| {title} | " + " | ".join(f"{count:,}" for count in counts) + " |", flush=True)
    store("duplicate_distances", {"bits": 256}, {"distances": bins, "pairs": pairs})


if __name__ == "__main__":
    main()
