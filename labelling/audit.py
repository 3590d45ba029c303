"""Labels that look wrong: by out-of-sample probabilities, near-duplicates and masks, in one ranked list."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from ..data.duplicates import find_near_duplicates
from ..data.progress import progress_bar
from ..data.storage import write_text
from ..errors import InputError
from ..modeling_kgl import KGLForImageClassification
from ..training.frozen_features import FrozenFeatures
from ..training.frozen_heads import group_folds
from .audit_page import write_page
from .confident_learning import find_doubts
from .labelled_images import LabelledImages, compute_features, fit_and_predict
from .output import CACHE, delete_cache


CLASSIFIER, DUPLICATES, MASK = "classifier", "duplicates", "mask"


@dataclass(frozen=True)
class Labels:
    """
    Labels to audit, and what is known of their images.

    Attributes:
        labels: `(N,)`.
        names: of the classes.
        defect_free_id: index of the class without defects, None where there is none.
        digests: of the files.
        near_duplicates: a number per image, `(N,)`, shared by near-duplicates.
        mask_shows_defect: per image, None without a mask.
    """

    labels: np.ndarray
    names: list[str]
    defect_free_id: int | None
    digests: list[str]
    near_duplicates: np.ndarray
    mask_shows_defect: list[bool | None]


@dataclass
class Suspect:
    """
    An image whose label looks wrong.

    Attributes:
        row: of the image.
        trust: in the label, in 0..1: the least that anything leaves of it.
        suggested: another class, by its index.
        kinds: what speaks against the label.
        reasons: the same in words.
    """

    row: int
    trust: float
    suggested: int
    kinds: list[str]
    reasons: list[str]


def rank_suspects(audited: Labels, probabilities: np.ndarray) -> list[Suspect]:
    """
    Return the images whose label something contradicts, the least trusted first.

    What a reason leaves of the trust: the classifier `(1 + margin) / 2`; near-duplicates the share of them that carry
    the label, one half at most; a mask that contradicts the label, or identical files with another, nothing.

    Args:
        audited: the labels.
        probabilities: out of sample, `(N, K)`; NaN rows are images without a prediction.
    """
    doubts, labels, names = find_doubts(probabilities, audited.labels), audited.labels, audited.names
    suspects: dict[int, Suspect] = {}

    def add(row: int, trust: float, suggested: int, kind: str, reason: str) -> None:
        one = suspects.setdefault(row, Suspect(row, trust, suggested, [], []))
        if trust < one.trust:
            one.trust, one.suggested = trust, suggested
        one.kinds.append(kind)
        one.reasons.append(reason)

    for row in np.flatnonzero(doubts.suggested != labels):
        suggested, label = doubts.suggested[row], labels[row]
        reason = (
            f"classifier: {names[suggested]} {probabilities[row, suggested]:.2f}, {names[label]} "
            f"{probabilities[row, label]:.2f}"
        )
        add(row, (1 + doubts.margin[row]) / 2, int(suggested), CLASSIFIER, reason)
    for row, trust, suggested, reason in _contradicting_duplicates(audited):
        add(row, trust, suggested, DUPLICATES, reason)
    for row, suggested, reason in _contradicting_masks(audited, probabilities):
        add(row, 0.0, suggested, MASK, reason)
    # Equal trust: more reasons first, then what the classifier makes of the label.
    margins = np.nan_to_num(doubts.margin, nan=1.0)
    return sorted(suspects.values(), key=lambda one: (one.trust, -len(one.kinds), margins[one.row], one.row))


def _contradicting_duplicates(audited: Labels) -> list[tuple[int, float, int, str]]:
    """Return row, trust, the usual label of the others, and the reason, where a near-duplicate has another label."""
    found = []
    for number in np.unique(audited.near_duplicates):
        rows = np.flatnonzero(audited.near_duplicates == number)
        counts = np.bincount(audited.labels[rows], minlength=len(audited.names))
        if np.count_nonzero(counts) < 2:
            continue
        identical = len({audited.digests[row] for row in rows}) == 1
        said = ", ".join(f"{counts[label]} {audited.names[label]}" for label in np.argsort(-counts) if counts[label])
        for row in rows:
            share = counts[audited.labels[row]] / len(rows)
            others = counts.copy()
            others[audited.labels[row]] = 0
            if share <= 0.5:
                reason = f"{'identical files' if identical else 'near-duplicates'} are {said}"
                found.append((int(row), 0.0 if identical else float(share), int(others.argmax()), reason))
    return found


def _contradicting_masks(audited: Labels, probabilities: np.ndarray) -> list[tuple[int, int, str]]:
    """Return row, suggested class and reason where a mask contradicts the label."""
    good, found = audited.defect_free_id, []
    if good is None:
        return found
    for row, shows in enumerate(audited.mask_shows_defect):
        if shows is None or shows != (audited.labels[row] == good):
            continue
        if not shows:
            found.append((row, good, "mask: it is empty, the label is a defect"))
            continue
        of_defects = np.nan_to_num(probabilities[row].copy(), nan=0.0)
        of_defects[good] = -1
        found.append((row, int(of_defects.argmax()), "mask: it marks a defect, the label is defect-free"))
    return found


def held_out_probabilities(
    model: KGLForImageClassification,
    features: FrozenFeatures,
    labels: np.ndarray,
    groups: list[str],
    seed: int,
    heads: str,
) -> np.ndarray:
    """
    Return the probabilities `(N, K)` of each image by heads that were fitted without its group.

    Images of a class with a single group cannot be held out; their rows are NaN.

    Raises:
        InputError: no class has two groups.
    """
    folds = group_folds(labels, groups, seed)
    if not folds:
        raise InputError(
            "No image can be held out: all images of each class are near-duplicates or of one group. Add images, or "
            "give a smaller --duplicate_distance."
        )
    probabilities = np.full((len(labels), len(model.config.id2label)), np.nan)
    for held_out in progress_bar(folds, "Folds"):
        rest = np.setdiff1d(np.arange(len(labels)), held_out)
        probabilities[held_out] = fit_and_predict(model, features, labels, groups, rest, held_out, seed, heads)
    return probabilities


def labels_of(labelled: LabelledImages) -> Labels:
    """Return the labels of a dataset, with its near-duplicates and masks."""
    distance = labelled.loaded.duplicate_distance
    return Labels(
        labelled.labels,
        labelled.loaded.class_names,
        labelled.defect_free_id,
        labelled.images["digest"][:],
        find_near_duplicates(labelled.hashes, distance),
        labelled.mask_shows_defect,
    )


def run_audit(labelled: LabelledImages, output: Path, shown: int, heads: str) -> pd.DataFrame:
    """
    Write `audit.csv`, one row per suspicious label, and `audit.html`, the first `shown` of them with images.

    Returns:
        The rows of `audit.csv`.

    Raises:
        InputError: no image can be held out.
    """
    model, features = compute_features(labelled, output / CACHE)
    audited = labels_of(labelled)
    probabilities = held_out_probabilities(model, features, audited.labels, labelled.groups, labelled.seed, heads)
    suspects = rank_suspects(audited, probabilities)
    table = _table(suspects, audited, probabilities, labelled.images["file_name"][:])
    write_page(output / "audit.html", labelled.images, suspects[:shown], table, features.pooled, labelled.name)
    write_text(output / "audit.csv", table.to_csv(index=False, float_format="%.6g", lineterminator="\n"))
    delete_cache(output)
    return table


def _table(suspects: list[Suspect], audited: Labels, probabilities: np.ndarray, files: list[str]) -> pd.DataFrame:
    rows = [
        {
            "rank": rank,
            "file": files[one.row],
            "label": audited.names[audited.labels[one.row]],
            "suggested_label": audited.names[one.suggested],
            "trust": one.trust,
            "probability_of_label": probabilities[one.row, audited.labels[one.row]],
            "probability_of_suggested": probabilities[one.row, one.suggested],
            "kinds": " ".join(one.kinds),
            "reason": "; ".join(one.reasons),
        }
        for rank, one in enumerate(suspects, 1)
    ]
    names = ("rank", "file", "label", "suggested_label", "trust", "probability_of_label", "probability_of_suggested",
             "kinds", "reason")  # fmt: skip
    return pd.DataFrame(rows, columns=list(names))


__all__ = ["Labels", "Suspect", "held_out_probabilities", "labels_of", "rank_suspects", "run_audit"]
