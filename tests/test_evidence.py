"""The evidence bench on a task of seconds: two arms, one seed, 32 px."""

import json
import subprocess
import sys
from pathlib import Path


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
    assert both[0]["figures"]["ap"] != both[1]["figures"]["ap"]
    tables = subprocess.run(
        [sys.executable, str(BENCHMARKS / "evidence_tables.py"), str(tmp_path / "runs.jsonl")],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert "### smoke, 4 a class" in tables and "| less plain | seeds |" in tables
    difference = both[1]["figures"]["ap"] - both[0]["figures"]["ap"]
    assert f"| guided | 1 | **{difference:+.3f} (" in tables
