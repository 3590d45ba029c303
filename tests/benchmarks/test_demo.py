"""The figures and tables of the demo's benchmark, on made-up predictions and lines."""

import pandas as pd

from kgl.benchmarks.demo import COLUMNS, class_table, measure, table


def test_class_recall_and_false_alarms_at_recall():
    predictions = pd.DataFrame(
        {
            "label": ["good"] * 4 + ["pit", "pit", "scratch", "stain"],
            "final_predicted_label": ["good", "good", "good", "pit", "pit", "good", "scratch", "pit"],
            "final_defect_score": [0.1, 0.2, 0.3, 0.6, 0.9, 0.5, 0.8, 0.7],
        }
    )
    found = measure(predictions)
    assert found["class_recall"] == {"good": 0.75, "pit": 0.5, "scratch": 1.0, "stain": 0.0}
    assert found["least_class_recall"] == 0.0
    assert found["false_alarms_at_recall"] == 0.25  # the pit at .5 has to be found, below one good image


def test_tables_have_median_and_range():
    recall = {"good": 1.0, "scratch": 0.5, "pit": 0.5, "stain": 0.5}
    lines = [
        {"arm": "kgl-tiny", "seed": seed, "class_recall": recall} | dict.fromkeys(COLUMNS.values(), value)
        for seed, value in enumerate((0.1, 0.5, 0.3))
    ]
    head, _, row = table(lines).splitlines()
    assert head.endswith("| seeds |") and row.count("0.30 (0.10 .. 0.50)") == len(COLUMNS) and row.endswith("| 3 |")
    assert class_table(lines).splitlines()[-1].endswith("| 1.00 (1.00 .. 1.00) |" + " 0.50 (0.50 .. 0.50) |" * 3)
