"""Labels that look wrong: by out-of-sample probabilities, near-duplicates and masks, in one ranked list."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.special import expit

from ..data.duplicates import find_near_duplicates
from ..data.progress import progress_bar
from ..data.storage import write_text
from ..errors import InputError
from ..modeling_kgl import KGLForImageClassification
from ..training.frozen_features import FrozenFeatures
from ..training.frozen_heads import cross_fitting_folds
from .audit_page import write_page
from .confident_learning import confident_classes
from .labelled_images import LabelledImages, compute_features, fit_and_predict
from .output import CACHE, delete_cache


CLASSIFIER, DUPLICATES, MASK = "classifier", "duplicates", "mask"
MIN_PROBABILITY = 0.01  # a classifier of few images is not surer than that
MAX_VOTE = 4.0


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
        trust: in the label against the suggested one, in 0..1.
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

    The trust in a label is its odds against the best other class: the ratio of their probabilities, times
    [`vote_weight`] for each near-duplicate that carries the label and divided by it for each that carries the other. A
    mask that contradicts the label, and identical files of which more carry another one, leave none.

    Args:
        audited: the labels.
        probabilities: out of sample, `(N, K)`; NaN rows are images without a prediction.
    """
    labels, names = audited.labels, audited.names
    trust, suggested = _trust(audited, probabilities)
    suspects: dict[int, Suspect] = {}

    def add(row: int, kind: str, reason: str, certain: int | None = None) -> None:
        """Add a reason; `certain`: the class that it leaves no doubt about."""
        one = suspects.setdefault(row, Suspect(row, float(trust[row]), int(suggested[row]), [], []))
        if certain is not None:
            one.trust, one.suggested = 0.0, certain
        one.kinds.append(kind)
        one.reasons.append(reason)

    for row in np.flatnonzero((confident_classes(probabilities, labels) != labels) & (trust < 0.5)):
        said = ", ".join(f"{names[label]} {probabilities[row, label]:.2f}" for label in (suggested[row], labels[row]))
        add(int(row), CLASSIFIER, f"classifier: {said}")
    for row, reason, certain in _contradicting_duplicates(audited):
        add(row, DUPLICATES, reason, certain)
    for row, certain, reason in _contradicting_masks(audited, probabilities):
        add(row, MASK, reason, certain)
    # Equal trust: more reasons first, then what it would be without masks and identical files.
    return sorted(suspects.values(), key=lambda one: (one.trust, -len(one.kinds), trust[one.row], one.row))


def _trust(audited: Labels, probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the trust in each label by classifier and near-duplicates, `(N,)`, and the best other class, `(N,)`."""
    labels, rows = audited.labels, np.arange(len(audited.labels))
    votes = label_counts(audited)
    votes[rows, labels] -= 1  # an image has no vote of its own
    known = np.nan_to_num(probabilities, nan=1 / len(audited.names))
    evidence = np.log(np.maximum(known, MIN_PROBABILITY)) + np.log(vote_weight(audited)) * votes
    others = evidence.copy()
    others[rows, labels] = -np.inf
    return expit(evidence[rows, labels] - others.max(axis=1)), others.argmax(axis=1)


def label_counts(audited: Labels) -> np.ndarray:
    """Return how many near-duplicates of each image, itself among them, carry each label, `(N, K)`."""
    counts = np.zeros((int(audited.near_duplicates.max()) + 1, len(audited.names)))
    np.add.at(counts, (audited.near_duplicates, audited.labels), 1)
    return counts[audited.near_duplicates]


def vote_weight(audited: Labels) -> float:
    """
    Return the odds that a near-duplicate's label gives to a class, from how far near-duplicates agree.

    It is `1 / (1 - kappa)` with Cohen's kappa of the labels of near-duplicates: 1 where they agree no more than by
    chance, as those of parts in a fixture that look alike to a hash, and `MAX_VOTE` at most.
    """
    counts, rows = label_counts(audited), np.arange(len(audited.labels))
    several = counts.sum(axis=1) > 1
    if not several.any():
        return 1.0
    others = counts.sum(axis=1)[several] - 1
    agreement = ((counts[rows, audited.labels][several] - 1) / others).mean()
    by_chance = float(((np.bincount(audited.labels[several]) / several.sum()) ** 2).sum())
    kappa = (agreement - by_chance) / max(1 - by_chance, 1e-9)
    return float(1 / np.clip(1 - kappa, 1 / MAX_VOTE, 1))


def _contradicting_duplicates(audited: Labels) -> list[tuple[int, str, int | None]]:
    """
    Return row and reason where no more than half of the near-duplicates carry the image's label.

    For identical files the third value is the label that most of the others carry, None for near-duplicates.
    """
    found: list[tuple[int, str, int | None]] = []
    numbers = audited.near_duplicates.tolist()
    all_counts = label_counts(audited)
    files_of_number = Counter(number for number, _ in set(zip(numbers, audited.digests, strict=True)))
    for row in np.flatnonzero((all_counts > 0).sum(axis=1) > 1):
        counts, label = all_counts[row].astype(int), audited.labels[row]
        if counts[label] > counts.sum() / 2:
            continue
        identical = files_of_number[numbers[row]] == 1
        order = np.argsort(-counts, kind="stable")
        said = ", ".join(f"{counts[one]} {audited.names[one]}" for one in order if counts[one])
        certain = int(next(one for one in order if one != label)) if identical else None
        found.append((int(row), f"{'identical files' if identical else 'near-duplicates'} are {said}", certain))
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
    folds = cross_fitting_folds(labels, groups, seed)
    if not folds:
        raise InputError(
            "No image can be held out: all images of each class are near-duplicates or of one group. Add images "
            "of other groups, or, if they are near-duplicates, give a smaller --duplicate_distance."
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


__all__ = ["Labels", "Suspect", "held_out_probabilities", "labels_of", "rank_suspects", "run_audit", "vote_weight"]
