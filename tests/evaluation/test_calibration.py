"""The decision threshold and the temperature, by hand and against every alternative."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from tiny import make_images, tiny_model
from transformers import AutoConfig

from kgl.cli.train import parse
from kgl.data.images import to_pixel_values
from kgl.data.loading import load_defect_dataset
from kgl.errors import InputError
from kgl.evaluation.calibration import (
    apply_temperature,
    calibrate,
    choose_operating_point,
    choose_saliency_threshold,
    fit_temperature,
)
from kgl.evaluation.metrics import decision_rates, expected_calibration_error
from kgl.modeling_kgl import KGLForImageClassification
from kgl.train import run
from kgl.training.arguments import OperatingArguments
from kgl.training.model_init import load_classifier


SCORES = np.array([0.9, 0.8, 0.7, 0.6, 0.3, 0.2, 0.1])
DEFECTIVE = np.array([True, True, False, True, False, True, False])


@pytest.mark.parametrize(
    ("settings", "threshold", "recall", "alarms"),
    [
        ({}, 0.15, 1.0, 2 / 3),
        ({"wanted_recall": 0.75}, 0.45, 0.75, 1 / 3),
        ({"wanted_recall": 0.5}, 0.75, 0.5, 0.0),
        ({"wanted_recall": 0.01}, 0.85, 0.25, 0.0),
        ({"miss_cost": 0.1}, 0.75, 0.5, 0.0),  # two misses cost less than a false alarm
        ({"miss_cost": 1.5}, 0.15, 1.0, 2 / 3),
        ({"miss_cost": 10}, 0.15, 1.0, 2 / 3),
        ({"miss_cost": 0.001, "worst_first": True}, 0.95, 0.0, 0.0),  # calling nothing defective costs least
    ],
)
def test_threshold_is_chosen_by_recall_or_cost(settings, threshold, recall, alarms):
    order = np.random.default_rng(0).permutation(7)
    scores, defective = SCORES[order], DEFECTIVE[order]
    if settings.pop("worst_first", False):
        scores, defective = np.append(scores, 0.9), np.append(defective, False)
    point = choose_operating_point(scores, defective, **settings)
    if len(scores) > 7:
        assert point["threshold"] > 0.9 and (point["recall"], point["false_alarm_rate"]) == (0, 0)
        return
    assert point["threshold"] == pytest.approx(threshold)
    assert (point["recall"], point["false_alarm_rate"]) == pytest.approx((recall, alarms))
    assert (point["defective"], point["good"]) == (4, 3)
    rates = decision_rates(DEFECTIVE, SCORES, point["threshold"])
    assert rates["recall_at_operating_point"] == pytest.approx(recall)
    assert rates["false_alarm_rate_at_operating_point"] == pytest.approx(alarms)


def test_look_again_band_lies_below_the_threshold():
    point = choose_operating_point(SCORES, DEFECTIVE, wanted_recall=0.5, look_again_recall=0.75)
    assert (point["threshold"], point["look_again_threshold"]) == pytest.approx((0.75, 0.45))
    assert (point["look_again_recall"], point["look_again_false_alarm_rate"]) == pytest.approx((0.75, 1 / 3))
    assert point["look_again_chosen"] == "highest threshold that finds at least 75 % of the validation defects"
    without = {name: value for name, value in point.items() if not name.startswith("look_again")}
    assert without == choose_operating_point(SCORES, DEFECTIVE, wanted_recall=0.5)
    cheap = choose_operating_point(SCORES, DEFECTIVE, miss_cost=0.1, look_again_recall=1)
    assert (cheap["threshold"], cheap["look_again_threshold"]) == pytest.approx((0.75, 0.15))
    same = choose_operating_point(SCORES, DEFECTIVE, wanted_recall=0.8, look_again_recall=0.9)  # both find all four
    assert "look_again_threshold" not in same and "look_again_chosen" in same


@pytest.mark.parametrize("seed", range(10))
def test_no_threshold_is_better_than_the_chosen_one(seed):
    generator = np.random.default_rng(seed)
    scores, defective = generator.integers(0, 9, 50) / 8, np.r_[True, False, generator.random(48) < 0.4]
    point = choose_operating_point(scores, defective, wanted_recall=0.9)
    cheap = choose_operating_point(scores, defective, miss_cost=3)
    paid = 3 * (1 - cheap["recall"]) * defective.sum() + cheap["false_alarm_rate"] * (~defective).sum()
    for threshold in [*scores, 0.0, 1.1]:
        found, alarms = (scores[defective] >= threshold).mean(), (scores[~defective] >= threshold).mean()
        assert found < 0.9 or alarms >= point["false_alarm_rate"]
        assert 3 * (1 - found) * defective.sum() + alarms * (~defective).sum() >= paid - 1e-9


@pytest.mark.parametrize("true_temperature", [1.0, 1.5, 3.0])
def test_temperature_is_recovered(true_temperature):
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet([1, 1, 1], 4000)
    labels = np.array([generator.choice(3, p=p) for p in probabilities])
    distorted = apply_temperature(probabilities, 1 / true_temperature)
    assert fit_temperature(distorted, labels) == pytest.approx(true_temperature, rel=0.1)
    calibration = calibrate(distorted, labels, None)
    assert calibration["operating_point"] is None and calibration["ece"] < 0.03
    assert calibration["ece"] <= calibration["ece_uncalibrated"] + 0.01
    better = log_loss(labels, apply_temperature(distorted, calibration["temperature"]))
    assert better <= log_loss(labels, distorted) + 1e-6


@pytest.mark.parametrize(
    ("right", "wrong", "temperature"), [(3, 2, 1.4862), (2, 3, 1.7812), (0, 5, 2.3329), (300, 200, 4.3606)]
)
def test_few_images_move_the_temperature_little(right, wrong, temperature):
    probabilities = np.tile([0.9, 0.1], (right + wrong, 1))
    labels = np.repeat([0, 1], (right, wrong))
    logs = np.linspace(0, 3, 30001)
    odds = np.log(9) / np.exp(logs)
    costs = right * np.log1p(np.exp(-odds)) + wrong * np.log1p(np.exp(odds)) + 2 * logs**2
    assert np.exp(logs[costs.argmin()]) == pytest.approx(temperature, abs=1e-3)
    assert fit_temperature(probabilities, labels) == pytest.approx(temperature, abs=2e-3)


@pytest.mark.parametrize(
    ("images", "false_alarms", "threshold", "rate"),
    [
        (19, 0.05, 0.19, 0),  # the fewest that bound a share of 5 %
        (39, 0.05, 0.38, 1 / 39),
        (100, 0.05, 0.96, 4 / 100),
        (3, 0.5, 0.02, 1 / 3),
        (18, 0.05, 0.5, 0),  # too few, and none above 0.5
        (70, 0.01, 0.7, 0),  # too few, and the highest above 0.5
    ],
)
def test_heat_map_threshold_is_rarely_exceeded_by_good_images(images, false_alarms, threshold, rate):
    maxima = np.random.default_rng(0).permutation(np.arange(1, images + 1, dtype=np.float32) / 100)
    maps = np.zeros((images, 3, 2), dtype=np.float32)
    maps[np.arange(images), np.arange(images) % 3, np.arange(images) % 2] = maxima
    chosen = choose_saliency_threshold(maps, false_alarms)
    assert chosen["threshold"] == pytest.approx(threshold, abs=1e-6)
    assert (chosen["good_images"], chosen["false_alarm_rate"]) == (images, rate)
    assert f"{100 * false_alarms:g} %" in chosen["chosen"]


def test_heat_map_threshold_stays_in_range():
    assert choose_saliency_threshold(np.ones((30, 2, 2), dtype=np.float32), 0.05)["threshold"] == 1


def test_threshold_that_sorts_nothing_is_named():
    scores, defective = np.array([0.1, 0.2, 0.3, 0.9]), np.array([True, False, False, True])
    assert choose_operating_point(scores, defective)["marks_all_good"] is True
    assert choose_operating_point(scores, defective, wanted_recall=0.5)["marks_all_good"] is False


def test_temperature_never_sharpens():
    labels = np.arange(20) % 2
    probabilities = np.where(labels[:, None] == [0, 1], 0.8, 0.2)
    assert fit_temperature(probabilities, labels) == pytest.approx(1, abs=1e-3)


def test_very_small_scores_are_decided_as_in_calibration():
    """Scores that double precision resolves and single precision rounds to zero."""
    model = tiny_model()
    logits = torch.tensor([[20.0, 0.0, -60.0], [22.0, 0.0, -60.0], [80.0, 0.0, -60.0]])
    probabilities = logits.double().softmax(dim=1).clamp(torch.finfo(torch.double).eps, 1).numpy()
    labels = np.array([1, 0, 0])
    model.config.operating_point = calibrate(probabilities, labels, 0)["operating_point"]
    assert model.config.threshold < 1e-8
    assert model.decide(logits)[1].tolist() == [True, False, False]


def test_calibration_error_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.5, 0.5]])
    labels = np.array([0, 1, 1, 1])
    # Bins of 15: .9 twice, half of them right; .6 right; .5 wrong (class 0 wins ties).
    assert expected_calibration_error(probabilities, labels) == pytest.approx((2 * 0.4 + 0.4 + 0.5) / 4)
    assert expected_calibration_error(np.eye(3), np.arange(3)) == 0


def test_one_kind_of_image_gives_no_threshold_and_no_temperature():
    probabilities = np.array([[0.7, 0.3], [0.6, 0.4]])
    calibration = calibrate(probabilities, np.array([0, 0]), 0)
    assert calibration["operating_point"] is None and calibration["temperature"] == 1


@pytest.mark.parametrize(
    "wrong",
    [
        {"wanted_recall": 0}, {"wanted_recall": 1.1}, {"miss_cost": 0}, {"miss_cost": float("inf")},
        {"heat_false_alarms": 1}, {"look_again_recall": 0.9}, {"look_again_recall": 0.9, "wanted_recall": 0.95},
        {"look_again_recall": 1.1, "miss_cost": 3},
    ],
)  # fmt: skip
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(InputError, match=f"--{next(iter(wrong))}"):
        OperatingArguments(**wrong)


def test_rule_is_stored_in_words():
    for settings, chosen in (
        ({"wanted_recall": 0.75}, "highest threshold that finds at least 75 % of the validation defects"),
        ({"miss_cost": 20}, "lowest cost on the validation images, one missed defect costing 20 false alarms"),
    ):
        assert choose_operating_point(SCORES, DEFECTIVE, **settings)["chosen"] == chosen


def test_model_decides_at_its_threshold(tmp_path):
    model = tiny_model()
    logits = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    score, defective = model.decide(logits)
    torch.testing.assert_close(score, torch.tensor([0.2130, 0.6667], dtype=torch.double), atol=1e-4, rtol=0)
    assert defective.tolist() == [False, True]
    model.config.operating_point = {"threshold": 0.2}
    model.config.temperature = 2.0
    model.save_pretrained(tmp_path)
    again = KGLForImageClassification.from_pretrained(tmp_path)
    assert again.decide(logits)[1].tolist() == [True, True]
    pixels = torch.rand(2, 3, 32, 32)
    cold = tiny_model()
    torch.testing.assert_close(again(pixels).logits * 2, cold(pixels).logits)
    with pytest.raises(ValueError, match="no defect_free_label"):
        tiny_model(defect_free_label=None).decide(logits)
    config = AutoConfig.for_model("resnet").to_dict()
    for wrong in (
        {"temperature": 0.0}, {"operating_point": {"threshold": 2}}, {"operating_point": {}},
        {"operating_point": {"threshold": 0.4, "look_again_threshold": 0.5}},
        {"saliency_threshold": {"threshold": 2}}, {"saliency_threshold": {}},
    ):  # fmt: skip
        with pytest.raises(Exception, match=next(iter(wrong))):
            type(model.config)(backbone_config=config, id2label={0: "a", 1: "b"}, defect_free_label="a", **wrong)


def test_run_calibrates_its_classifiers_on_validation_images(tmp_path):
    make_images(tmp_path / "images")
    flags = [
        "--data_dir", str(tmp_path / "images"), "--defect_free_label", "good", "--num_folds", "2",
        "--freeze_stages", "0", "--validation_share", "0.3", "--image_height", "32", "--image_width", "48",
        "--output_dir", str(tmp_path / "out"), "--backbone_config",
        '{"model_type": "resnet", "layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8], "depths": [1]}',
        "--num_train_epochs", "2", "--per_device_train_batch_size", "4", "--use_cpu", "true", "--report_to", "none",
    ]  # fmt: skip
    settings = parse(flags)
    report = run(settings)
    validation = load_defect_dataset(settings.data)["validation"]
    for name in ("primary", "final"):
        model, processor = load_classifier(str(tmp_path / "out" / name))
        calibration = report["validation"][name]
        assert model.config.operating_point == calibration["operating_point"]
        assert model.config.temperature == calibration["temperature"] >= 1
        assert model.config.saliency_threshold == calibration["saliency_threshold"]
        assert model.config.has_heat_map == (name == "final")
        assert calibration["images"] == len(validation) == report["images"]["validation"]
        with torch.no_grad():
            logits = model.eval()(to_pixel_values(validation["image"], processor)).logits
        _, defective = model.decide(logits)
        assert defective[torch.tensor(validation["label"]) == 1].all()  # --wanted_recall is 1
        assert "recall_at_operating_point" in report["results"][name]
    assert report["validation"]["primary"]["saliency_threshold"] is None
    chosen = report["validation"]["final"]["saliency_threshold"]
    good = torch.tensor(validation["label"]) == 0  # `model` is the final one here
    with torch.no_grad():
        maxima = model(to_pixel_values(validation["image"], processor)).saliency[good].sigmoid().flatten(1).amax(dim=1)
    assert chosen["good_images"] == len(maxima) and chosen["threshold"] == pytest.approx(max(0.5, maxima.max().item()))
    again = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert again["validation"] == report["validation"]
