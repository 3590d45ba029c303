"""Which classifier to use, and how firm a threshold is, in words."""

import numpy as np
import pytest

from kgl.evaluation.advice import compare_classifiers, describe_loss, describe_threshold
from kgl.evaluation.calibration import apply_temperature, calibrate, choose_operating_point
from kgl.evaluation.metrics import DefectClassification


def report_with(difference, interval, validation=(None, None), fine_tune=False, name="ap"):
    """The parts of `metrics.json` that decide; the primary's AP is .88."""
    of_validation = [None if value is None else {"images": 12, name: value} for value in validation]
    return {
        "results": {"primary": {"ap": 0.5, name: 0.88}, "final": {"ap": 0.5, name: 0.88 + difference}},
        "differences": {name: {"difference": difference, "interval": interval}},
        "validation": dict(zip(("primary", "final"), of_validation, strict=True)),
        "images": {"test": 33},
        "settings": {"model": {"fine_tune": fine_tune}},
    }


LOSS = (
    "The final classifier ranks the 33 test images worse than the primary one: AP 0.754 against 0.880 (difference "
    "-0.126, 95 % interval -0.250 to {high}). "
)
CLEAR, CHANCE = [-0.25, -0.01], [-0.25, 0.02]
PRIMARY = "use primary/, which has no heat map, or try --fine_tune true, which pays on some sets."
DECIDE = "The 12 validation images, which should decide, "
COMPARE = "ompare both on more labelled images before you choose."


@pytest.mark.parametrize(
    ("interval", "validation", "advice"),
    [
        (CLEAR, (0.9, 0.8), DECIDE + "rank it worse too (0.800 against 0.900): " + PRIMARY),
        (CHANCE, (0.9, 0.8), DECIDE + "rank it worse too (0.800 against 0.900): " + PRIMARY),
        (CLEAR, (0.8, 0.9), DECIDE + "do not (0.900 against 0.800): c" + COMPARE),
        (CHANCE, (0.8, 0.8), DECIDE + "do not (0.800 against 0.800): keep final/."),
        (CLEAR, (None, None), "U" + PRIMARY[1:]),
        (CHANCE, (None, None), "C" + COMPARE),
    ],
)
def test_validation_images_decide_where_the_final_classifier_is_worse(interval, validation, advice):
    high = "-0.010" if interval is CLEAR else "+0.020: it may be chance"
    assert compare_classifiers(report_with(-0.126, interval, validation)) == LOSS.format(high=high) + advice


def test_nothing_is_said_of_a_final_classifier_that_is_level_or_better():
    assert compare_classifiers(report_with(0.1, [0.05, 0.15])) is None
    assert compare_classifiers(report_with(-0.009, [-0.012, -0.001])) is None
    assert compare_classifiers(report_with(float("nan"), [float("nan")] * 2)) is None
    assert describe_loss(report_with(0.1, [0.05, 0.15])) is None


def test_defects_against_good_images_count_with_several_classes():
    said = compare_classifiers(report_with(-0.126, CHANCE, (0.9, 0.8), name="defect_ap"))
    assert "AP, defective against good 0.754 against 0.880" in said and "(0.800 against 0.900)" in said
    assert describe_loss(report_with(-0.126, CHANCE)) == LOSS.format(high="+0.020: it may be chance")[:-1]


def test_fine_tuning_is_not_advised_twice():
    said = compare_classifiers(report_with(-0.126, CLEAR, fine_tune=True))
    assert said.endswith(" Use primary/, which has no heat map.")


def test_average_precisions_of_the_validation_images():
    probabilities = np.random.default_rng(0).dirichlet([1, 1, 1], 30)
    labels = np.arange(30) % 3
    calibration = calibrate(probabilities, labels, 0)
    metric = DefectClassification(keep_in_memory=True)
    calibrated = apply_temperature(probabilities, calibration["temperature"])
    expected = metric.compute(predictions=calibrated, references=labels, defect_free_id=0)
    assert calibration["defect_ap"] == expected["defect_ap"] and calibration["ap"] == expected["ap"]
    assert "ap" not in calibrate(probabilities[:, :2], np.zeros(30, dtype=int), 0)


def point_of(defective, good, **rule):
    """The operating point of scores of defective and of good images."""
    scores = np.array([*defective, *good])
    return choose_operating_point(scores, np.arange(len(scores)) < len(defective), **rule)


def test_threshold_that_rests_on_few_defective_images():
    said = describe_threshold(point_of([0.4, 0.5, 0.8, 0.9], [0.1, 0.2, 0.45, 0.6]), "runs/boards")
    assert said == (
        "The threshold rests on only 4 defective validation images: a threshold from so few finds 4 of 5 further "
        "defects on average, and this one calls 50 % of the 4 good validation images defective. What helps: more "
        "defective validation images (label more, or --validation_share); `kgl threshold runs/boards --wanted_recall "
        "0.75`, for fewer false alarms and more missed defects, without training."
    )
    said = describe_threshold(point_of([0.9], [0.1]), "RUN")
    assert "only 1 defective validation image: a threshold from so few finds 1 of 2 further defects on average" in said
    assert "kgl threshold" not in said  # there is no false alarm to lose


def test_threshold_that_alarms_often():
    defective = [0.3, *[0.9] * 29]
    said = describe_threshold(point_of(defective, [0.4] * 4 + [0.1] * 6), "RUN")
    assert said == (
        "The threshold rests on 30 defective validation images: it calls 40 % of the 10 good validation images "
        "defective. What helps: `kgl threshold RUN --wanted_recall 0.96`, for fewer false alarms and more missed "
        "defects, without training."
    )
    said = describe_threshold(point_of(defective, [0.4] * 4), "RUN")
    assert "calls all 4 good validation images defective, so it does not sort" in said
    assert describe_threshold(point_of(defective, [0.4] + [0.1] * 9), "RUN") is None


@pytest.mark.parametrize("count", range(2, 60))
@pytest.mark.parametrize("recall", [1.0, 0.9, 0.5])
def test_suggested_recall_gives_another_threshold(count, recall):
    scores = np.linspace(0.5, 0.9, count)
    good = np.linspace(0.51, 0.89, 37)
    point = point_of(scores, good, wanted_recall=recall)
    said = describe_threshold(point, "RUN")
    if said is None or "--wanted_recall" not in said:
        assert point["false_alarm_rate"] <= 0.2 or point["recall"] * count < 1.5
        return
    wanted = float(said.partition("--wanted_recall ")[2].partition("`")[0])
    other = point_of(scores, good, wanted_recall=wanted)
    assert other["threshold"] > point["threshold"] and other["recall"] < point["recall"]
