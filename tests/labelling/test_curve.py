"""Budgets, repeated splits, and the summary of a curve."""

import numpy as np
import pandas as pd
import pytest

from kgl.evaluation.curve_report import add_to_report, curve_section, curve_sentences
from kgl.labelling.curve import Repetition, label_budgets, summarize_curve


def splits(*pools):
    return [Repetition(number, np.asarray(pool), np.asarray([], dtype=int)) for number, pool in enumerate(pools)]


def test_budgets_double_up_to_the_scarcest_class():
    labels = np.repeat([0, 1, 2], [30, 20, 9])
    everything = np.arange(len(labels))
    assert label_budgets(labels, 0, splits(everything)) == ([2, 4, 8], 2)
    assert label_budgets(labels, None, splits(everything)) == ([2, 4, 8], 2)
    assert label_budgets(labels, 2, splits(everything)) == ([2, 4, 8, 16], 1)


def test_budgets_fit_every_split():
    labels = np.repeat([0, 1], [30, 20])
    assert label_budgets(labels, 0, splits(np.arange(50), np.arange(37)))[0] == [2, 4]
    assert label_budgets(labels, 0, splits(np.arange(50), np.arange(31))) == ([], 1)


def fits(values, repetitions=4):
    """Return fits whose AP is that of `values` (budget -> AP) in each repetition, moved by a little."""
    return pd.DataFrame(
        {"repetition": number, "per_class": size, "good": 4 * size, "images": 5 * size, "ap": value + shift,
         "recall_at_false_alarm_rate": value, "false_alarm_rate_at_zero_missed": 1 - value}
        for number, shift in zip(range(repetitions), (-0.01, 0.0, 0.0, 0.01), strict=False)
        for size, value in values.items()
    )  # fmt: skip


SIZES = (2, 4, 8, 16)


def test_summary_of_exact_values():
    curve = summarize_curve(fits({size: 0.9 - 0.8 * size**-0.5 for size in SIZES}), "pit", "final", 3)
    spread = 3**0.5 * 3.182 * 0.00816 / 4**0.5  # Student's, of four repetitions, widened by 1 + 4 / (3 - 1)
    ap, alarms = curve["metrics"]["ap"], curve["metrics"]["false_alarm_rate_at_zero_missed"]
    assert (curve["per_class"], curve["good"], curve["repetitions"]) == ([2, 4, 8, 16], [8, 16, 32, 64], 4)
    assert ap["law"] == pytest.approx({"a": 0.9, "b": 0.8, "c": 0.5}, abs=1e-6)
    assert ap["forecast"]["gain"] == pytest.approx(0.8 * (16**-0.5 - 32**-0.5))
    assert ap["forecast"]["interval"] == pytest.approx([ap["forecast"]["gain"]] * 2)  # every repetition rises alike
    assert alarms["forecast"]["gain"] == pytest.approx(-ap["forecast"]["gain"])
    assert ap["interval"][0] == pytest.approx([ap["mean"][0] - spread, ap["mean"][0] + spread], abs=1e-3)
    # .8 n^-.5 (1 - 2^-.5) < .01 from n = 550 on
    assert ap["flat_from"] == 1024 and ap["flat_from_interval"] == [1024, 1024]


def test_interval_of_the_forecast_is_that_of_the_repetitions():
    table = fits({size: 0.5 for size in SIZES})
    table.loc[table["repetition"] < 2, "ap"] = 0.9 - 0.8 * table["per_class"] ** -0.5
    forecast = summarize_curve(table, "pit", "final", 3)["metrics"]["ap"]["forecast"]
    (low, high), middle = forecast["interval"], forecast["gain"]
    assert low == pytest.approx(middle - 3**0.5 * middle, abs=1e-6)
    assert high == pytest.approx(middle + 3**0.5 * (0.0586 - middle), abs=2e-3)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (
            {size: 0.9 - 0.8 * size**-0.5 for size in SIZES},
            "By the power law, flat from 1024 images per class (1024 .. 1024): ",
        ),
        ({size: 0.8 for size in SIZES}, "Flat from 2 images per class (2 .. 2): "),
        ({size: 1 - size**-0.05 for size in SIZES}, "Not yet flat (95 % interval: not flat either): "),
    ],
)
def test_sentences_say_where_it_flattens(values, expected):
    sentences = " ".join(curve_sentences(summarize_curve(fits(values), "pit", "final", 3)))
    assert expected in sentences
    assert "From 16 to 32 images per class expect +." in sentences and "pit has too few images" in sentences


def test_interval_of_where_it_flattens_is_that_of_the_repetitions():
    table = fits({size: 0.5 for size in SIZES})
    rising = table["repetition"] == 0
    table.loc[rising, "ap"] = 0.9 - 0.8 * table.loc[rising, "per_class"] ** -0.5
    curve = summarize_curve(table, "pit", "final", 3)
    ap = curve["metrics"]["ap"]
    flat, (low, high) = ap["flat_from"], ap["flat_from_interval"]
    assert low == 2 < flat < high  # some draws have no repetition that rises, some have several
    said = curve_sentences(curve)
    assert any(f"flat from {flat} images per class ({low} .. {high}): twice" in one for one in said)
    ap["flat_from_interval"] = [4, None]
    assert any("(95 % interval: from 4 on, with no upper end): twice" in one for one in curve_sentences(curve))
    ap["flat_from_interval"] = [None, None]
    expected = f"lat from {flat} images per class by the mean alone (95 % interval: not yet flat): twice"
    assert any(expected in one for one in curve_sentences(curve))
    del ap["flat_from_interval"]  # a curve of an earlier version
    assert any(f"flat from {flat} images per class: twice" in one for one in curve_sentences(curve))


def test_forecast_needs_three_budgets():
    curve = summarize_curve(fits({2: 0.5, 4: 0.6}), "pit", "final", 3)
    assert curve["metrics"]["ap"]["law"] is None
    assert "Three budgets of labels are needed" in " ".join(curve_sentences(curve))


def test_what_the_run_has_trained_beside_is_named():
    curve = summarize_curve(fits({size: 0.8 for size in SIZES}), "pit", "final", 3)
    assert "without the run's" not in " ".join(curve_sentences(curve))
    said = curve_sentences(curve | {"left_out": "fine-tuned stage"})
    assert "Measured with heads on frozen features, without the run's fine-tuned stage." in said


def test_section_is_replaced_in_a_report(tmp_path):
    report = tmp_path / "report.html"
    report.write_text(f"<h1>before</h1>{curve_section(tmp_path)}<h2>after</h2>", encoding="utf-8")
    for scarcest in ("pit", "<dent>"):
        curve = summarize_curve(fits({size: 0.8 for size in SIZES}), scarcest, "final", 3)
        add_to_report(curve, tmp_path)
    page = report.read_text(encoding="utf-8")
    assert page.startswith("<h1>before</h1>") and page.endswith("<h2>after</h2>")
    assert page.count("How many labels are needed") == 1 and page.count("data:image/svg+xml") == 1
    assert "&lt;dent&gt; has too few images" in page and "pit has" not in page


def test_report_without_a_place_for_the_curve_is_left_alone(tmp_path):
    (tmp_path / "report.html").write_text("an older report", encoding="utf-8")
    add_to_report(summarize_curve(fits({size: 0.8 for size in SIZES}), "pit", "final", 3), tmp_path)
    assert (tmp_path / "report.html").read_text(encoding="utf-8") == "an older report"
    assert (tmp_path / "curve.json").exists()
