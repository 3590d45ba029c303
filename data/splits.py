"""Leakage-free splits: folds, few-label subsets, validation."""

from __future__ import annotations

import warnings

import numpy as np
from datasets import Dataset
from sklearn.model_selection import StratifiedGroupKFold

from ..errors import InputError


def group_folds(images: Dataset, folds: int, seed: int, option: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """
    Indices `(rest, held out)` of each of `folds` folds, stratified by class, groups whole.

    Raises:
        InputError: a class has fewer groups than there are folds; the message names `option`.
    """
    scarce = [f"{name} ({count})" for name, count in count_groups_per_class(images).items() if count < folds]
    if scarce:
        raise InputError(
            f"{option} {folds}: too few independent images of {', '.join(scarce)}; images that show the same (see "
            "kgl-data, --duplicate_distance) count once."
        )
    return _folds(images, folds, seed)


def count_groups_per_class(images: Dataset) -> dict[str, int]:
    """How many groups each class has images in."""
    names = images.features["label"].names
    found: dict[str, set[str]] = {name: set() for name in names}
    for group, label in zip(images["group"][:], images["label"][:], strict=True):
        found[names[label]].add(group)
    return {name: len(groups) for name, groups in found.items()}


def hold_out_validation(images: Dataset, share: float, seed: int) -> tuple[Dataset, Dataset]:
    """
    `(train, validation)`: one of about `1 / share` equal parts held out, stratified by class, groups whole.

    A class with too few groups to be in both stays in training.

    Args:
        images: to part.
        share: in 0..0.5, without either end.
        seed: of the choice.
    """
    parts = min(round(1 / share), max(count_groups_per_class(images).values()))
    if parts < 2:
        return images, images.select([])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        folds = _folds(images, parts, seed)
    labels = np.asarray(images["label"][:])
    groups = np.asarray(images["group"][:])
    # The first of those that show the most classes: rare ones are in few.
    train, held_out = max(folds, key=lambda fold: len(np.unique(labels[fold[1]])))
    alone = set(np.unique(labels)) - set(labels[train])
    back = np.isin(groups[held_out], groups[held_out][np.isin(labels[held_out], list(alone))])
    train = np.sort(np.concatenate([train, held_out[back]]))
    return images.select(train), images.select(held_out[~back])


def select_few_labels(
    images: Dataset, per_class: int | None, defect_free_count: int | None, defect_free: str | None, seed: int
) -> Dataset:
    """
    The first so many of each class in a random order fixed by the seed, so that larger budgets contain smaller ones.

    Args:
        images: to choose from.
        per_class: how many of each class, None for all.
        defect_free_count: how many of the defect-free class, None for all.
        defect_free: its name, or None where there is none.
        seed: of the order.
    """
    names, labels = images.features["label"].names, images["label"][:]
    taken = dict.fromkeys(names, 0)
    keep = []
    for index in np.random.default_rng(seed).permutation(len(images)).tolist():
        name = names[labels[index]]
        limit = defect_free_count if name == defect_free else per_class
        if limit is None or taken[name] < limit:
            taken[name] += 1
            keep.append(index)
    return images.select(sorted(keep))


def _folds(images: Dataset, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    labels = np.asarray(images["label"][:])
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    return list(splitter.split(labels, labels, images["group"][:]))


__all__ = ["count_groups_per_class", "group_folds", "hold_out_validation", "select_few_labels"]
