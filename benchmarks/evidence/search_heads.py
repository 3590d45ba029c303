"""
Compare ways to train and fuse the saliency head on pairs of folds, one JSON line per pair, tested fold and candidate.

    python benchmarks/evidence/search_heads.py --cache_dir CACHE

Of every two folds, the other two give the training images (8 defects and 32 good ones) and each of the two is tested
apart. So what is chosen for a fold can be chosen on the lines of pairs with it and tested on the other fold of the
pair: none of them trained or tested on it. Lines that the results file already holds are skipped.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from kgl.benchmarks.evidence.frozen import FrozenBench
from kgl.benchmarks.evidence.plan import TASKS
from kgl.benchmarks.evidence.task_data import defect_free_class, load_images
from kgl.benchmarks.measure import RESULTS
from kgl.data.masks import mask_to_grid
from kgl.data.splits import select_few_labels
from kgl.evaluation.maps import image_average_precision
from kgl.knowledge.good_parts import GoodParts
from kgl.modeling_kgl import top_cells
from kgl.training.cell_layers import fit_cell_layers, score_cells
from kgl.training.frozen_heads import FrozenHeads, defect_margin, within_class_deviation


TASK, BUDGET = "tiles_defect", 8
CANDIDATES = {  # name: noise of each network, hidden units in all; none: nearest neighbours
    "one network, noise 1": ((1.0,), 256),
    "one network, noise 2": ((2.0,), 256),
    "one network, noise 2, defect cells": ((2.0,), 256),
    "two networks, noises 1 and 2": ((1.0, 2.0), 256),
    "four networks, noise 2": ((2.0,) * 4, 512),
    "four networks, noises 1 and 2": ((1.0, 2.0) * 2, 512),
    "nearest neighbours": ((), 0),
}
Score = Callable[[torch.Tensor], torch.Tensor]  # cells (B, D, h, w) to maps (B, h, w)


def fit_candidate(name: str, bench: FrozenBench, rows: np.ndarray) -> Score:
    """Fit a candidate to some of the training images."""
    noises, hidden_size = CANDIDATES[name]
    cells, defective = torch.from_numpy(bench.features.cells[rows]).float(), bench.defective[rows]
    good = cells[torch.from_numpy(~defective)]
    if not noises or name.endswith("defect cells"):
        groups = [bench.groups[row] for row in rows[~defective]]
        parts = GoodParts.of(good, groups, bench.seed)
        distances = parts.distances(cells[torch.from_numpy(defective)], [None] * int(defective.sum()))
    if not noises:
        return lambda some: parts.distances(some, [None] * len(some))
    found = None
    if name.endswith("defect cells"):  # the highest 5 % of each defective image
        marked = distances >= torch.quantile(distances.flatten(1), 0.95, dim=1)[:, None, None]
        found = cells[torch.from_numpy(defective)].permute(0, 2, 3, 1)[marked]
    layers = fit_cell_layers(good.permute(0, 2, 3, 1).flatten(0, 2), found, hidden_size, bench.seed, noises)
    return lambda some: score_cells(layers, some)[:, 0]


def compare(bench: FrozenBench, name: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return a candidate's test maps `(N, h, w)` and the test scores `(N,)` alone and fused with the regression."""
    everything = np.arange(len(bench.rows))
    heads: FrozenHeads = bench.heads()
    held_out, logits = heads._out_of_sample_logits()
    scores = np.empty(len(everything))
    for fold in heads.folds:
        score = fit_candidate(name, bench, np.setdiff1d(everything, fold))
        scores[fold] = image_scores(score(torch.from_numpy(bench.features.cells[fold]).float()))
    maps = fit_candidate(name, bench, everything)(torch.from_numpy(bench._cells(bench.test_rows)).float())
    own, other = image_scores(maps), margins(heads._regression(everything)(bench._pooled(bench.test_rows)), bench)
    of_images = np.stack([margins(logits, bench), scores[held_out]], axis=1)
    defective = bench.defective[held_out]
    spreads = [within_class_deviation(column, defective) for column in of_images.T]
    both = np.stack([other, own], axis=1)
    stacking = LogisticRegression(C=0.1, class_weight="balanced").fit(of_images / spreads, defective)
    return maps.numpy(), {
        "regression": other,
        "alone": own,
        "equal spreads": (both / spreads).sum(axis=1),
        "ranks": rankdata(other) + rankdata(own),
        "stacking": stacking.decision_function(both / spreads),
    }


def image_scores(maps: torch.Tensor) -> np.ndarray:
    """Return the mean of the highest 5 % of the cells of maps `(N, h, w)`."""
    return top_cells(maps[:, None], 0.05)[:, 0].detach().numpy()


def margins(logits: np.ndarray, bench: FrozenBench) -> np.ndarray:
    """Return the log-odds of a defect, `(N,)`."""
    return defect_margin(logits, bench.good_id)


def run_pair(pair: tuple[int, int], cache_dir: Path, wanted: list[str]) -> list[dict]:
    """Return the lines of a pair of folds."""
    images = load_images(TASK)
    fold = np.asarray(images["fold"][:])
    pool, test = (images.select(np.flatnonzero(np.isin(fold, pair) == inside)) for inside in (False, True))
    train = select_few_labels(pool, BUDGET, 4 * BUDGET, defect_free_class(TASK), seed=0)
    bench, lines = FrozenBench(TASK, train, test, 0, cache_dir), []
    labels, test_fold = np.asarray(test["label"][:]) != bench.good_id, np.asarray(test["fold"][:])
    for name in wanted:
        with torch.no_grad() if not CANDIDATES[name][0] else torch.enable_grad():
            maps, scores = compare(bench, name)
        rows, masks = bench.test_masks
        cells = mask_to_grid(masks, maps.shape[1:])
        for tested in pair:
            of_fold, of_masks = test_fold == tested, test_fold[rows] == tested
            ap = {key: float(average_precision_score(labels[of_fold], one[of_fold])) for key, one in scores.items()}
            cell_ap = image_average_precision(list(maps[rows[of_masks]]), list(cells[of_masks]))
            lines.append({"pair": list(pair), "tested": tested, "candidate": name, "ap": ap, "cell_image_ap": cell_ap})
    return lines


def main() -> None:
    """Run the pairs that are missing and append their lines."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache_dir", type=Path, required=True)
    parser.add_argument("--output", type=Path, default=RESULTS / "head_search.jsonl")
    options = parser.parse_args()
    torch.set_num_threads(1)
    kept = [json.loads(line) for line in options.output.read_text().splitlines()] if options.output.exists() else []
    for pair in itertools.combinations(range(TASKS[TASK].folds), 2):
        done = {line["candidate"] for line in kept if line["pair"] == list(pair)}
        wanted = [name for name in CANDIDATES if name not in done]
        if not wanted:
            continue
        lines = run_pair(pair, options.cache_dir, wanted)
        with options.output.open("a") as file:
            file.writelines(json.dumps(line) + "\n" for line in lines)
        print(pair, "done", flush=True)


if __name__ == "__main__":
    main()
