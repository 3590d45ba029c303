"""Parts of a data set that groups do not straddle: folds, few labels, validation pictures."""

from __future__ import annotations

import warnings

import numpy as np
from datasets import Dataset
from sklearn.model_selection import StratifiedGroupKFold

from .errors import InputError


def group_folds(pictures: Dataset, folds: int, seed: int, option: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """
    Indices `(rest, held out)` of each of `folds` folds, stratified by class, groups whole.

    Raises:
        InputError: a class has fewer groups than there are folds; the message names `option`.
    """
    scarce = [f"{name} ({count})" for name, count in groups_of_classes(pictures).items() if count < folds]
    if scarce:
        raise InputError(
            f"{option} {folds}: too few independent pictures of {', '.join(scarce)}; pictures that show the same (see "
            "kgl-data, --duplicate_distance) count once."
        )
    return _folds(pictures, folds, seed)


def groups_of_classes(pictures: Dataset) -> dict[str, int]:
    """How many groups each class has pictures in."""
    names = pictures.features["label"].names
    found: dict[str, set[str]] = {name: set() for name in names}
    for group, label in zip(pictures["group"][:], pictures["label"][:], strict=True):
        found[names[label]].add(group)
    return {name: len(groups) for name, groups in found.items()}


def hold_out_validation(pictures: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """
    `(train, validation)`: one of about `1 / share` equal parts held out, stratified by class, groups whole.

    A class with too few groups to be in both stays in training.

    Args:
        pictures: to part.
        share: in 0..0.5, without either end.
        seed: of the choice.
    """
    parts = min(round(1 / share), max(groups_of_classes(pictures).values()))
    if parts < 2:
        return pictures, pictures.select([])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        folds = _folds(pictures, parts, seed)
    labels = np.asarray(pictures["label"][:])
    groups = np.asarray(pictures["group"][:])
    # The first of those that show the most classes: rare ones are in few.
    train, held_out = max(folds, key=lambda fold: len(np.unique(labels[fold[1]])))
    alone = set(np.unique(labels)) - set(labels[train])
    back = np.isin(groups[held_out], groups[held_out][np.isin(labels[held_out], list(alone))])
    train = np.sort(np.concatenate([train, held_out[back]]))
    return pictures.select(train), pictures.select(held_out[~back])


def few_labels(
    pictures: Dataset, per_class: int | None, defect_free_count: int | None, defect_free: str | None, seed: int
) -> Dataset:
    """
    The first so many of each class in a random order fixed by the seed, so that larger budgets contain smaller ones.

    Args:
        pictures: to choose from.
        per_class: how many of each class, None for all.
        defect_free_count: how many of the defect-free class, None for all.
        defect_free: its name, or None where there is none.
        seed: of the order.
    """
    names, labels = pictures.features["label"].names, pictures["label"][:]
    taken = dict.fromkeys(names, 0)
    keep = []
    for index in np.random.default_rng(seed).permutation(len(pictures)).tolist():
        name = names[labels[index]]
        limit = defect_free_count if name == defect_free else per_class
        if limit is None or taken[name] < limit:
            taken[name] += 1
            keep.append(index)
    return pictures.select(sorted(keep))


def _folds(pictures: Dataset, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    labels = np.asarray(pictures["label"][:])
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return list(splitter.split(labels, labels, pictures["group"][:]))


__all__ = ["few_labels", "group_folds", "groups_of_classes", "hold_out_validation"]
