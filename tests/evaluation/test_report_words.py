"""What to expect of a classifier, in words, and its results per group."""

import numpy as np
from tiny import tiny_model

from kgl.evaluation.report_words import MAX_GROUPS, describe_expectation, group_table


def config_with(point=None, names=("good", "scratch", "pit"), **others):
    return tiny_model(id2label=dict(enumerate(names)), operating_point=point, **others).config


def probabilities_of(scores, classes=3):
    """Probabilities `(N, classes)` with P(defect) in the second class."""
    scores = np.asarray(scores, dtype=float)
    rest = np.zeros((len(scores), classes - 2))
    return np.column_stack([1 - scores, scores, rest])


def test_errors_per_thousand_good_and_per_hundred_defective_parts():
    labels = np.array([0] * 250 + [1] * 40 + [2] * 10)
    scores = np.array([0.9] * 3 + [0.1] * 247 + [0.1] * 2 + [0.9] * 38 + [0.9] * 10)
    expectation = describe_expectation(labels, probabilities_of(scores), config_with({"threshold": 0.5}))
    assert expectation.sentences == [
        "Of 1000 good parts, expect about 12 to be called defective (95 % interval 4 to 35; 3 of 250 test images).",
        "Of 100 defective parts, expect about 4 to be missed (95 % interval 1 to 13; 2 of 50 test images).",
    ]
    assert expectation.by_class == [
        "scratch: about 5 missed (95 % interval 1 to 17; 2 of 40 test images).",
        "pit: about 0 missed (95 % interval 0 to 28; 0 of 10 test images).",
    ]


def test_rates_below_one_part_are_not_rounded_to_none():
    labels = np.array([0, *[1] * 400])
    scores = np.array([0.1, 0.1, *[0.9] * 399])
    config = config_with(names=("good", "scratch"))
    sentences = describe_expectation(labels, probabilities_of(scores, 2), config).sentences
    assert "expect about 0.2 to be missed (95 % interval 0.04 to 1; 1 of 400 test images)." in sentences[1]
    assert "about 0 to be called defective (95 % interval 0 to 793; 0 of 1 test image)." in sentences[0]


def test_images_to_look_at_again_are_neither_missed_nor_false_alarms():
    labels = np.array([0] * 20 + [1] * 20)
    scores = np.array([0.9, 0.4, 0.4, *[0.1] * 17, 0.1, 0.4, *[0.9] * 18])
    config = config_with({"threshold": 0.5, "look_again_threshold": 0.3}, ("good", "scratch"))
    good, defective = describe_expectation(labels, probabilities_of(scores, 2), config).sentences
    assert "about 50 to be called defective" in good and "and about 100 to be looked at again" in good
    assert "2 of 20 test images" in good
    assert "about 5 to be missed" in defective and "and about 5 to be looked at again" in defective


def test_one_kind_of_test_images():
    config = config_with(names=("good", "scratch"))
    good = describe_expectation(np.zeros(4, dtype=int), probabilities_of([0.1] * 4, 2), config)
    assert good.sentences[1] == "No test image is defective, so nothing is known about missed defects."
    defective = describe_expectation(np.ones(4, dtype=int), probabilities_of([0.9] * 4, 2), config)
    assert defective.sentences[0] == "No test image is good, so nothing is known about false alarms."
    assert "about 0 to be missed" in defective.sentences[1]
    classes = describe_expectation(np.array([0, 1, 1]), probabilities_of([0.1, 0.9, 0.9]), config_with())
    assert "pit: nothing is known of those missed (no test image)." in classes.by_class


def test_no_defect_free_class_recall_per_class():
    config = config_with(names=("scratch", "pit", "dent"), defect_free_label=None)
    probabilities = np.eye(3)[[0, 0, 0, 1, 1]]
    expectation = describe_expectation(np.array([0, 0, 0, 0, 1]), probabilities, config)
    assert expectation.sentences == []
    assert expectation.by_class == [
        "scratch: about 75 recognised (95 % interval 30 to 95; 3 of 4 test images).",
        "pit: about 100 recognised (95 % interval 21 to 100; 1 of 1 test image).",
        "dent: no test image, so nothing is known.",
    ]


def test_results_of_groups_worst_first():
    groups = ["b", "b", "b", "a", "a", "c", "c", "d", "", ""]
    labels = np.array([0, 0, 1, 0, 1, 0, 1, 0, 0, 1])
    scores = [0.9, 0.2, 0.1, 0.1, 0.9, 0.4, 0.4, 0.9, 0.9, 0.1]
    table = group_table(groups, labels, probabilities_of(scores), config_with({"threshold": 0.5}))
    assert table.columns == ["Group", "Images", "Defective", "False alarms", "Missed", "Median P(defect)"]
    assert table.rows == [
        ["b", "3", "1", "1", "1", "0.2"],
        ["c", "2", "1", "0", "1", "0.4"],
        ["a", "2", "1", "0", "0", "0.5"],
    ]
    assert (table.total, table.single, table.unknown) == (3, 1, 2)
    band = config_with({"threshold": 0.5, "look_again_threshold": 0.3})
    table = group_table(groups, labels, probabilities_of(scores), band)
    assert table.columns[-2] == "Look again" and ["c", "2", "1", "0", "0", "2", "0.4"] in table.rows


def test_groups_of_classes_without_a_good_one():
    config = config_with(defect_free_label=None)
    probabilities = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.1, 0.1, 0.8], [0.3, 0.3, 0.4]])
    table = group_table(["x", "x", "y", "y"], np.array([0, 1, 0, 2]), probabilities, config)
    assert table.rows == [["y", "2", "1", "0.25"], ["x", "2", "0", "0.75"]]


def test_fewer_than_two_groups_are_no_table():
    labels, probabilities = np.zeros(4, dtype=int), probabilities_of([0.1] * 4)
    assert group_table([""] * 4, labels, probabilities, config_with()) is None
    assert group_table(["a", "a", "b", ""], labels, probabilities, config_with()) is None


def test_most_groups_with_fewest_mistakes_are_left_out():
    count = MAX_GROUPS + 10
    groups = [f"{index // 2:03}" for index in range(2 * count)]
    scores = [0.9 if index >= 2 * (count - 5) else 0.1 for index in range(2 * count)]
    table = group_table(groups, np.zeros(2 * count, dtype=int), probabilities_of(scores), config_with())
    assert len(table.rows) == MAX_GROUPS and table.total == count
    assert [row[0] for row in table.rows[:6]] == ["055", "056", "057", "058", "059", "000"]
