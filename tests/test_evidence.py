"""The evidence bench on a task of seconds: two arms, one seed, 32 px."""

import json
import subprocess
import sys
from pathlib import Path

import evidence_curves
import numpy as np
import pytest
from evidence import ARMS, SEARCHED, Bench, _identity, main
from evidence_tables import goal_table, interval, put_between, read, told
from PIL import Image
from scipy import stats

from kgl.schema import mask_array, mask_on_grid


BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


def test_two_arms_once_and_not_again(tmp_path):
    def bench(*arms):
        command = [sys.executable, str(BENCHMARKS / "evidence.py"), "--tasks", "smoke", "--budgets", "4",
                   "--seeds", "0",
                   "--output", str(tmp_path / "runs.jsonl"), "--cache_dir", str(tmp_path / "cache"),
                   "--arms", *arms]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]

    first = bench("plain")
    both = bench("plain", "guided")
    assert [line["arm"] for line in both] == ["plain", "guided"] and both[0] == first[0]
    for line in both:
        assert (line["dataset"], line["budget"], line["seed"], line["split"]) == ("smoke", 4, 0, "test")
        assert line["pictures"] == 4 * 3 + 16 and line["judged"] == 32
        assert {"ap", "accuracy", "map_ap", "saliency_ap", "saliency_area90", "steps"} <= set(line["figures"])
    assert [line["figures"]["phases"] for line in both] == [1, 2]
    assert both[0]["figures"]["saliency_ap"] != both[1]["figures"]["saliency_ap"]
    tables = subprocess.run(
        [sys.executable, str(BENCHMARKS / "evidence_tables.py"), str(tmp_path / "runs.jsonl")],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "### smoke, 4 a class" in tables and "| less plain | seeds |" in tables
    difference = both[1]["figures"]["ap"] - both[0]["figures"]["ap"]
    assert f"| guided | 1 | {difference:+.3f} | " in tables  # one seed: no interval
    wall = 1 + both[1]["figures"]["seconds"] / both[0]["figures"]["seconds"]
    assert f" | 2.0 | {wall:.2f} |" in tables and " | 1.0 | 1.00 |" in tables


def test_intervals_are_student_s():
    values = np.array([0.1, 0.2, 0.4, 0.1, 0.3])
    low, high = stats.ttest_1samp(values, 0).confidence_interval()
    assert interval(values) == pytest.approx((low, high))
    assert told(values, "+") == f"**+0.220 ({low:+.3f} .. {high:+.3f})**"
    assert told(-values - 0.3) == f"-0.520 ({-high - 0.3:.3f} .. {-low - 0.3:.3f})"
    assert interval(values[:2]) is None


def test_the_goal_compares_the_default_with_its_controls(tmp_path):
    def line(arm, seed, ap):
        length = 2 if "twice" in arm else 1
        figures = {"ap": ap, "accuracy": 0.5, "map_ap": 0.2, "saliency_ap": 0.3, "seconds": length, "phases": 2}
        named = {"arm": arm, "dataset": "tiles", "budget": 8, "seed": seed}
        return json.dumps(named | {"figures": figures, "settings": {"length": length, "rounds": 1}})

    lines = [
        line(arm, seed, ap + seed / 10)
        for seed in (0, 1)
        for arm, ap in [("plain", 0.2), ("blank mask", 0.25), ("plain, twice as long", 0.3), ("guided", 0.4)]
    ]
    path = tmp_path / "runs.jsonl"
    path.write_text("\n".join([*lines, line("guided", 2, 0.9)]))  # the third seed has no control
    cells = "| tiles | 8 | 2 | 0.450 | +0.100 | +0.150 | +0.000 | +0.000 | 0.300 | +0.100 | 1.50 |"
    assert goal_table(read(path)).splitlines()[2:] == [cells]


def test_tables_take_the_place_of_the_old_ones():
    page = "text\n<!-- runs -->\n| old |\n<!-- /runs -->\nmore\n"
    assert put_between(page, "runs", "| new |") == "text\n<!-- runs -->\n\n| new |\n\n<!-- /runs -->\nmore\n"
    with pytest.raises(ValueError, match="no <!-- others -->"):
        put_between(page, "others", "| new |")


def test_every_kind_of_arm(tmp_path):
    """In one process; what an arm is taught is what its name says."""
    bench = Bench("smoke", 4, 0, False, False, tmp_path)
    names, good = bench.train.features["label"].names, "good"
    labels = np.asarray(bench.train["label"])
    defective = np.array([names[label] != good for label in labels])
    assert not set(bench.train["group"]) & set(bench.judged["group"])
    arms = ARMS | SEARCHED
    for name in ("plain, early-stopped", "self-distillation", "guided, two rounds", "guided, averaged primary",
                 "guided, attention", "guided, drop wrong"):  # fmt: skip
        assert 0 <= bench.run(arms[name])["ap"] <= 1
    primary = bench._primary("all", bench.train, ARMS["guided"])

    def priors(arm):
        rows = bench._with_priors(arms[arm], primary)
        assert rows["index"] == bench.train["index"]
        return np.asarray(rows["saliency_prior"]), np.asarray(rows["prior_weight"])

    own, weight = priors("guided")
    assert own[defective].max(axis=(1, 2)).min() == 255 and own[~defective].max() == 0 and (weight == 1).all()
    assert priors("blank mask")[0].max() == 0
    shuffled, _ = priors("shuffled prior")
    for label in set(labels[defective]):
        of_class = np.flatnonzero(labels == label)
        assert sorted(map(bytes, own[of_class])) == sorted(map(bytes, shuffled[of_class]))
    assert not any(np.array_equal(one, other) for one, other in zip(own[defective], shuffled[defective], strict=True))
    masks, weight = priors("guided, true masks")
    grid = own.shape[1:]
    truth = [mask_on_grid(mask_array(mask, (32, 32))[None], grid)[0] for mask in bench.train["mask"]]
    assert np.array_equal(masks > 0, np.stack(truth)) and (weight == 1).all()
    five, _ = priors("guided, 5 masks")
    known = [at for at in np.flatnonzero(defective) if np.array_equal(five[at], masks[at])]
    assert len(known) == 5 and set(labels[known]) == set(labels[defective])  # all classes have some
    one, _ = priors("guided, 1 mask")
    assert {at for at in np.flatnonzero(defective) if np.array_equal(one[at], masks[at])} < set(known)


def test_the_search_never_sees_what_is_tested(tmp_path):
    searched, tested = Bench("smoke", 4, 3, True, False, tmp_path), Bench("smoke", 4, 5, False, False, tmp_path)
    assert not set(searched.judged["digest"]) & set(tested.judged["digest"])
    assert not set(searched.train["digest"]) & set(tested.judged["digest"])


def test_a_file_of_other_settings_is_refused(tmp_path, monkeypatch, capsys):
    line = _identity("plain", "smoke", 4, 0, search=True, bf16=False) | {"figures": {}}
    (tmp_path / "runs.jsonl").write_text(json.dumps(line) + "\n")
    arguments = ["--tasks", "smoke", "--budgets", "4", "--seeds", "0", "--arms", "plain"]
    monkeypatch.setattr(sys, "argv", ["evidence.py", *arguments, "--output", str(tmp_path / "runs.jsonl")])
    with pytest.raises(SystemExit):
        main()
    assert "has a run of 'plain' with other settings" in capsys.readouterr().err


def test_curves_of_what_there_is(tmp_path, monkeypatch):
    def runs(dataset, budget, arms, steps):
        figures = {"ap": 0.5, "saliency_ap": 0.1, "steps": steps, "phases": 1, "seconds": 1.0}
        settings = {"length": 1, "rounds": 1}
        line = {"dataset": dataset, "budget": budget, "figures": figures, "settings": settings}
        return [json.dumps(line | {"arm": arm, "seed": seed}) for arm in arms for seed in range(3)]

    arms = list(evidence_curves.STYLES)
    searched = [*runs("magnetic_tile", 16, arms, 200), *runs("magnetic_tile_long", 16, arms, 500)]
    tested = [*runs("neu_det_long", 8, arms, 500), *runs("neu_det_long", 16, ["plain", "guided, head alone"], 500)]
    (tmp_path / "search.jsonl").write_text("\n".join(searched))
    (tmp_path / "evidence.jsonl").write_text("\n".join(tested))
    monkeypatch.setattr(evidence_curves, "RESULTS", tmp_path)
    monkeypatch.setattr(sys, "argv", ["evidence_curves.py", "--output", str(tmp_path / "curves.png")])
    drawn = []
    draw = evidence_curves.draw_curve
    monkeypatch.setattr(
        evidence_curves,
        "draw_curve",
        lambda axes, points, arm, shift: (drawn.append((arm, list(points))), draw(axes, points, arm, shift)),
    )
    evidence_curves.main()
    assert ("plain", [8, 16]) in drawn and ("guided", [8]) in drawn and ("guided", [200, 500]) in drawn
    assert Image.open(tmp_path / "curves.png").width > 300
