"""Which classifier to use, and how firm a threshold is, in words."""

import shlex
from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from kgl.evaluation.advice import compare_classifiers, describe_loss, describe_threshold
from kgl.evaluation.calibration import apply_temperature, calibrate, choose_operating_point
from kgl.evaluation.metrics import DefectClassification
from kgl.evaluation.validation_scores import MIN_GROUPS, ValidationScores, difference_interval


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
PRIMARY = "se primary/, which has no heat map, or try --fine_tune true, which pays on some sets."
COMPARE = "compare both on more labelled images before you choose."
KEEP = "eep final/, unless it ranks more labelled images worse too."
NO_WORSE = "The 12 validation images rank final no worse: "
TOO_FEW = "The 12 validation images are of too few independent groups to tell (AP of final 0.800, of primary 0.900): k"


def validation_scores(count, worse, groups=None):
    """Scores of as many good and defective images; the final classifier's are drawn at random if it is `worse`."""
    defective = np.arange(2 * count) < count
    sure = np.where(defective, 0.9, 0.1) + np.linspace(0, 0.01, 2 * count)
    random = np.random.default_rng(0).random(2 * count)
    return ValidationScores(defective, sure, random if worse else sure, groups)


@pytest.mark.parametrize(
    ("interval", "validation", "advice"),
    [
        (CLEAR, (0.9, 0.8), TOO_FEW + KEEP),
        (CHANCE, (0.9, 0.8), TOO_FEW + KEEP),
        (CLEAR, (0.8, 0.9), NO_WORSE + "AP 0.900, primary 0.800; " + COMPARE),
        (CHANCE, (0.8, 0.8), NO_WORSE + "AP 0.800, primary 0.800; keep final/."),
        (CLEAR, (None, None), "U" + PRIMARY),
        (CHANCE, (None, None), "K" + KEEP),
    ],
)
def test_few_validation_images_advise_no_change(interval, validation, advice):
    high = "-0.010" if interval is CLEAR else "+0.020: it may be chance"
    report = report_with(-0.126, interval, validation)
    assert compare_classifiers(report, validation_scores(4, worse=True)) == LOSS.format(high=high) + advice


def test_figures_alone_are_given_where_scores_are_not_stored():
    report = report_with(-0.126, CLEAR, (0.9, 0.8))
    report["validation"]["final"]["images"] = 400
    said = compare_classifiers(report, None)
    assert said.endswith("The 400 validation images give AP of final 0.800, of primary 0.900: k" + KEEP)


def test_only_a_clear_difference_on_validation_images_advises_the_primary_classifier():
    report = report_with(-0.126, CHANCE, (0.9, 0.8))
    said = compare_classifiers(report, validation_scores(40, worse=True))
    assert (
        said.endswith("): u" + PRIMARY)
        and "rank final worse too (AP of final 0.800, of primary 0.900, 95 % interval" in said
    )
    said = compare_classifiers(report, validation_scores(40, worse=False))  # alike, so the interval reaches 0
    assert said.endswith("95 % interval of the difference +0.000 to +0.000): k" + KEEP)


def test_near_duplicates_make_no_interval():
    assert difference_interval(validation_scores(MIN_GROUPS, worse=True))[1] < 0
    assert difference_interval(validation_scores(MIN_GROUPS - 1, worse=True)) is None
    groups = np.repeat(np.arange(16).astype(str), 5)  # 8 of good, 8 of defective images
    assert difference_interval(validation_scores(40, worse=True, groups=groups)) is None


def repeated(scores, times):
    """The same scores, each image as often and as a group of its own."""
    rows = np.repeat(np.arange(len(scores.defective)), times)
    columns = (scores.defective[rows], scores.primary[rows], scores.final[rows])
    return ValidationScores(*columns, np.array([f"part {row:03}" for row in rows]))


def test_interval_of_a_difference_draws_whole_groups():
    grouped = repeated(validation_scores(20, worse=True), 4)
    single = replace(grouped, groups=None)
    assert np.ptp(difference_interval(grouped)) > 1.5 * np.ptp(difference_interval(single))  # by about 2, root of 4
    assert difference_interval(grouped) == pytest.approx(difference_interval(validation_scores(20, worse=True)))


def test_interval_of_a_difference_is_that_of_drawn_images():
    scores = validation_scores(15, worse=True)
    scores = replace(scores, primary=scores.primary.round(2), final=scores.final.round(1))  # with ties
    generator, differences = np.random.default_rng(0), []
    for _ in range(300):
        drawn = np.concatenate([generator.integers(0, 15, 15), 15 + generator.integers(0, 15, 15)])
        truth = scores.defective[drawn]
        primary, final = (average_precision_score(truth, one[drawn]) for one in (scores.primary, scores.final))
        differences.append(final - primary)
    assert difference_interval(scores) == pytest.approx(np.quantile(differences, (0.025, 0.975)))


def test_decisions_of_both_classifiers_stand_beside_the_advice():
    report = report_with(-0.126, CHANCE, (0.9, 0.8))
    for model, found, alarms in (("primary", 10, 19), ("final", 9, 13)):
        report["results"][model]["decisions_at_operating_point"] = {
            "good": {"called_good": 20 - alarms, "called_defective": alarms},
            "defective": {"called_good": 10 - found, "called_defective": found},
        }
    assert (
        "). Each at its own threshold, primary/ finds 10 of 10 defects and calls 19 of 20 good images defective; "
        "final/ finds 9 of 10 defects and calls 13 of 20 good images defective. The 12"
    ) in compare_classifiers(report, None).replace("chance). ", "). ")


def test_nothing_is_said_of_a_final_classifier_that_is_level_or_better():
    assert compare_classifiers(report_with(0.1, [0.05, 0.15]), None) is None
    assert compare_classifiers(report_with(-0.009, [-0.012, -0.001]), None) is None
    assert compare_classifiers(report_with(float("nan"), [float("nan")] * 2), None) is None
    assert describe_loss(report_with(0.1, [0.05, 0.15])) is None


def test_defects_against_good_images_count_with_several_classes():
    said = compare_classifiers(report_with(-0.126, CHANCE, (0.9, 0.8), name="defect_ap"), None)
    assert "AP, defective against good 0.754 against 0.880" in said and "AP of final 0.800, of primary 0.900:" in said
    assert describe_loss(report_with(-0.126, CHANCE)) == LOSS.format(high="+0.020: it may be chance")[:-1]


def test_fine_tuning_is_not_advised_twice():
    said = compare_classifiers(report_with(-0.126, CLEAR, fine_tune=True), None)
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


def described(defective, good, run="RUN", groups=None, **rule):
    """What is said of the threshold chosen on scores of defective and of good images, given their groups."""
    scores = np.array([*defective, *good])
    of_defects = np.arange(len(scores)) < len(defective)
    point = choose_operating_point(scores, of_defects, **rule)
    return describe_threshold(point, run, ValidationScores(of_defects, scores, scores, groups))


FEW = "The threshold rests on only 4 defective validation images: a threshold from so few finds {found} of 5 further "


def test_threshold_that_rests_on_few_defective_images():
    assert described([0.4, 0.5, 0.8, 0.9], [0.1, 0.2, 0.45, 0.6], "runs/boards") == (
        f"{FEW.format(found=4)}defects on average, and this one calls 50 % of the 4 good validation images defective. "
        "What helps: more defective validation images (label more, or --validation_share); `kgl threshold runs/boards "
        "--wanted_recall 0.75 --look_again_recall 1`, without training: on the validation images false alarms fall "
        "from 50 % to 25 % and defects found from 100 % to 75 %; 25 % of the good and 25 % of the defective ones are "
        "to be looked at again, and none is missed."
    )
    said = described([0.9], [0.1])
    assert "only 1 defective validation image: a threshold from so few finds 1 of 2 further defects on average" in said
    assert "kgl threshold" not in said  # there is no false alarm to lose


def test_no_lower_recall_without_fewer_false_alarms():
    assert "kgl threshold" not in described([0.4, 0.5, 0.8, 0.9], [0.1, 0.2, 0.6, 0.7])
    assert "kgl threshold" not in described([0.4, 0.5, 0.8, 0.9], [0.1, 0.2, 0.6, 0.6])
    for lost, suggested in ((2, True), (3, False)):  # defects of 12 until a false alarm is lost too; .8 is the floor
        said = described([*[0.4] * lost, *[0.9] * (12 - lost)], [0.1, 0.5])
        assert ("--wanted_recall 0.83 --look_again_recall 1`" in said) == ("kgl threshold" in said) == suggested
    point = choose_operating_point(np.array([0.4, 0.9, 0.5]), np.array([True, True, False]))
    assert "kgl threshold" not in describe_threshold(point, "RUN", None)  # the scores are not stored


def test_no_lower_recall_for_a_fall_of_less_than_a_hundredth():
    defective = [0.4, *[0.9] * 9]
    for fewer_alarms, suggested in ((1, False), (19, False), (20, True)):
        said = described(defective, [0.5] * fewer_alarms + [0.95] * (100 - fewer_alarms) + [0.1] * 1900)
        assert ("kgl threshold" in said) == suggested
    assert "fall from 5 % to 4 %" in described(defective, [0.5] * 2 + [0.95] * 7 + [0.1] * 191)  # of 4.5 and 3.5 %


def test_equal_recalls_are_tried_once(monkeypatch):
    tried = []

    def choose(scores, defective, wanted_recall, *rule):
        tried.append(wanted_recall)
        return choose_operating_point(scores, defective, wanted_recall, *rule)

    monkeypatch.setattr("kgl.evaluation.advice.choose_operating_point", choose)
    described([0.8] * 400, [0.9] * 10)
    assert tried == [round(1 - hundredth / 100, 2) for hundredth in range(1, 21)]


def test_run_with_a_space_is_quoted():
    said = described([0.4, 0.5, 0.8, 0.9], [0.1, 0.2, 0.45, 0.6], run="my runs/boards")
    command = shlex.split(said.split("`")[1])
    assert command[:3] == ["kgl", "threshold", "my runs/boards"]


def test_no_lower_recall_after_a_rule_that_the_user_chose():
    defective, good = [0.4, 0.5, 0.8, 0.9], [0.1, 0.2, 0.45, 0.6]
    for rule in ({"wanted_recall": 0.75}, {"wanted_recall": 0.75, "look_again_recall": 1.0}, {"miss_cost": 100.0}):
        assert "What helps: more defective validation images (label more, or --validation_share)." in described(
            defective, good, **rule
        )


def test_defects_to_be_looked_at_again_are_counted():
    said = described([0.4, 0.5, 0.8, 0.9], [0.1, 0.2, 0.45, 0.6], wanted_recall=0.75, look_again_recall=1.0)
    assert said.startswith(f"{FEW.format(found=3)}defects on average (4 with those to be looked at again), and")


@pytest.mark.parametrize(
    ("groups", "start"),
    [
        ("aaaabcde", "4 defective validation images, near-duplicates of each other or of one group: a threshold from "
         "so few finds 1 of 2 further defects"),
        ("aabbcdef", "4 defective validation images of 2 independent groups: a threshold from so few finds 2 of 3 "
         "further defects"),
        ("abcdeeee", "4 defective validation images: a threshold from so few finds 4 of 5 further defects"),
    ],
)  # fmt: skip
def test_near_duplicates_count_as_one_defect(groups, start):
    said = described([0.4, 0.5, 0.8, 0.9], [0.1, 0.2, 0.45, 0.6], groups=np.array(list(groups)))
    assert said.startswith(f"The threshold rests on only {start}")


def test_groups_found_in_part_are_not_found():
    said = described([0.4, 0.8, 0.85, 0.9], [0.1, 0.45], groups=np.array(list("aabbcd")), wanted_recall=0.75)
    assert "of 2 independent groups: a threshold from so few finds 1 of 3" in said
    many = described(np.linspace(0.5, 0.9, 24), [0.1] * 9, groups=np.array([*np.repeat(list("abc"), 8), *"defghijkl"]))
    assert "only 24 defective validation images of 3 independent groups: a threshold from so few finds 3 of 4" in many


def test_threshold_that_alarms_often():
    defective = [0.3, *[0.9] * 29]
    assert described(defective, [0.4] * 4 + [0.1] * 6) == (
        "The threshold rests on 30 defective validation images: it calls 40 % of the 10 good validation images "
        "defective. What helps: `kgl threshold RUN --wanted_recall 0.96 --look_again_recall 1`, without training: on "
        "the validation images false alarms fall from 40 % to 0 % and defects found from 100 % to 97 %; 40 % of the "
        "good and 3 % of the defective ones are to be looked at again, and none is missed."
    )
    assert "calls all 4 good validation images defective, so it does not sort" in described(defective, [0.4] * 4)
    assert described(defective, [0.4] + [0.1] * 9) is None


@pytest.mark.parametrize("count", range(1, 60))
def test_suggested_recall_loses_false_alarms_and_few_defects(count):
    scores, good = np.linspace(0.5, 0.9, count), np.linspace(0.51, 0.89, 37)
    said = described(scores, good)
    wanted = said.partition("--wanted_recall ")[2].partition(" ")[0]
    assert bool(wanted) == (count > 1)
    if wanted:
        both = np.array([*scores, *good])
        rule = (float(wanted), None, 1.0)
        before, after = (
            choose_operating_point(both, np.arange(len(both)) < count, *one) for one in ((1.0, None, None), rule)
        )
        assert after["false_alarm_rate"] < before["false_alarm_rate"] and after["look_again_recall"] == 1
        assert after["recall"] >= 0.8 or round((1 - after["recall"]) * count) == 1
