"""The ranked list of suspicious labels, from probabilities, near-duplicates and masks made by hand."""

import dataclasses
import time

import numpy as np
import pytest

from kgl.labelling.audit import CLASSIFIER, DUPLICATES, MASK, MAX_VOTE, Labels, rank_suspects, vote_weight
from kgl.labelling.audit_page import nearest_of_class


SURE = [[0.9, 0.05, 0.05], [0.05, 0.9, 0.05], [0.05, 0.05, 0.9]]


def audited(labels, near_duplicates=None, digests=None, masks=None):
    labels = np.asarray(labels)
    count = len(labels)
    return Labels(
        labels,
        ["good", "dent", "pit"],
        0,
        digests or [str(row) for row in range(count)],
        np.arange(count) if near_duplicates is None else np.asarray(near_duplicates),
        masks or [None] * count,
    )


def agreeing(labels):
    return np.asarray([SURE[label] for label in labels])


def test_labels_that_nothing_contradicts_are_not_listed():
    labels = [0, 0, 1, 1, 2, 2]
    assert rank_suspects(audited(labels), agreeing(labels)) == []


def test_label_that_the_classifier_contradicts():
    labels, probabilities = [0, 0, 0, 1, 1, 2], agreeing([0, 0, 1, 1, 1, 2])
    (suspect,) = rank_suspects(audited(labels), probabilities)
    assert (suspect.row, suspect.suggested, suspect.kinds) == (2, 1, [CLASSIFIER])
    assert suspect.trust == pytest.approx(0.05 / 0.95)
    assert suspect.reasons == ["classifier: dent 0.90, good 0.05"]


def test_minority_of_near_duplicates_is_listed():
    labels = [1, 0, 0, 0, 0, 1, 1, 0, 2, 2, 2]
    near = [7, 7, 7, 7, 4, 5, 9, 9, 8, 8, 8]
    found = rank_suspects(audited(labels, near), agreeing(labels))
    assert sorted(one.row for one in found) == [0, 6, 7]  # one of four, and both of a pair
    assert found[0].row == 0 and found[0].suggested == 0 and found[0].kinds == [DUPLICATES]
    assert found[0].reasons == ["near-duplicates are 3 good, 1 dent"]
    vote = vote_weight(audited(labels, near))
    odds = 0.9 / 0.05 / vote**3  # of the classifier, against three votes
    assert found[0].trust == pytest.approx(odds / (1 + odds))


def test_thousands_of_blank_images_are_audited_in_seconds():
    count = 20_000
    labels = np.arange(count) % 2
    started = time.process_time()
    found = rank_suspects(audited(labels, [0] * count, ["the same"] * count), agreeing(labels))
    assert time.process_time() - started < 10
    assert len(found) == count and found[0].reasons == ["identical files are 10000 good, 10000 dent"]


def test_votes_of_near_duplicates_overrule_the_classifier():
    """The classifier calls an exposure of a dent good; the labels of the others, and all near-duplicates, agree."""
    labels, near = [1, 1, 1, 0, 0, 0, 0, 1], [1, 1, 1, 2, 2, 2, 3, 4]
    probabilities = agreeing([0, 1, 1, 0, 0, 0, 0, 0])
    found = rank_suspects(audited(labels, near), probabilities)
    assert vote_weight(audited(labels, near)) == MAX_VOTE
    assert [one.row for one in found] == [7, 0]
    odds = 0.05 / 0.9 * MAX_VOTE**2
    assert found[0].trust == pytest.approx(0.05 / 0.95) and found[1].trust == pytest.approx(odds / (1 + odds))
    alone = rank_suspects(audited(labels), probabilities)
    assert [one.row for one in alone] == [0, 7] and alone[0].trust == alone[1].trust


def test_weight_of_votes_follows_the_agreement_of_near_duplicates():
    assert vote_weight(audited([0, 1, 0, 1])) == 1  # no near-duplicates
    assert vote_weight(audited([0, 1, 0, 1], [0, 0, 1, 1])) == 1  # less than by chance
    assert vote_weight(audited([0, 0, 1, 1], [0, 0, 1, 1])) == MAX_VOTE
    # Agreement 4 / 6, by chance 1 / 2: kappa 1 / 3.
    assert vote_weight(audited([0, 0, 1, 1, 0, 1], [0, 0, 1, 1, 2, 2])) == pytest.approx(1.5)


def test_identical_files_leave_no_trust():
    labels = [1, 0, 0, 0]
    found = rank_suspects(audited(labels, [1, 1, 1, 2], ["a", "a", "a", "b"]), agreeing(labels))
    assert [(one.row, one.trust, one.reasons) for one in found] == [(0, 0.0, ["identical files are 2 good, 1 dent"])]


def test_masks_that_contradict_labels():
    labels = [0, 1, 1, 2, 0]
    masks = [True, False, True, None, False]
    found = rank_suspects(audited(labels, masks=masks), np.asarray([[0.9, 0.02, 0.08], *agreeing(labels[1:])]))
    assert [(one.row, one.suggested, one.kinds) for one in found] == [(0, 2, [MASK]), (1, 0, [MASK])]
    assert "marks a defect" in found[0].reasons[0] and "is empty" in found[1].reasons[0]
    without = dataclasses.replace(audited(labels, masks=masks), defect_free_id=None)
    assert rank_suspects(without, agreeing(labels)) == []


def test_several_reasons_make_one_row_with_less_trust():
    labels, near = [0, 0, 0, 1, 1, 1, 1, 0, 0], [1, 1, 3, 3, 3, 4, 4, 5, 5]
    found = rank_suspects(audited(labels, near), agreeing([0, 0, 1, 1, 1, 1, 1, 0, 0]))
    (suspect,) = found
    assert suspect.row == 2 and suspect.kinds == [CLASSIFIER, DUPLICATES]
    odds = 0.05 / 0.9 / vote_weight(audited(labels, near)) ** 2
    assert suspect.trust == pytest.approx(odds / (1 + odds)) and suspect.trust < 0.05 / 0.95


def test_row_without_a_prediction_is_listed_for_its_mask():
    labels = [1, 1, 0, 0]
    probabilities = agreeing(labels)
    probabilities[0] = np.nan
    found = rank_suspects(audited(labels, masks=[False, None, None, None]), probabilities)
    assert [one.row for one in found] == [0]


def test_nearest_of_a_class_leave_the_image_out():
    features, labels = np.array([[0.0], [1.0], [2.0], [0.5], [9.0]]), np.array([0, 0, 0, 1, 1])
    assert nearest_of_class(features, labels, 1, 0).tolist() == [0, 2]
    assert nearest_of_class(features, labels, 1, 1).tolist() == [3, 4]
