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
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from scipy.stats import rankdata
from sklearn.cluster import MiniBatchKMeans
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from torch.nn import functional as F

from kgl.benchmarks.evidence.frozen import FrozenBench
from kgl.benchmarks.evidence.plan import TASKS
from kgl.benchmarks.evidence.records import append_lines, stored_lines
from kgl.benchmarks.evidence.rivals import PatchCore, noise_head
from kgl.benchmarks.evidence.task_data import defect_free_class, load_images
from kgl.benchmarks.measure import RESULTS
from kgl.data.masks import mask_to_grid
from kgl.data.splits import select_few_labels
from kgl.evaluation.maps import image_average_precision
from kgl.heads_kgl import top_cells
from kgl.knowledge.cells import raw_cells, stack_stages
from kgl.training.cell_scores import fit_cell_score, greedy_coreset
from kgl.training.frozen_heads import MAX_CELLS, FrozenHeads, defect_margin, within_class_deviation


TASK, BUDGET = "tiles_defect", 8
CANDIDATES = (
    "the product's 512 centres",
    "512 k-means centres, random start",
    "512 cells, greedy coreset",
    "512 random cells",
    "3000 random cells, mean of 3 neighbours",
    "one network, noise 1",
    "one network, noise 2",
    "PatchCore",
    "PatchCore, rim averaged over fewer cells",
)
Score = Callable[[torch.Tensor], torch.Tensor]  # cells (B, D, h, w) to maps (B, h, w)


def fit_candidate(name: str, cells: torch.Tensor, seed: int) -> Score:
    """Fit a candidate to cells of good images, `(N, D, h, w)`."""
    flat = cells.permute(0, 2, 3, 1).flatten(0, 2)
    if "noise" in name:
        return noise_head(flat, seed, noise=float(name[-1]))
    if name.startswith("PatchCore"):
        model = PatchCore(flat, seed)
        return lambda some: torch.from_numpy(model.score(some)[1])
    chosen = torch.randperm(len(flat), generator=torch.Generator().manual_seed(seed))
    if name == "the product's 512 centres":
        memory = fit_cell_score(flat[chosen[:MAX_CELLS]], None, 512, seed).memory
    elif name.endswith("random start"):
        pool = flat[chosen[:MAX_CELLS]].numpy()
        means = MiniBatchKMeans(512, init="random", batch_size=2048, n_init=1, max_iter=20, random_state=seed)
        memory = torch.from_numpy(means.fit(pool).cluster_centers_).float()
    elif name.endswith("greedy coreset"):
        pool = flat[chosen[:MAX_CELLS]]
        memory = pool[greedy_coreset(pool, 512, seed)]
    else:
        memory = flat[chosen[: int(name.split()[0])]]
    neighbours = 3 if "neighbours" in name else 1

    def distances(some: torch.Tensor) -> torch.Tensor:
        parts = some.permute(0, 2, 3, 1).flatten(1, 2)  # (B, h w, D)
        near = [torch.cdist(one, memory).topk(neighbours, largest=False).values.mean(dim=1) for one in parts]
        return torch.stack(near).view(len(some), *some.shape[2:])

    return distances


def cells_of(name: str, bench: FrozenBench, rows: np.ndarray) -> torch.Tensor:
    """Return the cells that a candidate reads, `(N, D, h, w)`: raw ones for PatchCore, else the product's."""
    if not name.startswith("PatchCore"):
        return torch.from_numpy(bench._cells(rows)).float()
    maps = bench.maps(rows)[: bench.model.config.saliency_stages]
    if "fewer" not in name:
        return raw_cells(maps)
    return stack_stages([F.avg_pool2d(one, 3, stride=1, padding=1, count_include_pad=False) for one in maps])


def compare(bench: FrozenBench, name: str) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return a candidate's test maps `(N, h, w)` and the test scores `(N,)` alone and fused with the regression."""
    everything, of_train = np.arange(len(bench.rows)), cells_of(name, bench, bench.rows)
    good = torch.from_numpy(~bench.defective)

    def fit(rows: np.ndarray) -> Score:
        inside = torch.from_numpy(np.isin(everything, rows))
        return fit_candidate(name, of_train[inside & good], bench.seed)

    heads: FrozenHeads = bench.heads()
    held_out, logits = heads._out_of_sample_logits()
    scores = np.empty(len(everything))
    for fold in heads.folds:
        scores[fold] = image_scores(fit(np.setdiff1d(everything, fold))(of_train[fold]))
    maps = fit(everything)(cells_of(name, bench, bench.test_rows))
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
    kept = stored_lines(options.output)
    for pair in itertools.combinations(range(TASKS[TASK].folds), 2):
        done = {line["candidate"] for line in kept if line["pair"] == list(pair)}
        wanted = [name for name in CANDIDATES if name not in done]
        if not wanted:
            continue
        lines = run_pair(pair, options.cache_dir, wanted)
        append_lines(options.output, *lines)
        print(pair, "done", flush=True)


if __name__ == "__main__":
    main()
