"""
Buy labels by each strategy of `kgl next` and measure AP over the labels, one JSON line per repetition and arm.

    python benchmarks/label_choice.py --cache_dir CACHE [--tasks tiles_defect boards] [--repetitions 0 1 2]

All arms of a repetition start from the same labelled images and are tested on the same held-out fold. In every round
the final heads are fitted to the labels so far, judge the other images, and the strategy chooses which to buy. The
arms of `CONTROLS` choose among all images, the others leave near-duplicates out as the command does. A fit takes 5 to
20 seconds on a core; several processes may share the repetitions and write to one file. Lines that the results file
already holds are skipped; `labelling_tables.py` makes table and figure of them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from kgl.benchmarks.evidence.frozen import FrozenBench, row_batches
from kgl.benchmarks.evidence.plan import TASKS
from kgl.benchmarks.evidence.records import append_lines, stored_lines
from kgl.benchmarks.evidence.task_data import defect_free_class, load_images
from kgl.benchmarks.measure import RESULTS
from kgl.data.splits import select_few_labels
from kgl.data.validation import inspect_images
from kgl.evaluation.metrics import DefectClassification
from kgl.heads_kgl import pool_maps, top_cells
from kgl.labelling.next_images import keep_unlike
from kgl.labelling.strategies import STRATEGIES, Candidates, decision_entropy, standardize
from kgl.modeling_kgl import class_probabilities


OUTPUT = RESULTS / "label_choice.jsonl"


@dataclass(frozen=True)
class Plan:
    """Labels to start from, per defect class and good ones; labels per round; rounds; bits of near-duplicates."""

    defects: int
    good: int
    bought: int
    rounds: int
    duplicate_distance: int


PLANS = {
    "tiles_defect": Plan(4, 16, 20, 3, 60),
    "tiles": Plan(2, 16, 30, 3, 60),
    # One board photographed 100 times: all are near-duplicates, so only identical files count.
    "boards": Plan(4, 4, 8, 3, 0),
    "smoke": Plan(2, 4, 6, 1, 16),
}
CONTROLS = {"random choice": "random", "uncertainty alone": "uncertainty"}  # arm: strategy, among all images
ARMS = [*CONTROLS, *(name for name in STRATEGIES if name != "random")]


@cache
def hashes_of(task_name: str) -> np.ndarray:
    """Return the perceptual hashes of a task's images, `(N, 4)`."""
    return inspect_images(load_images(task_name)).hashes


@torch.no_grad()
def judge(bench: FrozenBench, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return probabilities `(N, K)`, the mean of the highest cells of `H` `(N,)`, and pooled features `(N, P)`."""
    parts: list[list[torch.Tensor]] = [[], [], []]
    for part in row_batches(rows):
        maps = bench.maps(part)
        logits, saliency = bench.model.classify(maps)
        scores = top_cells(saliency, bench.model.config.top_cells)[:, 0]
        for kept, one in zip(parts, (class_probabilities(logits), scores, pool_maps(maps)), strict=True):
            kept.append(one)
    return tuple(torch.cat(part).numpy() for part in parts)


def choose(arm: str, bench: FrozenBench, labelled: np.ndarray, pool: np.ndarray, plan: Plan, seed: int) -> np.ndarray:
    """Return the rows of `pool` to buy; where near-duplicates leave too few, others follow at random."""
    generator, candidates = np.random.default_rng(seed), pool
    if arm not in CONTROLS:
        hashes = hashes_of(bench.task_name)
        kept, _ = keep_unlike(hashes[labelled], hashes[pool], plan.duplicate_distance)
        candidates = pool[kept]
    chosen = np.zeros(0, dtype=int)
    if len(candidates):
        probabilities, scores, pooled = judge(bench, candidates)
        uncertainty = decision_entropy(probabilities, bench.good_id, bench.model.config.threshold)
        features = standardize(pooled, bench.features.pooled)
        some = Candidates(uncertainty, scores, *features)
        chosen = candidates[STRATEGIES[CONTROLS.get(arm, arm)](some, plan.bought, generator)]
    rest = generator.permutation(np.setdiff1d(pool, chosen))
    return np.concatenate([chosen, rest])[: plan.bought]


def evaluate(bench: FrozenBench) -> dict[str, Any]:
    """Return the labels of a fitted bench, the defective ones among them, and its metrics on the test images."""
    probabilities, _, _ = judge(bench, bench.test_rows)
    metrics = DefectClassification(keep_in_memory=True).compute(
        predictions=probabilities, references=bench.test_images["label"][:], defect_free_id=bench.good_id
    )
    counts = {"labels": len(bench.rows), "defects": int(bench.defective.sum())}
    return counts | {name: value for name, value in metrics.items() if isinstance(value, float)}


def buy(task_name: str, arms: list[str], repetition: int, cache_dir: Path) -> Iterator[dict[str, Any]]:
    """Yield the line of each arm, with what [`evaluate`] returns after every round; all share the first fit."""
    images, plan, folds = load_images(task_name), PLANS[task_name], TASKS[task_name].folds
    fold = np.asarray(images["fold"][:])
    test, pool = (np.flatnonzero((fold == repetition % folds) == inside) for inside in (True, False))

    def fit(labelled: np.ndarray) -> tuple[FrozenBench, dict[str, Any]]:
        train = images.select(np.sort(labelled))
        bench = FrozenBench(task_name, train, images.select(test), repetition, cache_dir)
        bench.fit_default()
        return bench, evaluate(bench)

    few = select_few_labels(
        images.select(pool), plan.defects, plan.good, defect_free_class(task_name), seed=repetition
    )
    start = np.asarray(few["index"][:])
    at_start = fit(start)
    for arm in arms:
        labelled, (bench, results) = start, at_start
        rounds = [results]
        for number in range(plan.rounds):
            unlabelled = np.setdiff1d(pool, labelled)
            bought = choose(arm, bench, np.sort(labelled), unlabelled, plan, 1000 * repetition + number)
            labelled = np.concatenate([labelled, bought])
            bench, results = fit(labelled)
            rounds.append(results)
        yield {"task": task_name, "repetition": repetition, "arm": arm, "rounds": rounds}


def main() -> None:
    """Run what is missing, one repetition of all arms after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache_dir", type=Path, required=True)
    parser.add_argument("--tasks", nargs="+", choices=list(PLANS), default=["tiles_defect", "boards"])
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=ARMS)
    parser.add_argument("--repetitions", type=int, nargs="+", default=range(12), help="their numbers")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = stored_lines(options.output)
    done = {(line["task"], line["repetition"], line["arm"]) for line in lines}
    for repetition in options.repetitions:
        for task in options.tasks:
            missing = [arm for arm in options.arms if (task, repetition, arm) not in done]
            for line in buy(task, missing, repetition, options.cache_dir) if missing else ():
                append_lines(options.output, line)
                print(task, repetition, line["arm"], [round(one["ap"], 3) for one in line["rounds"]], flush=True)


if __name__ == "__main__":
    main()
