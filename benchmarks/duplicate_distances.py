"""
How far apart the perceptual hashes of a dataset's images are: pairs by distance, in one group as given or in two.

    python benchmarks/duplicate_distances.py [--shared ../shared/data]

What `--duplicate_distance` may be: below the distance at which pairs of unlike things begin, above that of images
that show the same. Look at the pairs before you trust a gap.
"""

from __future__ import annotations

import argparse
from itertools import pairwise
from pathlib import Path

import numpy as np
from datasets import disable_progress_bars
from measure import store

from kgl.data.readers.kolektorsdd import read_kolektorsdd
from kgl.data.readers.magnetic_tile import read_magnetic_tile
from kgl.data.readers.neu_det import read_neu_det
from kgl.data.validation import inspect_images


EDGES = [0, 1, 9, 17, 33, 49, 61, 73, 81, 91, 101, 257]


def main() -> None:
    """Print and store the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(__file__).resolve().parents[2] / "shared" / "data"
    parser.add_argument("--shared", type=Path, default=shared)
    options = parser.parse_args()
    disable_progress_bars()
    cases = {
        "kolektorsdd": (read_kolektorsdd, "kolektorsdd"),
        "magnetic_tile": (read_magnetic_tile, "magnetic-tile"),
        "neu_det": (read_neu_det, "neu-det"),
    }
    results = {}
    bins = [f"{low}" if high == low + 1 else f"{low}-{high - 1}" for low, high in pairwise(EDGES)]
    print("| pairs at a distance of | " + " | ".join(bins) + " |\n| --- |" + " ---: |" * len(bins))
    for name, (read, folder) in cases.items():
        images = read(options.shared / folder).splits["train"]
        hashes, groups = inspect_images(images).hashes, np.asarray(images["group"][:])
        first, second = np.triu_indices(len(hashes), 1)
        apart = np.bitwise_count(hashes[first] ^ hashes[second]).sum(axis=1)
        same = groups[first] == groups[second]
        for kind, chosen in (("one group", same), ("two groups", ~same)):
            counts = np.histogram(apart[chosen], EDGES)[0].tolist()
            results[f"{name}, {kind}"] = dict(zip(bins, counts, strict=True))
            print(f"| {name}, {kind} | " + " | ".join(f"{count:,}" for count in counts) + " |", flush=True)
    store("duplicate_distances", {"bits": 256}, results)


if __name__ == "__main__":
    main()
