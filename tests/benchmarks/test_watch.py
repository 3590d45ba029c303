"""The benchmark of the watch: slow files, kills and changes on a tiny classifier, and the table."""

import numpy as np
import pytest
from tiny import tiny_model
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.benchmarks.watch import RowTimes, compare, deliver, measure_delays, measure_kills, watch_table, write_slowly
from kgl.evaluation.prediction_table import PredictionTable


PREDICTION = {
    "label": "pit", "score": 1.0, "scores": {"good": 0.0, "scratch": 0.0, "pit": 1.0}, "boxes": [],
    "defect_score": 1.0, "defective": True, "decision": "defective", "unlike_training": None,
}  # fmt: skip
KILLS = {
    "kills": 9, "files": 270, "rows": 270, "changed": 80, "more_than_one_row": 0, "missing": 0,
    "changed_with_old_row": 0, "other_decisions": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    tiny_model().save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return str(folder)


def test_files_are_whole_when_they_are_decided(model, tmp_path):
    found = measure_delays(tmp_path, model, 0.1, 4, np.random.default_rng(0))
    assert found["rows_of_part_files"] == 0
    assert {kind: len(delays) for kind, delays in found["delays"].items()} == {
        "one by one": 4, "in bursts": 4, "slowly": 1,
    }  # fmt: skip
    assert all(0 < delay < 60 for delays in found["delays"].values() for delay in delays)


def test_table_has_one_row_per_file_after_kills(model, tmp_path):
    found = measure_kills(tmp_path, model, 2, 5, np.random.default_rng(0))
    assert (found["files"], found["rows"], found["changed"], len(found["rows_at_kill"])) == (10, 10, 5, 2)
    assert not any(found[name] for name in ("more_than_one_row", "missing", "changed_with_old_row", "other_decisions"))
    assert found["largest_score_difference"] < 1e-4


def test_faults_of_a_table_are_counted(model, tmp_path):
    (tmp_path / "line").mkdir()
    stamps = {name: stamp for name, stamp, _ in deliver(tmp_path, {"a.png": 0, "b.png": 1, "c.png": 2})}
    (tmp_path / "out").mkdir()
    table = PredictionTable(tmp_path / "out" / "predictions.csv", ["good", "scratch", "pit"])
    for name in ("a.png", "a.png"):
        table.append(name, stamps[name], PREDICTION)
    table.append("b.png", ("1", "former"), PREDICTION)
    found = compare(tmp_path, model, stamps, {"b.png"})
    assert (found["rows"], found["more_than_one_row"], found["missing"], found["changed_with_old_row"]) == (3, 1, 1, 1)


def test_row_of_a_part_file_is_seen(tmp_path):
    (tmp_path / "line").mkdir()
    table = PredictionTable(tmp_path / "predictions.csv", ["good", "scratch", "pit"])
    with RowTimes(tmp_path / "predictions.csv") as rows:
        table.append("a.bmp", ("7", "early"), PREDICTION)
        name, stamp, _ = write_slowly(tmp_path, "a.bmp", 3, np.array([0.05, 0.05]))
        table.append(name, stamp, PREDICTION)
        deadline = 200
        while len(rows.first_seen) < 2 and (deadline := deadline - 1):
            rows._stop.wait(0.05)
    assert list(rows.first_seen) == [("a.bmp", ("7", "early")), ("a.bmp", stamp)]
    assert (tmp_path / "line" / "a.bmp").read_bytes() == (tmp_path / "made" / "a.bmp").read_bytes()


def test_table_of_delays():
    delays = {"one by one": [0.5, 1.0, 1.5], "in bursts": [2.0], "slowly": [0.25]}
    text = watch_table({"delays": [{"seconds": 0.5, "delays": delays, "rows_of_part_files": 0}], "kills": KILLS})
    assert "| 0.5 | one by one | 3 | 1.00 s | 1.45 s | 1.50 s |" in text
    assert "270 rows: 0 too many, 0 missing, 0 of a former content" in text
