"""Scores of the validation images, stored in a run's folder, and what they say of its classifiers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from datasets import Dataset

from ..data.storage import write_text


VALIDATION_FILE = "validation.csv"
MIN_GROUPS = 10  # of good and of defective images, with fewer of which a bootstrap interval is too narrow
_DRAWS = 300


@dataclass(frozen=True)
class ValidationScores:
    """
    `P(defect)` of the validation images.

    Attributes:
        defective: `(N,)` bool.
        primary: by the primary classifier, `(N,)` in 0..1.
        final: by the final classifier, `(N,)` in 0..1.
        groups: of the images, `(N,)` text: near-duplicates and images of one part share one. None in a run of an
            earlier version.
    """

    defective: np.ndarray
    primary: np.ndarray
    final: np.ndarray
    groups: np.ndarray | None


def write_validation_scores(path: Path, validation: Dataset, scores: dict[str, list[float]]) -> None:
    """
    Write `validation.csv`: `file_name`, `label`, `group` and `MODEL_defect_score` of the validation images.

    Args:
        path: the CSV to write.
        validation: columns `file_name`, `label` and `group`.
        scores: model to calibrated `P(defect)` of the images.
    """
    names = validation.features["label"].names
    columns = {"file_name": validation["file_name"][:], "label": [names[label] for label in validation["label"][:]]}
    columns["group"] = validation["group"][:]
    columns |= {f"{model}_defect_score": of_model for model, of_model in scores.items()}
    write_text(path, pd.DataFrame(columns).to_csv(index=False, lineterminator="\n"))


def read_validation_scores(run: Path, defect_free_label: str | None) -> ValidationScores | None:
    """
    Return the scores of a run's validation images, None where it has stored none.

    Args:
        run: its folder.
        defect_free_label: name of the class without defects.
    """
    path = run / VALIDATION_FILE
    if defect_free_label is None or not path.is_file():
        return None
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    return ValidationScores(
        defective=(table["label"] != defect_free_label).to_numpy(),
        primary=table["primary_defect_score"].astype(float).to_numpy(),
        final=table["final_defect_score"].astype(float).to_numpy(),
        groups=table["group"].to_numpy() if "group" in table else None,
    )


def difference_interval(scores: ValidationScores) -> list[float] | None:
    """
    Return the 95 % interval of the difference in AP, final minus primary, by a paired bootstrap.

    Whole groups are drawn, those of good and of defective images each for themselves. None with fewer than
    [`MIN_GROUPS`] groups of a kind: their draws are too much alike.
    """
    defective = scores.defective
    groups = np.arange(len(defective)) if scores.groups is None else scores.groups
    kinds = []  # rows of good or of defective images, their group as a number, and how many groups there are
    for rows in (np.flatnonzero(defective), np.flatnonzero(~defective)):
        names, group_of_row = np.unique(groups[rows], return_inverse=True)
        kinds.append((rows, group_of_row, len(names)))
    if min(count for _, _, count in kinds) < MIN_GROUPS:
        return None
    generator = np.random.default_rng(0)
    times = np.empty(len(defective), dtype=int)  # each row is drawn, as often as its group
    ranked = [_rank(of_model) for of_model in (scores.primary, scores.final)]
    differences = []
    for _ in range(_DRAWS):
        for rows, group_of_row, count in kinds:
            times[rows] = np.bincount(generator.integers(0, count, count), minlength=count)[group_of_row]
        primary, final = (_ap(*of_model, defective, times) for of_model in ranked)
        differences.append(final - primary)
    return np.quantile(differences, (0.025, 0.975)).tolist()


def _rank(scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows from the highest score down, `(N,)`, and the places of the last one of each score."""
    order = np.argsort(-scores, kind="stable")
    return order, np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)


def _ap(order: np.ndarray, last_of_ties: np.ndarray, defective: np.ndarray, times: np.ndarray) -> float:
    """
    Return the AP of rows, each repeated `times`.

    It equals that of [`~kgl.evaluation.metrics.average_precisions`], whose sorting of every draw takes five times as
    long.
    """
    called = np.cumsum(times[order])[last_of_ties]
    found = np.cumsum((times * defective)[order])[last_of_ties]
    return float(np.diff(found, prepend=0) @ (found / np.maximum(called, 1)) / found[-1])


__all__ = [
    "MIN_GROUPS",
    "VALIDATION_FILE",
    "ValidationScores",
    "difference_interval",
    "read_validation_scores",
    "write_validation_scores",
]
