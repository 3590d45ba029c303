"""Evaluation of a run, predictions of its test images, and their table."""

import csv

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from tiny import tiny_model

from kgl.evaluation.calibration import apply_temperature
from kgl.evaluation.metrics import decision_rates, expected_calibration_error, wilson_interval
from kgl.evaluation.predictions import Predictions, most_probable_defects, predict_batches, write_predictions
from kgl.evaluation.results import evaluate_run, heat_map_rates, operating_rates


NAMES = ["good", "scratch", "pit"]
POINT = {"threshold": 0.4}


@pytest.fixture
def test_split() -> Dataset:
    """30 labelled rows; those with a defect have a mask."""
    labels = [index % 3 for index in range(30)]
    mask = Image().encode_example(PILImage.fromarray(np.eye(8, dtype=np.uint8) * 255))
    return Dataset.from_dict(
        {
            "file_name": [f"{index}.png" for index in range(30)],
            "label": labels,
            "mask": [mask if label else None for label in labels],
        },
        features=Features(file_name=Value("string"), label=ClassLabel(names=NAMES), mask=Image()),
    )


@pytest.fixture
def predictions(test_split) -> dict[str, Predictions]:
    generator, truth = np.random.default_rng(0), np.eye(3)[test_split["label"][:]]
    return {
        model: Predictions(
            (generator.dirichlet([1, 1, 1], 30) + gain * truth) / (1 + gain), *generator.random((2, 30, 4, 4))
        )
        for model, gain in (("primary", 0.2), ("final", 1.0))
    }


def configs(**final: object) -> dict:
    id2label = dict(enumerate(NAMES))
    return {"primary": tiny_model(id2label=id2label).config, "final": tiny_model(id2label=id2label, **final).config}


def test_run_is_evaluated_with_intervals_and_differences(test_split, predictions, monkeypatch):
    monkeypatch.setattr("kgl.evaluation.results.BOOTSTRAP_DRAWS", 40)
    both = configs(operating_point=POINT, temperature=1.5)
    results, differences = evaluate_run(predictions, test_split, both, (8, 8))
    assert list(results) == ["primary", "final"]
    labels, final = np.array(test_split["label"][:]), predictions["final"].probabilities
    assert results["final"]["accuracy_interval"] == wilson_interval(final.argmax(axis=1) == labels)
    assert results["final"]["ece"] == expected_calibration_error(final, labels)
    assert results["final"]["ece_uncalibrated"] == expected_calibration_error(
        apply_temperature(final, 1 / 1.5), labels
    )
    assert decision_rates(labels > 0, final[:, 1:].sum(axis=1), 0.4).items() <= results["final"].items()
    assert not {"ece_uncalibrated", "recall_at_operating_point"} & results["primary"].keys()
    missed = predictions["primary"].probabilities[labels > 0, 0] > 0.5
    assert results["primary"]["decisions_at_half"]["defective"]["called_good"] == missed.sum()
    assert "decisions_at_half" not in results["final"]
    for metric, paired in differences.items():
        assert paired["difference"] == results["final"][metric] - results["primary"][metric]
        low, high = results["final"][f"{metric}_interval"]
        assert low - 1e-12 <= results["final"][metric] <= high + 1e-12
    assert differences["ap"]["interval"][0] > 0
    assert {"map_ap", "saliency_cell_ap", "saliency_found_rate"} <= results["final"].keys()


def test_decisions_are_counted(test_split, predictions):
    scores, defective = predictions["final"].probabilities[:, 1:].sum(axis=1), np.array(test_split["label"][:]) > 0
    point = POINT | {"look_again_threshold": 0.2}
    rates = operating_rates(defective, scores, point)
    counts = rates["decisions_at_operating_point"]
    for kind, rows in (("good", ~defective), ("defective", defective)):
        assert counts[kind] == {
            "called_good": int((scores[rows] < 0.2).sum()),
            "look_again": int(((scores[rows] >= 0.2) & (scores[rows] < 0.4)).sum()),
            "called_defective": int((scores[rows] >= 0.4).sum()),
        }
    assert counts["good"]["look_again"] > 0
    without = operating_rates(defective, scores, POINT)["decisions_at_operating_point"]
    assert list(without["good"]) == ["called_good", "called_defective"]


def test_marked_cells_are_counted_per_image(test_split):
    marked = np.zeros((30, 4, 4), dtype=bool)
    marked[0, 0, 0] = marked[0, 3, 3] = True  # one of ten good images, twice
    marked[1, 0, 3] = True  # a defect's map, beside its mask
    marked[[2, 4, 5], 2, 2] = True  # on the diagonal of the mask
    rates = heat_map_rates(marked, test_split, 0, (8, 8))
    assert rates == {
        "saliency_false_alarm_rate": 0.1, "saliency_false_alarm_rate_interval": wilson_interval(np.arange(10) < 1),
        "saliency_found_rate": 0.15, "saliency_found_rate_interval": wilson_interval(np.arange(20) < 3),
    }  # fmt: skip
    assert "saliency_false_alarm_rate" not in heat_map_rates(marked, test_split, None, (8, 8))
    without = test_split.remove_columns("mask").add_column("mask", [None] * 30)
    assert set(heat_map_rates(marked, without, 0, (8, 8))) == {
        "saliency_false_alarm_rate", "saliency_false_alarm_rate_interval",
    }  # fmt: skip


def test_heat_map_is_evaluated_at_its_threshold_where_it_was_trained(test_split, predictions):
    threshold = float(predictions["final"].saliency[::3].max())  # the hottest cell of a good image
    both = configs(saliency_threshold={"threshold": threshold})
    both["primary"].has_heat_map = False
    results, _ = evaluate_run(predictions, test_split, both, (8, 8))
    assert results["final"]["saliency_false_alarm_rate"] == 0.1
    assert not [name for name in results["primary"] if name.startswith("saliency")]


def test_predictions_are_selected_by_row(predictions):
    part = predictions["final"].select([3, 1])
    assert np.array_equal(part.probabilities, predictions["final"].probabilities[[3, 1]])
    assert np.array_equal(part.saliency, predictions["final"].saliency[[3, 1]])
    assert part.class_map.shape == (2, 4, 4)


def test_predictions_are_the_same_in_batches_and_keep_the_mode():
    model, images = tiny_model().train(), torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    together, parts = predict_batches(model, [images]), predict_batches(model, images.split(2))
    assert model.training
    for name, value in vars(together).items():
        np.testing.assert_allclose(value, vars(parts)[name], atol=1e-5)
        assert value.min() >= 0 and value.max() <= 1


def test_most_probable_defect_is_never_the_good_class():
    scores = torch.tensor([[0.9, 0.02, 0.08], [0.2, 0.5, 0.3]])
    assert most_probable_defects(scores, 0).tolist() == [2, 1]
    assert most_probable_defects(scores, None).tolist() == [0, 1]


def test_table_of_predictions(test_split, predictions, tmp_path):
    both = configs(operating_point=POINT | {"look_again_threshold": 0.2})
    write_predictions(tmp_path / "predictions.csv", test_split, predictions, both)
    with (tmp_path / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    of_model = ["predicted_label", "defect_score", "defective", "decision", *(f"probability_{name}" for name in NAMES)]
    columns = [f"{model}_{column}" for model in ("primary", "final") for column in of_model]
    assert list(rows[0]) == ["file_name", "label", *columns] and len(rows) == 30
    for index, row in enumerate(rows):
        probabilities = predictions["final"].probabilities[index]
        assert (row["file_name"], row["label"]) == (f"{index}.png", NAMES[index % 3])
        assert row["final_predicted_label"] == NAMES[probabilities.argmax()]
        score = probabilities[1:].sum()
        assert float(row["final_defect_score"]) == score  # in full precision
        assert row["final_defective"] == str(score >= 0.4)
        assert row["final_decision"] == ("defective" if score >= 0.4 else "look again" if score >= 0.2 else "good")
        assert float(row["final_probability_pit"]) == probabilities[2]
    write_predictions(
        tmp_path / "predictions.csv", test_split, predictions,
        {model: tiny_model(id2label=dict(enumerate(NAMES)), defect_free_label=None).config for model in predictions},
    )  # fmt: skip
    header = (tmp_path / "predictions.csv").read_text().splitlines()[0]
    assert "defect" not in header and "primary_probability_good" in header
    for groups, columns in ((["lot 1", ""] * 15, ["group"]), ([""] * 30, [])):  # none where no group is known
        write_predictions(tmp_path / "predictions.csv", test_split, predictions, both, groups)
        with (tmp_path / "predictions.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        assert list(rows[0])[2:-14] == columns
        assert [row.get("group", "") for row in rows] == groups
    assert [path.name for path in tmp_path.iterdir()] == ["predictions.csv"]
