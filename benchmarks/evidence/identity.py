"""Identity of a run: everything that decides its metrics, compared before a run is skipped or added."""

from __future__ import annotations

import json
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from kgl.benchmarks.evidence.bench import RECIPE
from kgl.benchmarks.evidence.plan import ARMS, TASKS
from kgl.benchmarks.evidence.records import read_lines
from kgl.benchmarks.evidence.task_data import VIEWS, data_fingerprint
from kgl.knowledge.arguments import PriorArguments
from kgl.training.arguments import GuidanceArguments


_KEYS = ("arm", "dataset", "budget", "seed", "split", "task", "settings", "precision", "recipe")
RunKey = tuple[str, str, int, int]  # arm, dataset, budget, seed


def arm_settings(arm: str) -> dict[str, Any]:
    """Return the settings of an arm with defaults written out, since they may change."""
    settings = asdict(ARMS[arm])
    if settings["frozen"] is None:
        del settings["frozen"]  # arms of the first edition have no such setting
    settings["prior_arguments"] = asdict(PriorArguments(**settings["prior_arguments"]))
    names = [one.name for one in fields(GuidanceArguments)]
    if settings["prior"] is None:  # without a prior, the defaults of guidance have no effect
        names = [name for name in names if not name.startswith("kg_")]
    training = GuidanceArguments(**settings["training"])
    settings["training"] = {name: vars(training)[name] for name in names}
    return settings


def task_settings(task: str) -> dict[str, Any]:
    """Return the settings of a task without the place of its data, which differs between machines."""
    settings = asdict(TASKS[task])
    settings["data"].pop("data_dir", None)
    return settings


def run_identity(arm: str, task: str, budget: int, seed: int, search: bool, bf16: bool) -> dict[str, Any]:
    """Return the settings that decide a run's metrics, as its JSON line has them."""
    identity = {
        "arm": arm,
        "dataset": task,
        "budget": budget,
        "seed": seed,
        "split": "validation" if search else "test",
        "task": task_settings(task) | {"data_fingerprint": data_fingerprint(task)},
        "settings": arm_settings(arm),
        "precision": "bf16" if bf16 else "float32",
        "recipe": RECIPE | {"views": VIEWS},
    }
    return json.loads(json.dumps(identity))


def finished_runs(path: Path) -> dict[RunKey, dict[str, Any]]:
    """Return the identity of each run in a file of results; none where the file does not exist."""
    if not path.exists():
        return {}
    return {tuple(line[key] for key in _KEYS[:4]): {key: line[key] for key in _KEYS} for line in read_lines(path)}
