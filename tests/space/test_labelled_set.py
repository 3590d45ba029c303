"""Labelled sets are read from CSV, and decisions on them counted."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset
from space_server import CLASSES, TABLE
from tiny import tiny_model

from input_error import InputError
from kgl.evaluation.predictions import Predictions, write_predictions
from labelled_set import Confusion, count_decisions, read_labelled_set
from rendering import confusion_html


RUN_TABLE = """\
file_name,label,primary_predicted_label,primary_defect_score,primary_defective,primary_probability_good,\
final_predicted_label,final_defect_score,final_defective,final_probability_good
a.png,good,good,0.5,False,0.5,good,0.25,False,0.75
b.png,scratch,good,0.5,False,0.5,scratch,0.75,True,0.25
"""
PREDICT_COLUMNS = "file_name,predicted_label,score,defect_score,defective,boxes,probability_good\n"


def test_decisions_are_counted():
    labelled_set = read_labelled_set(TABLE.encode(), "small.csv", CLASSES, "good")
    assert labelled_set.scores.tolist() == [0.1, 0.6, 0.3, 0.9, 0.5]
    for threshold, counts in ((0, (3, 0, 2, 0)), (0.5, (2, 1, 1, 1)), (0.6, (1, 2, 1, 1)), (1, (0, 3, 0, 2))):
        assert count_decisions(labelled_set, threshold) == Confusion(*counts)
    half = count_decisions(labelled_set, 0.5)
    assert (half.recall, half.false_alarm_rate, half.precision) == (2 / 3, 1 / 2, 2 / 3)
    assert count_decisions(labelled_set, 1).precision is None
    assert "(of defective calls)</th><td>n/a</td>" in confusion_html(labelled_set, 1)


def test_table_of_a_run():
    labelled_set = read_labelled_set(RUN_TABLE.encode(), "predictions.csv", CLASSES, "good")
    assert labelled_set.scores.tolist() == [0.25, 0.75] and labelled_set.defective.tolist() == [False, True]


def test_table_written_by_kgl(tmp_path):
    test = Dataset.from_dict({"file_name": ["a", "b"], "label": [0, 1]})
    test = test.cast_column("label", ClassLabel(names=CLASSES))
    probabilities = np.array([[0.75, 0.125, 0.125], [0.25, 0.5, 0.25]])
    predictions = {"final": Predictions(probabilities, *np.zeros((2, 2, 1, 1)))}
    config = tiny_model(id2label=dict(enumerate(CLASSES))).config
    write_predictions(tmp_path / "predictions.csv", test, predictions, {"final": config})
    raw = (tmp_path / "predictions.csv").read_bytes()
    labelled_set = read_labelled_set(raw, "predictions.csv", CLASSES, "good")
    assert labelled_set.scores.tolist() == [0.25, 0.75] and labelled_set.defective.tolist() == [False, True]


def test_table_of_predictions_with_true_classes_added():
    table = f"label,{PREDICT_COLUMNS}scratch,a.png,good,0.8,0.2,False,[],0.8\n"
    labelled_set = read_labelled_set(table.encode(), "predictions.csv", CLASSES, "good")
    assert labelled_set.scores.tolist() == [0.2] and labelled_set.defective.tolist() == [True]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("", "no column `label`"),
        ("file,defect_score\na,0.1\n", "no column `label`"),
        ("label,score\ngood,0.1\n", "neither column `final_defect_score` nor `defect_score`"),
        (f"{PREDICT_COLUMNS}a.png,good,0.8,0.2,False,[],0.8\n", "a table of `kgl predict`"),
        ("label,defect_score\n", "no rows"),
        ("label,defect_score\ngood,0.1\nrust,0.2\n", "line 3: `label` is 'rust', which is not a class"),
        ("label,defect_score\ngood,much\n", "line 2: `defect_score` is 'much', which is not a number"),
        ("label,defect_score\ngood\n", "line 2: `defect_score` is None, which is not a number"),
        ("label,defect_score\ngood,1.5\n", "line 2: `defect_score` is 1.5, which is outside 0..1"),
        ("label,defect_score\ngood,nan\n", "outside 0..1"),
        ('label,defect_score\n"good,0.1\n', "not a valid CSV"),
        (b"label\xff", "not text in UTF-8"),
        ("label,defect_score\n" + "good,0.1\n" * 100_001, "more than 100,000 rows"),
    ],
)
def test_unusable_tables_are_refused(table, message):
    with pytest.raises(InputError, match=message):
        read_labelled_set(table if isinstance(table, bytes) else table.encode(), "table.csv", CLASSES, "good")
