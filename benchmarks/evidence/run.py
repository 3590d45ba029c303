"""
Run the evidence bench: arms x tasks x label budgets x seeds, one JSON line per run.

    python benchmarks/evidence/run.py --tasks magnetic_tile_long neu_det_long --budgets 8 16 --bf16
    python benchmarks/evidence/run.py --tasks magnetic_tile --arms plain "guided, convex" --search --bf16

Runs that the results file already holds are skipped (`benchmarks/results/evidence.jsonl`, with `--search`
`search.jsonl`); `--part 0/2` takes every other group of runs, for a second process. A budget of B is B images of each
defect class and 4 B defect-free ones. The seed decides the images, weights and batches, so arms of one seed are pairs;
where a task has no fixed test fold, it decides the test fold too. All arms start from the same backbone, whose stem
and first stages are frozen and cached (`--cache_dir`).

Groups (near-duplicates) stay in one split. `--search` evaluates on a validation fold that no test run of any seed
trains or tests on. The test fold is evaluated once per run, at its end.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from datasets import disable_progress_bars

from kgl.benchmarks.evidence.bench import Bench
from kgl.benchmarks.evidence.identity import finished_runs, run_identity
from kgl.benchmarks.evidence.plan import ARMS, TASKS, TEST_ARMS
from kgl.benchmarks.evidence.priors import CannotShuffleError
from kgl.benchmarks.evidence.records import append_lines
from kgl.benchmarks.measure import RESULTS, hardware


_PRINTED = ("ap", "accuracy", "map_ap", "gradcam_ap", "saliency_ap", "seconds")


def parse_arguments(arguments: list[str] | None = None) -> tuple[argparse.ArgumentParser, argparse.Namespace]:
    """Return the parser and its options; exits where an option is out of range."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", choices=sorted(TASKS), required=True)
    parser.add_argument("--budgets", type=int, nargs="+", default=[16], help="images per defect class")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(TEST_ARMS), metavar="ARM")
    parser.add_argument("--search", action="store_true", help="evaluate on validation images, into search.jsonl")
    parser.add_argument(
        "--part", type=_part, default=(0, 1), metavar="I/N", help="every N-th task, budget and seed, from the I-th on"
    )
    parser.add_argument("--cache_dir", type=Path, default=Path(tempfile.gettempdir()) / "kgl_evidence")
    parser.add_argument("--output", type=Path, help="a .jsonl file; one in benchmarks/results by default")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true", help="mixed precision: half the time where a CPU supports it")
    options = parser.parse_args(arguments)
    options.output = options.output or RESULTS / ("search.jsonl" if options.search else "evidence.jsonl")
    if min(options.budgets) < 1:
        parser.error(f"--budgets {min(options.budgets)}: it must be at least 1.")
    if options.search and not all(TASKS[task].fixed_test_fold for task in options.tasks):
        searchable = ", ".join(name for name, task in TASKS.items() if task.fixed_test_fold)
        parser.error(f"--search: only on {searchable}; every fold of the other tasks is tested by some seed.")
    return parser, options


def _part(text: str) -> tuple[int, int]:
    part, parts = map(int, text.split("/"))
    if not 0 <= part < parts:
        raise ValueError(text)
    return part, parts


def run_arms(
    task: str, budget: int, seed: int, identities: dict[str, dict[str, Any]], options: argparse.Namespace
) -> None:
    """Run arms of one task, budget and seed; append a line per run to the results file."""
    bench = Bench(task, budget, seed, options.search, options.bf16, options.cache_dir)
    for arm, identity in identities.items():
        try:
            metrics = bench.run(ARMS[arm])
        except CannotShuffleError as error:  # with this choice of images; other arms can run
            print(task, budget, seed, arm, f"skipped: {error}", sep="  ", flush=True)
            continue
        line = identity | {
            "train_images": len(bench.train_images), "test_images": len(bench.test_images), "hardware": hardware(),
            "threads": options.threads, "torch": torch.__version__, "metrics": metrics,
        }  # fmt: skip
        append_lines(options.output, line)
        printed = [f"{name} {metrics[name]:.3f}" for name in _PRINTED if name in metrics]
        print(task, budget, seed, arm, *printed, sep="  ", flush=True)


def main() -> None:
    """Run what is missing in the results file."""
    parser, options = parse_arguments()
    torch.set_num_threads(options.threads)
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    disable_progress_bars()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    part, parts = options.part
    groups = [(seed, task, budget) for seed in options.seeds for task in options.tasks for budget in options.budgets]
    for seed, task, budget in groups[part::parts]:
        wanted = {arm: run_identity(arm, task, budget, seed, options.search, options.bf16) for arm in options.arms}
        finished = finished_runs(options.output)
        for arm, identity in wanted.items():
            if finished.get((arm, task, budget, seed), identity) != identity:
                parser.error(f"{options.output} has a run of {arm!r} with other settings; choose another --output.")
        missing = {arm: one for arm, one in wanted.items() if (arm, task, budget, seed) not in finished}
        if missing:
            run_arms(task, budget, seed, missing, options)


if __name__ == "__main__":
    main()
