"""The report's results in words: errors per thousand or hundred parts, and the results of each group."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..configuration_kgl import KGLConfig
from ..errors import format_count
from .metrics import count_decisions, defect_scores, wilson_interval


MAX_GROUPS = 50


@dataclass(frozen=True)
class Expectation:
    """
    What to expect of parts like the test images.

    Attributes:
        sentences: the main ones.
        by_class: one per class, where there are several to tell apart.
    """

    sentences: list[str]
    by_class: list[str]


@dataclass(frozen=True)
class GroupTable:
    """
    Results per group of test images.

    Attributes:
        columns: titles.
        rows: text of the cells of each group, most mistakes first.
        total: number of groups with at least two test images, those left out included.
        single: number of groups with one test image.
        unknown: number of test images without a group.
    """

    columns: list[str]
    rows: list[list[str]]
    total: int
    single: int
    unknown: int


def describe_expectation(labels: np.ndarray, final: np.ndarray, config: KGLConfig) -> Expectation:
    """
    Return in words how many of 1000 good and of 100 defective parts are decided wrongly, with Wilson's 95 % intervals.

    Without a class that is free of defects, it is how many of 100 parts of each class are recognised.

    Args:
        labels: of the test images, `(N,)`.
        final: probabilities of the final classifier, `(N, K)`.
        config: the final classifier's, whose operating point decides.
    """
    if config.defect_free_id is None:
        return Expectation([], _recognised_by_class(labels, final.argmax(axis=1), config))
    scores, defective = defect_scores(final, config.defect_free_id), labels != config.defect_free_id
    sentences = []
    if defective.all():
        sentences.append("No test image is good, so nothing is known about false alarms.")
    else:
        sentences.append(_describe_kind(scores[~defective], config, 1000, "good", "called defective"))
    if not defective.any():
        return Expectation([*sentences, "No test image is defective, so nothing is known about missed defects."], [])
    sentences.append(_describe_kind(scores[defective], config, 100, "defective", "missed"))
    of_classes = [index for index in range(config.num_labels) if index != config.defect_free_id]
    by_class = []
    for index in of_classes if len(of_classes) > 1 else []:
        missed = scores[labels == index] < config.good_below
        by_class.append(f"{config.id2label[index]}: {_share(missed, 100, 'missed')}.")
    return Expectation(sentences, by_class)


def _describe_kind(scores: np.ndarray, config: KGLConfig, parts: int, kind: str, error: str) -> str:
    """Return the sentence on the good or on the defective images, given their `P(defect)`."""
    wrong = scores >= config.threshold if kind == "good" else scores < config.good_below
    text = f"Of {parts} {kind} parts, expect {_share(wrong, parts, f'to be {error}')}"
    if config.look_again_threshold is not None:
        again = (scores >= config.look_again_threshold) & (scores < config.threshold)
        text += f", and {_share(again, parts, 'to be looked at again')}"
    return f"{text}."


def _recognised_by_class(labels: np.ndarray, predicted: np.ndarray, config: KGLConfig) -> list[str]:
    sentences = []
    for index in range(config.num_labels):
        of_class = predicted[labels == index] == index
        name = config.id2label[index]
        if len(of_class) == 0:
            sentences.append(f"{name}: no test image, so nothing is known.")
        else:
            sentences.append(f"{name}: {_share(of_class, 100, 'recognised')}.")
    return sentences


def _share(outcomes: np.ndarray, parts: int, what: str) -> str:
    """Return `about 12 WHAT (95 % interval 3 to 40; 3 of 250 test images)` for `(N,)` bool."""
    if len(outcomes) == 0:
        return f"nothing is known of those {what} (no test image)"
    low, high = wilson_interval(outcomes)
    counted = f"{int(outcomes.sum())} of {format_count(len(outcomes), 'test image')}"
    return (
        f"about {_parts(outcomes.mean() * parts)} {what} "
        f"(95 % interval {_parts(low * parts)} to {_parts(high * parts)}; {counted})"
    )


def _parts(number: float) -> str:
    """Return a number of parts, whole but for less than one."""
    return f"{number:.1g}" if 1e-9 < number < 0.95 else f"{number:.0f}"


def group_table(groups: Sequence[str], labels: np.ndarray, final: np.ndarray, config: KGLConfig) -> GroupTable | None:
    """
    Return the results of each group with at least two test images; None where there are fewer than two such groups.

    Args:
        groups: of the test images, such as parts; "" where it is unknown.
        labels: of the test images, `(N,)`.
        final: probabilities of the final classifier, `(N, K)`.
        config: the final classifier's, whose operating point decides.
    """
    names, group_of, counts = np.unique(np.asarray(groups, dtype=np.str_), return_inverse=True, return_counts=True)
    known = names != ""
    listed = np.flatnonzero(known & (counts >= 2))
    if len(listed) < 2:
        return None
    results = {index: _group_results(labels[group_of == index], final[group_of == index], config) for index in listed}
    # Among groups of as many mistakes, those with the larger share first.
    worst_first = sorted(listed, key=lambda index: (-results[index][1], counts[index], names[index]))
    return GroupTable(
        columns=["Group", *_group_columns(config)],
        rows=[[str(names[index]), *results[index][0]] for index in worst_first[:MAX_GROUPS]],
        total=len(listed),
        single=int((known & (counts == 1)).sum()),
        unknown=int(counts[~known].sum()),
    )


def _group_columns(config: KGLConfig) -> list[str]:
    if config.defect_free_id is None:
        return ["Images", "Wrong class", "Median probability of the true class"]
    look_again = [] if config.look_again_threshold is None else ["Look again"]
    return ["Images", "Defective", "False alarms", "Missed", *look_again, "Median P(defect)"]


def _group_results(labels: np.ndarray, final: np.ndarray, config: KGLConfig) -> tuple[list[str], int]:
    """Return the cells of [`_group_columns`] for the images of a group, and the number of its mistakes."""
    if config.defect_free_id is None:
        wrong = int((final.argmax(axis=1) != labels).sum())
        return [str(len(labels)), str(wrong), f"{np.median(final[np.arange(len(labels)), labels]):.3g}"], wrong
    scores, defective = defect_scores(final, config.defect_free_id), labels != config.defect_free_id
    counts = count_decisions(defective, scores, config.threshold, config.look_again_threshold)
    false_alarms, missed = counts["good"]["called_defective"], counts["defective"]["called_good"]
    cells = [len(labels), int(defective.sum()), false_alarms, missed]
    if config.look_again_threshold is not None:
        cells.append(counts["good"]["look_again"] + counts["defective"]["look_again"])
    return [*map(str, cells), f"{np.median(scores):.3g}"], false_alarms + missed


__all__ = ["MAX_GROUPS", "Expectation", "GroupTable", "describe_expectation", "group_table"]
