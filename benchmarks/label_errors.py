"""
Flip labels of the magnetic tiles and measure the list of `kgl audit`, one JSON line per seed, share and heads.

    python benchmarks/label_errors.py --cache_dir CACHE [--data_dir FOLDER] [--seeds 5] [--heads ...]

A flipped label becomes any other class, all alike, image by image: other exposures of the part keep theirs, so near-
duplicates help more than where a part is labelled once. Seeds below 10 helped to choose how reasons are weighed. Masks
are left out: they would show every flip between good and defective. The list is measured as a whole, and with the
classifier's part or that of near-duplicates alone. The first line of each kind of heads has no flips: the ranks of the
tiles whose exposures carry different labels as published. Lines that the results file already holds are skipped;
`labelling_tables.py` makes the table of them.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.metrics import average_precision_score

from kgl.benchmarks.evidence.plan import SHARED
from kgl.benchmarks.evidence.records import append_lines, stored_lines
from kgl.benchmarks.measure import RESULTS
from kgl.data.arguments import DataArguments
from kgl.labelling.audit import (
    CLASSIFIER,
    DUPLICATES,
    Labels,
    Suspect,
    held_out_probabilities,
    labels_of,
    rank_suspects,
)
from kgl.labelling.choices import HEADS
from kgl.labelling.labelled_images import LabelledImages, compute_features, read_labelled_images


OUTPUT = RESULTS / "label_errors.jsonl"
SHARES = (0.05, 0.1)
FIRST_SEED = 10
PARTS = {"all": {CLASSIFIER, DUPLICATES}, "classifier alone": {CLASSIFIER}, "near-duplicates alone": {DUPLICATES}}


def flip(labels: np.ndarray, classes: int, share: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return labels of which a share is wrong, and which are, `(N,)` bool."""
    generator = np.random.default_rng(seed)
    wrong = np.zeros(len(labels), dtype=bool)
    wrong[generator.permutation(len(labels))[: round(share * len(labels))]] = True
    moved = generator.integers(1, classes, len(labels))
    return np.where(wrong, (labels + moved) % classes, labels), wrong


def measure(suspects: list[Suspect], wrong: np.ndarray) -> dict[str, float]:
    """Return precision and recall of the list, its precision as far as there are wrong labels, and its AP."""
    rows = [one.row for one in suspects]
    hits = wrong[rows]
    scores = np.zeros(len(wrong))
    scores[rows] = np.arange(len(rows), 0, -1)
    return {
        "listed": len(rows),
        "precision": float(hits.mean()) if len(rows) else 0.0,
        "recall": float(hits.sum() / wrong.sum()),
        "precision_at_flips": float(hits[: wrong.sum()].sum() / wrong.sum()),
        "ap": float(average_precision_score(wrong, scores)),
    }


def of_part(audited: Labels, probabilities: np.ndarray, kinds: set[str]) -> list[Suspect]:
    """Return the list by some kinds of reasons alone."""
    if DUPLICATES not in kinds:
        audited = dataclasses.replace(audited, near_duplicates=np.arange(len(audited.labels)))
    if CLASSIFIER not in kinds:
        probabilities = np.full_like(probabilities, np.nan)
    return rank_suspects(audited, probabilities)


def conflicting_tiles(labelled: LabelledImages, suspects: list[Suspect]) -> dict[str, int]:
    """Return the best rank in each group of near-duplicates with different labels, 0 where none is listed."""
    audited, files = labels_of(labelled), labelled.images["file_name"][:]
    ranks = {one.row: rank for rank, one in enumerate(suspects, 1)}
    found = {}
    for number in np.unique(audited.near_duplicates):
        rows = np.flatnonzero(audited.near_duplicates == number)
        if len(set(audited.labels[rows])) > 1:
            found[files[rows[0]]] = min((ranks[row] for row in rows if row in ranks), default=0)
    return found


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache_dir", type=Path, required=True)
    parser.add_argument("--data_dir", type=Path, default=SHARED / "data/magnetic-tile")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--heads", nargs="+", choices=HEADS, default=list(HEADS))
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = stored_lines(options.output)
    name = options.data_dir.name
    done = {(line["data"], line["heads"], line["share"], line["seed"]) for line in lines}
    backbone = str(SHARED / "models/resnet-18")
    labelled = read_labelled_images(None, DataArguments(data_dir=str(options.data_dir)), backbone)
    options.cache_dir.mkdir(parents=True, exist_ok=True)
    model, features = compute_features(labelled, options.cache_dir / f"audit_{options.data_dir.name}")
    published = dataclasses.replace(labels_of(labelled), mask_shows_defect=[None] * len(labelled.labels))
    for seed in range(FIRST_SEED, FIRST_SEED + options.seeds):
        for share in (0.0, *SHARES) if seed == FIRST_SEED else SHARES:
            for heads in options.heads:
                if (name, heads, share, seed) in done:
                    continue
                labels, wrong = flip(published.labels, len(published.names), share, seed)
                audited = dataclasses.replace(published, labels=labels)
                probabilities = held_out_probabilities(model, features, labels, labelled.groups, seed, heads)
                line: dict[str, Any] = {
                    "data": name,
                    "heads": heads,
                    "share": share,
                    "seed": seed,
                    "images": len(labels),
                }
                if share == 0:
                    line["ranks_of_conflicts"] = conflicting_tiles(labelled, rank_suspects(audited, probabilities))
                    line["listed"] = len(rank_suspects(audited, probabilities))
                else:
                    line["parts"] = {
                        name: measure(of_part(audited, probabilities, kinds), wrong) for name, kinds in PARTS.items()
                    }
                append_lines(options.output, line)
                print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
