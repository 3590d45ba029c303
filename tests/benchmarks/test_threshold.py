"""The benchmark of the thresholds: a finished tiny run, fewer validation images, costs, bands and tables."""

import json

import numpy as np
import pytest
from jobs import run_train, write_recipe
from scipy.special import expit
from tiny import make_images

from kgl.benchmarks.threshold import (
    BANDS,
    DATA,
    MISS_COSTS,
    RECALLS,
    _fewer,
    band_table,
    cost_table,
    draw_recalls,
    expected_recall,
    measure,
    recall_table,
)


def line(data: str, seed: int, defects: int, recall: float) -> dict:
    rates = {"validation_recall": 1.0, "validation_false_alarm_rate": 0.25, "false_alarm_rate": 0.3}
    band = {"good_in_band": 10, "false_alarms": 5, "defects_in_band": 3, "missed": 1}
    return {
        "data": data,
        "seed": seed,
        "validation": {"defective": defects, "good": 40},
        "test": {"defective": 20, "good": 80},
        "recalls": {f"{one:g}": rates | {"recall": recall} for one in RECALLS},
        "costs": {f"{one:g}": {"chosen": 20.0 + seed, "stored": 21.0, "best": 10.0} for one in MISS_COSTS},
        "bands": {f"{one:g} {wide:g}": band if seed else None for one, wide in BANDS},
        "fewer": {"6": {f"{one:g}": 0.8 for one in RECALLS}} if defects > 6 else {},
    }


def test_measures_of_a_finished_run(tmp_path):
    make_images(tmp_path / "images")
    recipe, run = write_recipe(tmp_path, data_dir=str(tmp_path / "images")), tmp_path / "run"
    done = run_train(recipe, "--output_dir", run, "--validation_share", "0.5")
    assert done.returncode == 0, done.stderr
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    found = json.loads(json.dumps(measure(run, 0)))
    stored = json.loads((run / "metrics.json").read_text())
    assert found["validation"]["defective"] == stored["validation"]["final"]["operating_point"]["defective"]
    assert sum(found["test"].values()) == stored["images"]["test"]
    recalls = [found["recalls"][f"{recall:g}"]["validation_recall"] for recall in RECALLS]
    assert all(one >= wanted for one, wanted in zip(recalls, RECALLS, strict=True))
    final = stored["results"]["final"]
    assert found["heat"]["test"] == final["saliency_false_alarm_rate"] and 0 <= found["heat"]["validation"] <= 0.05
    for costs in found["costs"].values():
        assert costs["best"] <= min(costs["chosen"], costs["stored"])
    assert all(path.read_bytes() == content for path, content in files.items())


def test_fewer_defects_find_less():
    generator = np.random.default_rng(0)
    known, defective = np.arange(240) % 4 == 0, np.arange(4000) % 4 == 0
    found = _fewer(expit(generator.normal(known)), known, expit(generator.normal(defective)), defective, 0)
    assert list(found) == ["6", "12", "25"]
    for number in found:  # as ranks let expect
        assert found[number]["0.99"] == pytest.approx(expected_recall(0.99, int(number)), abs=0.05)
    assert found["6"]["0.99"] < found["12"]["0.99"] < found["25"]["0.99"]


def test_expected_recall_is_that_of_ranks():
    assert expected_recall(0.99, 7) == expected_recall(0.9, 7) == 7 / 8
    assert expected_recall(0.95, 20) == 19 / 21 and expected_recall(0.8, 5) == 4 / 6


def test_tables_and_figure(tmp_path):
    lines = [line(data, seed, 7, 0.9 + seed / 100) for data in DATA for seed in range(3)]
    recalls = recall_table(lines)
    assert "| magnetic tiles | 7 | 0.9 | 1.000 | 0.875 | 0.910 (0.885 .. 0.935) | 3 of 3 | 0.250 |" in recalls
    assert "| circuit boards | 7 | 0.95 | 1.000 | 0.875 | 0.910 (0.885 .. 0.935) | 0 of 3 |" in recalls
    assert "| KolektorSDD | 20 | 21.0 | 21.0 | 10.0 | 1, 1 |" in cost_table(lines)
    # Of two splits: 20 good and 6 defects of 200 images; 6 of 8 defects not found, and 6 of 18 errors.
    row = "| KolektorSDD | 0.9 | 0.99 | 2 of 3 | 13.0 % | 12.5 % | 75.0 % | 33.3 % | 95.0 % |"
    assert row in band_table(lines)
    draw_recalls(lines, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000
