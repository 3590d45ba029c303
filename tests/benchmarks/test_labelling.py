"""Flipped labels, measures of the audit's list, and the tables of the labelling benchmarks, on made-up lines."""

import json

import numpy as np
import pandas as pd
import pytest

from kgl.benchmarks.curve_forecast import forecasts
from kgl.benchmarks.label_choice import CONTROLS
from kgl.benchmarks.label_errors import flip, measure
from kgl.benchmarks.labelling_tables import choice_table, conflicts_table, draw_choices, errors_table, read_choices
from kgl.labelling.audit import Suspect


def test_flipped_labels_are_other_classes():
    labels = np.arange(100) % 4
    flipped, wrong = flip(labels, 4, 0.1, seed=3)
    assert wrong.sum() == 10 and ((flipped != labels) == wrong).all()
    assert set(flipped) <= {0, 1, 2, 3}
    assert (flip(labels, 4, 0.1, seed=3)[0] == flipped).all() and (flip(labels, 4, 0.1, seed=4)[0] != flipped).any()


def test_measures_of_a_list():
    wrong = np.zeros(10, dtype=bool)
    wrong[[0, 1, 2, 3]] = True
    suspects = [Suspect(row, 0.0, 0, [], []) for row in (0, 7, 1, 8, 2)]
    found = measure(suspects, wrong)
    assert (found["listed"], found["precision"], found["recall"]) == (5, 0.6, 0.75)
    assert found["precision_at_flips"] == 0.5  # two of the first four
    # Precision 1, 2/3, 3/5, and 4/10 for the one that is not listed, among the others.
    assert found["ap"] == pytest.approx((1 + 2 / 3 + 3 / 5 + 4 / 10) / 4)
    assert measure([], wrong)["precision"] == 0


def test_choices_are_compared_with_both_controls(tmp_path):
    lines = [
        {"task": "tiles", "repetition": number, "arm": arm,
         "rounds": [{"labels": 20, "defects": 4, "ap": 0.1}, {"labels": 40, "defects": 8, "ap": ap + number / 100}]}
        for number in range(3)
        for arm, ap in (*zip(CONTROLS, (0.5, 0.55), strict=True), ("both", 0.6))
    ]  # fmt: skip
    path = tmp_path / "choices.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    choices = read_choices(path)
    rows = choice_table(choices).splitlines()
    assert rows[-1].startswith(
        "| tiles | both | 0.610 | **+0.100 (+0.100 .. +0.100)** | **+0.050 (+0.050 .. +0.050)**"
    )
    assert rows[2].split("|")[4].strip() == ""  # random choice minus itself
    draw_choices(choices, tmp_path / "choices.png")
    assert (tmp_path / "choices.png").exists()


def test_tables_of_label_errors(tmp_path):
    part = {"listed": 30, "precision": 0.5, "recall": 0.75, "precision_at_flips": 0.6, "ap": 0.55}
    lines = [
        {
            "data": "magnetic-tile",
            "heads": "final",
            "share": 0.0,
            "seed": 0,
            "listed": 12,
            "ranks_of_conflicts": {"a.jpg": 3, "b.jpg": 0},
        },
        *(
            {"data": "magnetic-tile", "heads": "final", "share": 0.1, "seed": seed, "parts": {"all": part}}
            for seed in range(3)
        ),
    ]
    path = tmp_path / "errors.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "| magnetic-tile | 10% | final | all | 30 | 0.500 (0.500 .. 0.500) | 0.750" in errors_table(path)
    assert "| a.jpg | 3 |" in conflicts_table(path) and "rank, final (12 listed)" in conflicts_table(path)


def test_forecast_is_compared_with_the_hidden_budget(tmp_path):
    fits = pd.DataFrame(
        {"repetition": number, "per_class": size, "good": 4 * size, "images": 5 * size, "ap": 0.9 - 0.8 * size**-0.5}
        for number in range(3)
        for size in (2, 4, 8, 16)
    )
    (tmp_path / "fits.jsonl").write_text(fits.to_json(orient="records", lines=True))
    (tmp_path / "run.json").write_text(json.dumps({"curve": {"heads": "final", "num_folds": 3}}))
    (line,) = forecasts(tmp_path)
    assert (line["from"], line["to"], line["metric"]) == (8, 16, "ap")
    assert line["forecast"] == pytest.approx(line["measured"], abs=1e-6)
