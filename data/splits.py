"""Leakage-free splits: folds, few-label subsets, validation."""

from __future__ import annotations

import warnings

import numpy as np
from datasets import Dataset
from sklearn.model_selection import StratifiedGroupKFold

from ..errors import InputError


_MAX_SEEDS = 10


def group_folds(images: Dataset, folds: int, seed: int, option: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """
    Return the indices `(rest, held out)` of each fold, stratified by class, groups kept whole.

    Args:
        images: columns `label` and `group`.
        folds: number of folds.
        seed: of the shuffle.
        option: the command-line option that set `folds`, for the message.

    Raises:
        InputError: a class has fewer groups than there are folds.
    """
    counts = count_groups_per_class(images)
    scarce = [f"{name} ({count})" for name, count in counts.items() if count < folds]
    if scarce:
        most = min(counts.values())
        if most < 2:
            advice = "Add images: two independent ones of each class are needed."
        elif find_complete_fold(images, most, seed) is None:
            advice = "Add images of other groups."
        else:
            advice = f"Add images, or give {option} {most}."
        raise InputError(
            f"{option} {folds}: too few independent images of {', '.join(scarce)}; images of one group and near-"
            f"duplicates count once (`kgl data` lists them). {advice}"
        )
    return _folds(images, folds, seed)


def find_complete_fold(images: Dataset, folds: int, seed: int) -> tuple[int, int] | None:
    """
    Return a seed and a fold that leave images of every class on both sides, None where no seed tried has one.

    Args:
        images: columns `label` and `group`.
        folds: number of folds.
        seed: the first of those that are tried.
    """
    labels = np.asarray(images["label"][:])
    classes = len(images.features["label"].names)
    for tried in range(seed, seed + _MAX_SEEDS):
        for fold, sides in enumerate(_folds(images, folds, tried)):
            if all(len(np.unique(labels[side])) == classes for side in sides):
                return tried, fold
    return None


def count_groups_per_class(images: Dataset) -> dict[str, int]:
    """Return the number of groups that have images of each class."""
    names = images.features["label"].names
    found: dict[str, set[str]] = {name: set() for name in names}
    for group, label in zip(images["group"][:], images["label"][:], strict=True):
        found[names[label]].add(group)
    return {name: len(groups) for name, groups in found.items()}


def hold_out_validation(images: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """
    Return `(train, validation)`: one of about `1 / share` equal parts is held out, groups kept whole.

    The parts are stratified by class; a class with too few groups to be in both stays in training.

    Args:
        images: columns `label` and `group`.
        share: above 0, at most 0.5.
        seed: of the shuffle.
    """
    parts = min(round(1 / share), max(count_groups_per_class(images).values()))
    if parts < 2:
        return images, images.select([])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        folds = _folds(images, parts, seed)
    labels = np.asarray(images["label"][:])
    groups = np.asarray(images["group"][:])
    # The first of the folds with the most classes: rare classes are in few.
    train, held_out = max(folds, key=lambda fold: len(np.unique(labels[fold[1]])))
    only_held_out = set(np.unique(labels)) - set(labels[train])
    back = np.isin(groups[held_out], groups[held_out][np.isin(labels[held_out], list(only_held_out))])
    train = np.sort(np.concatenate([train, held_out[back]]))
    return images.select(train), images.select(held_out[~back])


def select_few_labels(
    images: Dataset, per_class: int | None, defect_free_count: int | None, defect_free: str | None, seed: int
) -> Dataset:
    """
    Select a number of images per class, so that a larger selection with the same seed contains a smaller one.

    Args:
        images: column `label`.
        per_class: images of each defect class, None for all.
        defect_free_count: images of the defect-free class, None for all.
        defect_free: the name of the defect-free class, None where there is none.
        seed: of the random order that the first images are taken of.
    """
    names, labels = images.features["label"].names, images["label"][:]
    counts = dict.fromkeys(names, 0)
    keep = []
    for index in np.random.default_rng(seed).permutation(len(images)).tolist():
        name = names[labels[index]]
        limit = defect_free_count if name == defect_free else per_class
        if limit is None or counts[name] < limit:
            counts[name] += 1
            keep.append(index)
    return images.select(sorted(keep))


def _folds(images: Dataset, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    labels = np.asarray(images["label"][:])
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return list(splitter.split(labels, labels, images["group"][:]))


__all__ = ["count_groups_per_class", "find_complete_fold", "group_folds", "hold_out_validation", "select_few_labels"]
