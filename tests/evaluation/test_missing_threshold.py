"""What a run without a decision threshold says."""

import pytest

from kgl.evaluation.advice import describe_decisions_at_half, missing_threshold


@pytest.mark.parametrize(
    ("label", "validation", "sentence"),
    [
        (None, {"operating_point": None}, "If one is, train again with --defect_free_label and another"),
        ("good", None, "there are no validation images. Train again with --validation_share above 0"),
        ("good", {"operating_point": None}, "the validation images are all good or all defective. Give more images"),
    ],
)
def test_missing_threshold_is_named_with_its_remedy(label, validation, sentence):
    report = {"validation": {"final": validation}, "settings": {"data": {"defect_free_label": label}}}
    said = missing_threshold(report)
    assert said.startswith("No threshold was chosen") and sentence in said and "another --output_dir" in said


def test_chosen_threshold_needs_no_sentence():
    report = {"validation": {"final": {"operating_point": {"threshold": 0.3}}}}
    assert missing_threshold(report) is None


def test_defects_missed_at_one_half_are_counted():
    counts = {
        "good": {"called_good": 18, "called_defective": 2},
        "defective": {"called_good": 3, "called_defective": 7},
    }
    report = {"results": {"final": {"decisions_at_half": counts}}, "images": {"test": 30}}
    assert describe_decisions_at_half(report) == (
        "At P(defect) 0.5 the final classifier misses 3 of 10 defects in 30 held-out test images and calls 2 of 20 "
        "good ones defective."
    )
    assert describe_decisions_at_half({"results": {"final": {"decisions_at_operating_point": counts}}}) is None
