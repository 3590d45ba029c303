"""Operating points and temperatures, by hand and by trying everything."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import log_loss
from tiny import make_images, tiny_model
from transformers import AutoConfig

from kgl.data.images import to_pixel_values
from kgl.data.loading import load_defect_dataset
from kgl.errors import InputError
from kgl.evaluation.calibration import apply_temperature, calibrate, choose_operating_point, fit_temperature
from kgl.evaluation.metrics import decision_rates, expected_calibration_error
from kgl.modeling_kgl import KGLForImageClassification
from kgl.train import parse, run
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
def test_the_threshold_is_the_one_asked_for(settings, threshold, recall, alarms):
    order = np.random.default_rng(0).permutation(7)
    scores, defective = SCORES[order], DEFECTIVE[order]
    if settings.pop("worst_first", False):
        scores, defective = np.append(scores, 0.9), np.append(defective, False)
    point = choose_operating_point(scores, defective, OperatingArguments(**settings))
    if len(scores) > 7:
        assert point["threshold"] > 0.9 and (point["recall"], point["false_alarm_rate"]) == (0, 0)
        return
    assert point["threshold"] == pytest.approx(threshold)
    assert (point["recall"], point["false_alarm_rate"]) == pytest.approx((recall, alarms))
    assert (point["defective"], point["good"]) == (4, 3)
    rates = decision_rates(DEFECTIVE, SCORES, point["threshold"])
    assert rates["recall_at_operating_point"] == pytest.approx(recall)
    assert rates["false_alarm_rate_at_operating_point"] == pytest.approx(alarms)


@pytest.mark.parametrize("seed", range(10))
def test_no_threshold_is_better_than_the_chosen(seed):
    generator = np.random.default_rng(seed)
    scores, defective = generator.integers(0, 9, 50) / 8, np.r_[True, False, generator.random(48) < 0.4]
    point = choose_operating_point(scores, defective, OperatingArguments(wanted_recall=0.9))
    cheap = choose_operating_point(scores, defective, OperatingArguments(miss_cost=3))
    paid = 3 * (1 - cheap["recall"]) * defective.sum() + cheap["false_alarm_rate"] * (~defective).sum()
    for threshold in [*scores, 0.0, 1.1]:
        found, alarms = (scores[defective] >= threshold).mean(), (scores[~defective] >= threshold).mean()
        assert found < 0.9 or alarms >= point["false_alarm_rate"]
        assert 3 * (1 - found) * defective.sum() + alarms * (~defective).sum() >= paid - 1e-9


@pytest.mark.parametrize("true_temperature", [1.0, 1.5, 3.0])
def test_the_temperature_is_found(true_temperature):
    generator = np.random.default_rng(0)
    probabilities = generator.dirichlet([1, 1, 1], 4000)
    labels = np.array([generator.choice(3, p=p) for p in probabilities])
    distorted = apply_temperature(probabilities, 1 / true_temperature)
    assert fit_temperature(distorted, labels) == pytest.approx(true_temperature, rel=0.1)
    settled = calibrate(distorted, labels, None, OperatingArguments())
    assert settled["operating_point"] is None and settled["ece"] < 0.03
    assert settled["ece"] <= settled["ece_uncalibrated"] + 0.01
    better = log_loss(labels, apply_temperature(distorted, settled["temperature"]))
    assert better <= log_loss(labels, distorted) + 1e-6


def test_few_images_that_are_told_apart_ask_for_no_sharpening():
    labels = np.arange(20) % 2
    probabilities = np.where(labels[:, None] == [0, 1], 0.8, 0.2)
    assert fit_temperature(probabilities, labels) == pytest.approx(1, abs=1e-3)


def test_the_smallest_scores_are_decided_as_they_were_chosen():
    """As far from one half as double precision tells, where single precision has only zeros."""
    model = tiny_model()
    logits = torch.tensor([[20.0, 0.0, -60.0], [22.0, 0.0, -60.0], [80.0, 0.0, -60.0]])
    probabilities = logits.double().softmax(dim=1).clamp(torch.finfo(torch.double).eps, 1).numpy()
    labels = np.array([1, 0, 0])
    model.config.operating_point = calibrate(probabilities, labels, 0, OperatingArguments())["operating_point"]
    assert model.config.threshold < 1e-8
    assert model.decide(logits)[1].tolist() == [True, False, False]


def test_calibration_error_by_hand():
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.5, 0.5]])
    labels = np.array([0, 1, 1, 1])
    # Bins of 15: .9 twice, half of them right; .6 right; .5 wrong (the first of two equal ones is said).
    assert expected_calibration_error(probabilities, labels) == pytest.approx((2 * 0.4 + 0.4 + 0.5) / 4)
    assert expected_calibration_error(np.eye(3), np.arange(3)) == 0


def test_nothing_is_settled_on_one_kind_of_image():
    probabilities = np.array([[0.7, 0.3], [0.6, 0.4]])
    settled = calibrate(probabilities, np.array([0, 0]), 0, OperatingArguments())
    assert settled["operating_point"] is None and settled["temperature"] == 1


@pytest.mark.parametrize("wrong", [{"wanted_recall": 0}, {"wanted_recall": 1.1}, {"miss_cost": 0}])
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(InputError, match=f"--{next(iter(wrong))}"):
        OperatingArguments(**wrong)


def test_the_model_decides_at_its_operating_point(tmp_path):
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
    for wrong in ({"temperature": 0.0}, {"operating_point": {"threshold": 2}}, {"operating_point": {}}):
        with pytest.raises(Exception, match=next(iter(wrong))):
            type(model.config)(backbone_config=config, id2label={0: "a", 1: "b"}, defect_free_label="a", **wrong)


def test_a_run_settles_its_classifiers_on_validation_images(tmp_path):
    make_images(tmp_path / "images")
    flags = [
        "--data_dir", str(tmp_path / "images"), "--defect_free_label", "good", "--num_folds", "2",
        "--validation_share", "0.3", "--image_height", "32", "--image_width", "48", "--output_dir",
        str(tmp_path / "out"), "--backbone_config",
        '{"model_type": "resnet", "layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8], "depths": [1]}',
        "--num_train_epochs", "2", "--per_device_train_batch_size", "4", "--use_cpu", "true", "--report_to", "none",
    ]  # fmt: skip
    settings = parse(flags)
    report = run(settings)
    validation = load_defect_dataset(settings.data)["validation"]
    for arm, phase in (("plain", "primary"), ("guided", "final")):
        model, processor = load_classifier(str(tmp_path / "out" / phase))
        settled = report["validation"][arm]
        assert model.config.operating_point == settled["operating_point"]
        assert model.config.temperature == settled["temperature"] >= 1
        assert settled["images"] == len(validation) == report["images"]["validation"]
        with torch.no_grad():
            logits = model.eval()(to_pixel_values(validation["image"], processor)).logits
        _, called = model.decide(logits)
        assert called[torch.tensor(validation["label"]) == 1].all()  # every defect, as asked for
        assert "recall_at_operating_point" in report["results"][arm]
    again = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert again["validation"] == report["validation"]
