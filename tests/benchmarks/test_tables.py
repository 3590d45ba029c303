"""Tables of the evidence bench."""

import json
import sys

import numpy as np
import pandas as pd
import pytest

from kgl.benchmarks.evidence import write_tables
from kgl.benchmarks.evidence.formatting import format_difference, format_mean, replace_block
from kgl.benchmarks.evidence.records import read_runs
from kgl.benchmarks.evidence.summary import SCOPES, goal_table, headline_table, overall_table
from kgl.benchmarks.evidence.tables import (
    CONTROLS,
    controls_table,
    differences_table,
    levels_table,
    maps_table,
    means_table,
)
from kgl.benchmarks.measure import RESULTS


def run_table(places: dict) -> pd.DataFrame:
    """Runs of `{(dataset, budget): {arm: {seed: metrics}}}`."""
    rows = [
        {"dataset": dataset, "budget": budget, "arm": arm, "seed": seed} | metrics
        for (dataset, budget), arms in places.items()
        for arm, seeds in arms.items()
        for seed, metrics in seeds.items()
    ]
    return pd.DataFrame(rows)


def body(table: str) -> list[str]:
    return table.splitlines()[2:]


def test_maps_are_compared_with_the_better_map_of_plain_training():
    guided = {seed: {"saliency_ap": 0.3, "saliency_image_ap": 0.9} for seed in (0, 1, 2)}  # no plain run of seed 2

    def rows(*plain):
        metrics = {seed: {"map_ap": 0.2} | one for seed, one in enumerate(plain)}
        return body(maps_table(run_table({("tiles", 8): {"plain": metrics, "guided": guided}})))

    assert maps_table(run_table({("tiles", 8): {"guided": guided}})) == "No runs."
    start = "| tiles | 8 | 2 | 0.300 |"
    taken = {"gradcam_ap": 0.24, "map_image_ap": 0.6, "gradcam_image_ap": 0.5, "map_pointing": 0.4}
    assert rows(taken, taken) == [f"{start} +0.060 | 1.25 | 0.900 | +0.300 | 1.50 |  |  |  |"]
    weaker = {"gradcam_ap": 0.1}
    assert rows(weaker, weaker) == [f"{start} +0.100 | 1.50 |  |  |  |  |  |  |"]
    assert rows(weaker, {}) == ["| tiles | 8 | 2 |" + "  |" * 9]  # the better map is unknown


def test_goal_is_reached_where_all_its_parts_are():
    def runs(lead, accuracy, heat):
        base = {"map_ap": 0.1, "gradcam_ap": 0.2}
        plain = {seed: base | {"ap": 0.5, "accuracy": 0.9} for seed in range(5)}
        blank = {seed: base | {"ap": 0.5 + 0.1 * (seed - 2), "accuracy": 0.9} for seed in range(5)}
        ours = {"accuracy": 0.9 + accuracy, "saliency_ap": heat}
        guided = {seed: ours | {"ap": 0.5 + lead + 0.001 * seed} for seed in range(5)}
        return {"guided": guided, "plain": plain, "plain, twice as long": plain, "blank mask": blank}

    places = {("all", 8): runs(0.4, 0.1, 0.31), ("neu_det_long", 16): runs(0.01, 0, 0.29),
              ("neu_det_long", 8): runs(0.4, 0, 0.31), ("neu_det_long", 4): runs(0.4, 0.1, 0.4)}  # fmt: skip
    del places["neu_det_long", 16]["blank mask"][4]
    table = goal_table(run_table(places)).splitlines()
    assert [row.split(" | ")[:2] for row in table[2:-2]] == [
        ["| neu_det_long", "8"],
        ["| neu_det_long", "16"],
        ["| all", "8"],
    ]
    assert [row.split(" | ")[-1] for row in table[2:-2]] == ["1.55 |", "1.45 |", "1.55 |"]
    assert table[3].count("), 4 seeds |") == 2  # of the blank mask
    assert table[-1].endswith(
        ": of the 2 places of the goal, AP at 1, accuracy at 0, heat map at 1; "
        "of 1 other places, AP at 1, accuracy at 1, heat map at 1."
    )


def test_time_is_over_plain_training_of_the_same_seed():
    def runs(phases, *seconds):
        return {seed: {"phases": phases, "steps": 4, "seconds": one} for seed, one in enumerate(seconds)}

    arms = {"plain": runs(1, 1.0, 2.0, 4.0, 1.0), "guided": runs(2, 1.5, 2.2, 4.0), "few": runs(1, 1.0, 2.0)}
    rows = body(means_table(run_table({("tiles", 8): arms}), (), costs=True))
    assert rows == ["| plain | 4 | 1 | 4 | 1.00 |", "| guided | 3 | 2 | 4 | 1.10 |", "| few | 2 | 1 | 4 |  |"]


def test_means_need_a_metric_of_all_runs_of_the_arm():
    arms = {"plain": {0: {"ap": 0.5, "auroc": 0.6}, 1: {"ap": 0.7}}, "guided": {0: {"ap": 0.9, "auroc": 0.8}}}
    table = means_table(run_table({("tiles", 8): arms}), ("ap", "auroc", "accuracy")).splitlines()
    assert table[0] == "| arm | seeds | AP | AUROC |"
    assert table[2:] == ["| plain | 2 | 0.600 |  |", "| guided | 1 | 0.900 | 0.800 |"]


def test_arms_are_compared_over_shared_seeds():
    arms = {
        "plain": {0: {"ap": 0.5}, 1: {"ap": 0.6}},
        "guided": {1: {"ap": 0.9}, 2: {"ap": 0.1}},
        "few": {5: {"ap": 1}},
    }
    table = differences_table(run_table({("tiles", 8): arms}), "plain").splitlines()
    assert table[0] == "| minus plain | seeds | AP |" and table[2:] == ["| guided | 1 | +0.300 |"]


def test_controls_are_compared_over_shared_seeds():
    values = [0.5, 0.6, 0.7, 0.9]
    guided = {seed: {"ap": value} for seed, value in enumerate(values)}
    shifted = {seed: {"ap": values[seed] - 0.1 * (seed + 1)} for seed in (0, 1, 2)}
    arms = {"guided": guided, "plain": shifted, "shuffled prior": {3: {"ap": 0.1}}}
    arms["guided, true masks"] = {seed: {"saliency_ap": 0.9} for seed in range(4)}  # no AP
    arms |= {"guided, convex": guided, "blank mask": shifted, "blank mask, convex": guided}
    places = run_table({("tiles", 8): arms, ("tiles", 4): {"guided": {0: {"ap": 0.5}}}})
    table = controls_table(places, "ap", CONTROLS, ("guided", "guided, convex")).splitlines()
    assert table[0].startswith("| dataset | per class | arm | seeds | mean | minus plain |") and len(table) == 4
    own, lead = format_mean(np.array(values)), format_difference(np.array([0.1, 0.2, 0.3]), 4)
    assert lead.endswith(", 3 seeds")
    assert table[2] == f"| tiles | 8 | guided | 4 | {own} | {lead} |  | {lead} |  |  |"
    zero = format_difference(np.zeros(4))  # the blank mask with the same schedule
    assert table[3] == f"| tiles | 8 | guided, convex | 4 | {own} | {lead} |  | {zero} |  |  |"


def test_levels_need_a_metric_of_all_runs():
    metrics = {"ap": 0.5, "accuracy": 0.9, "balanced_accuracy": 0.8, "recall_at_false_alarm_rate": 0.25}
    plain = {0: metrics, 1: metrics | {"ap": 0.6}}
    guided = {0: metrics, 1: {name: metrics[name] for name in ("ap", "accuracy", "balanced_accuracy")}}
    places = {("tiles_long", 8): {"plain": plain, "guided": guided}, ("tiles_long", 4): {"plain": plain}}
    assert body(levels_table(run_table(places))) == ["| tiles | 8 | 0.550, 0.500 | 0.900, 0.900 | 0.800, 0.800 |  |"]


def overall_places() -> pd.DataFrame:
    def runs(*aps):
        metrics = ("ap", "auroc", "accuracy", "balanced_accuracy")
        return {seed: dict.fromkeys(metrics, ap) for seed, ap in enumerate(aps)}

    tiles = {"guided": runs(0.5, 0.6, 0.7, 0.8, 0.9, 0.0), "plain": runs(0.4, 0.4, 0.4, 0.4, 0.4)}
    steel = {"guided": runs(0.5, 0.5, 0.5, 0.5, 0.5), "plain": runs(0.5, 0.5, 0.5, 0.5, 0.5, 0.5)}
    few = {"guided": runs(0.9, 0.9), "plain": runs(0.1, 0.1), "blank mask": runs(0.1, 0.1)}
    return run_table({("magnetic_tile", 4): tiles, ("magnetic_tile", 8): {"plain": runs(0.1)},
                      ("steel", 8): steel, ("few", 4): few})  # fmt: skip


def test_overall_each_seed_counts_once():
    lead = format_difference(np.array([0.05, 0.1, 0.15, 0.2, 0.25]))
    zero = format_difference(np.zeros(5))
    expected = {"everywhere | 2": lead, "8 and 16 | 1": zero, "not tiles | 1": zero}
    rows = [f"| plain | {where} | 5 |" + f" {value} |" * 4 for where, value in expected.items()]
    assert body(overall_table(overall_places(), SCOPES)) == rows


def test_headline_is_the_default_minus_its_controls_over_the_goal():
    assert headline_table(overall_places()) == "No runs."
    places = overall_places().replace({"dataset": {"steel": "neu_det_long"}})
    zero = format_difference(np.zeros(5))
    assert body(headline_table(places)) == ["| plain training |" + f" {zero} |" * 4]


def test_evidence_page_holds_the_tables_of_the_stored_runs():
    runs = read_runs(RESULTS / "evidence.jsonl")
    page = (RESULTS.parents[1] / "docs" / "evidence.md").read_text()
    for name, block in {"evidence headline": headline_table(runs), "evidence goal": goal_table(runs)}.items():
        assert replace_block(page, name, block) == page, (
            "run benchmarks/evidence/write_tables.py --into docs/evidence.md"
        )


def test_pages_get_the_blocks_they_have_markers_for(tmp_path, monkeypatch):
    metrics = {"ap": 0.5, "phases": 1, "steps": 4, "seconds": 3.0}
    line = {"arm": "plain", "dataset": "tiles", "budget": 8, "seed": 0, "metrics": metrics}
    (tmp_path / "runs.jsonl").write_text(json.dumps(line))
    all_runs, short, neither = tmp_path / "all.md", tmp_path / "short.md", tmp_path / "neither.md"
    all_runs.write_text("<!-- runs -->\n<!-- /runs -->\n")
    short.write_text("<!-- runs levels -->\n<!-- /runs levels -->\nbelow\n")
    neither.write_text("text\n")
    arguments = ["write_tables.py", str(tmp_path / "runs.jsonl"), "--against", "plain", "--into"]
    monkeypatch.setattr(sys, "argv", [*arguments, str(all_runs), str(short)])
    write_tables.main()
    assert "| plain | 1 | 0.500 | 1 | 4 |  |" in all_runs.read_text() and "levels" not in all_runs.read_text()
    assert "No runs." in short.read_text() and short.read_text().endswith("below\n")
    monkeypatch.setattr(sys, "argv", [*arguments, str(neither)])
    with pytest.raises(SystemExit):
        write_tables.main()
    assert neither.read_text() == "text\n"


def test_unknown_arm_to_compare_with_is_refused(tmp_path, monkeypatch, capsys):
    line = {"arm": "plain", "dataset": "tiles", "budget": 8, "seed": 0, "metrics": {"ap": 0.5}}
    (tmp_path / "runs.jsonl").write_text(json.dumps(line))
    monkeypatch.setattr(sys, "argv", ["write_tables.py", str(tmp_path / "runs.jsonl"), "--against", "plane"])
    with pytest.raises(SystemExit):
        write_tables.main()
    assert "--against plane: no run of that arm" in capsys.readouterr().err
