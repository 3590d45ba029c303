"""Reading, pairing and formatting of runs."""

import json

import numpy as np
import pandas as pd
import pytest

from kgl.benchmarks.evidence.formatting import format_difference, format_mean, markdown_table, replace_block
from kgl.benchmarks.evidence.identity import arm_settings, task_settings, without_deleted
from kgl.benchmarks.evidence.plan import ARMS
from kgl.benchmarks.evidence.records import (
    confidence_interval,
    paired_differences,
    pivot_metric,
    read_lines,
    read_runs,
)
from kgl.benchmarks.measure import RESULTS


def test_interval_is_student_s():
    values = np.array([0.1, 0.2, 0.4, 0.1, 0.3])
    low, high = confidence_interval(values)
    half = 2.7764451 * values.std(ddof=1) / np.sqrt(5)  # t of 4 degrees of freedom, two-sided 95 %
    assert (low, high) == pytest.approx((0.22 - half, 0.22 + half))
    assert confidence_interval(values[:2]) is None
    assert confidence_interval(np.zeros(4)) == (0, 0)


def test_difference_is_bold_where_the_interval_excludes_zero():
    values = np.array([0.1, 0.2, 0.4, 0.1, 0.3])
    low, high = confidence_interval(values)
    assert format_difference(values) == f"**+0.220 ({low:+.3f} .. {high:+.3f})**"
    assert format_mean(-values - 0.3) == f"-0.520 ({-high - 0.3:.3f} .. {-low - 0.3:.3f})"
    assert format_difference(values / 1e4) == "+0.000 (+0.000 .. +0.000)"  # excludes 0 but prints as 0
    assert format_difference(values[:2], seeds=5) == "+0.150, 2 seeds"


def test_incomplete_line_is_named(tmp_path):
    (tmp_path / "runs.jsonl").write_text('{"arm": "plain"}\n{"arm": "pl')
    with pytest.raises(ValueError, match=r"runs\.jsonl, line 2 is incomplete: delete that line"):
        read_lines(tmp_path / "runs.jsonl")


def test_runs_are_paired_by_seed(tmp_path):
    def line(arm, seed, **metrics):
        return json.dumps({"arm": arm, "dataset": "tiles", "budget": 8, "seed": seed, "metrics": metrics})

    lines = [line("guided", seed, ap=0.1 * seed, ap_per_class=[0.5]) for seed in range(4)]
    lines += [line("plain", 3, ap=0.1), line("plain", 2, ap=0.1), line("plain", 0, gradcam_ap=0.5)]
    (tmp_path / "runs.jsonl").write_text("\n".join(lines))
    runs = read_runs(tmp_path / "runs.jsonl")
    assert set(runs) == {"dataset", "budget", "arm", "seed", "ap", "gradcam_ap"}
    by_seed = pivot_metric(runs, "ap")
    assert dict(paired_differences(by_seed, "guided", "plain")) == pytest.approx({2: 0.1, 3: 0.2})
    other = paired_differences(by_seed, "guided", "plain", pivot_metric(runs, "gradcam_ap"))
    assert dict(other) == pytest.approx({0: -0.5})
    assert paired_differences(by_seed, "guided", "blank mask").empty
    assert paired_differences(pivot_metric(runs, "auroc"), "guided", "plain").empty


def test_stored_runs_are_readable():
    """Arms that have been deleted stay in the results."""
    counts = {name: read_runs(RESULTS / f"{name}.jsonl") for name in ("evidence", "search", "search_layercam")}
    assert {name: len(runs) for name, runs in counts.items()} == {
        "evidence": 649,
        "search": 269,
        "search_layercam": 45,
    }
    assert set(counts["evidence"]["arm"]) - set(ARMS) == {
        "plain, early-stopped", "self-distillation", "guided, head alone",
    }  # fmt: skip
    assert {"guided, kl", "guided, cross-fitted"} <= set(counts["search"]["arm"]) - set(ARMS)


def test_stored_runs_have_the_settings_of_the_plan():
    """Otherwise the bench would refuse to add runs to them."""
    for line in [*read_lines(RESULTS / "evidence.jsonl"), *read_lines(RESULTS / "search.jsonl")]:
        if line["arm"] in ARMS:
            assert without_deleted(line["settings"]) == arm_settings(line["arm"]), line["arm"]
        task = {name: value for name, value in line["task"].items() if name != "data_fingerprint"}
        assert task == json.loads(json.dumps(task_settings(line["dataset"])))


def test_run_with_a_deleted_setting_is_another_run():
    settings = arm_settings("guided")
    old = settings | {"rounds": 1, "training": settings["training"] | {"kg_schedule": "linear"}}
    assert without_deleted(old) == settings
    assert without_deleted(old | {"rounds": 2})["rounds"] == 2
    delayed = old | {"training": old["training"] | {"kg_schedule": "delayed"}}
    assert without_deleted(delayed)["training"]["kg_schedule"] == "delayed"


def test_markdown_table_aligns_numbers_to_the_right():
    table = markdown_table([{"arm": "plain", "AP": "0.5"}, {"arm": "guided", "seeds": "3"}])
    assert table.splitlines() == [
        "| arm | AP | seeds |",
        "| --- | ---: | ---: |",
        "| plain | 0.5 |  |",
        "| guided |  | 3 |",
    ]
    assert markdown_table([]) == "No runs."


def test_block_between_markers_is_replaced():
    page = "text\n<!-- runs -->\n| old |\n<!-- /runs -->\nmore\n"
    assert replace_block(page, "runs", "| new |") == "text\n<!-- runs -->\n\n| new |\n\n<!-- /runs -->\nmore\n"
    with pytest.raises(ValueError, match="no markers <!-- others -->"):
        replace_block(page, "others", "| new |")


def test_last_of_two_equal_runs_counts(tmp_path):
    line = {"arm": "plain", "dataset": "tiles", "budget": 8, "seed": 0}
    lines = [json.dumps(line | {"metrics": {"ap": ap}}) for ap in (0.1, 0.2)]
    (tmp_path / "runs.jsonl").write_text("\n".join(lines))
    assert isinstance(runs := read_runs(tmp_path / "runs.jsonl"), pd.DataFrame) and runs["ap"].tolist() == [0.2]
