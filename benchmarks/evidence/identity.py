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
# Settings that stored runs have and arms no longer do, with the value that every arm has now, by group of settings.
_DELETED = {
    "": {
        "model": {}, "known_masks": 0, "rounds": 1, "early_stopped": False, "distilled": False,
        "averaged_primary": False, "primary_length": 1.0, "detached_head": False,
    },
    "training": {"kg_objective": ["otsu_bce"], "kg_schedule": "linear", "kg_ignore_band": 0.0},
    "prior_arguments": {"prior_weighting": "keep_all"},
}  # fmt: skip


def arm_settings(arm: str) -> dict[str, Any]:
    """Return the settings of an arm with defaults written out, since they may change."""
    settings = asdict(ARMS[arm])
    for name in ("frozen", "with_default"):
        if not settings[name]:
            del settings[name]  # arms of the first edition have no such setting
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


def without_deleted(settings: dict[str, Any]) -> dict[str, Any]:
    """Return an arm's stored settings without those of `_DELETED` that have the value that every arm has now."""
    kept = _without(settings, _DELETED[""])
    return kept | {group: _without(kept[group], _DELETED[group]) for group in ("training", "prior_arguments")}


def _without(settings: dict[str, Any], deleted: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in deleted or value != deleted[name]}


def finished_runs(path: Path) -> dict[RunKey, dict[str, Any]]:
    """Return the identity of each run in a file of results; none where the file does not exist."""
    if not path.exists():
        return {}
    finished = {}
    for line in read_lines(path):
        identity = {key: line[key] for key in _KEYS} | {"settings": without_deleted(line["settings"])}
        finished[tuple(line[key] for key in _KEYS[:4])] = identity
    return finished
