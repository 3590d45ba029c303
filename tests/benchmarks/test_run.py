"""Command line of the evidence bench, on a task of seconds: 32 px, 4 steps."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from kgl.benchmarks.evidence.bench import Bench
from kgl.benchmarks.evidence.identity import run_identity
from kgl.benchmarks.evidence.priors import CannotShuffleError
from kgl.benchmarks.evidence.records import read_lines, read_runs
from kgl.benchmarks.evidence.run import main
from kgl.benchmarks.evidence.write_tables import all_tables


SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "evidence" / "run.py"


def run_main(monkeypatch, folder: Path, *arguments: str) -> None:
    places = ["--output", str(folder / "runs.jsonl"), "--cache_dir", str(folder)]
    monkeypatch.setattr(sys, "argv", ["run.py", *places, *arguments])
    main()


def test_runs_are_written_once_and_tabulated(tmp_path, monkeypatch):
    arguments = ["--tasks", "smoke", "--budgets", "4", "--seeds", "0", "--arms"]
    command = [sys.executable, str(SCRIPT), "--output", str(tmp_path / "runs.jsonl"), "--cache_dir", str(tmp_path)]
    done = subprocess.run([*command, *arguments, "plain"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    first = read_lines(tmp_path / "runs.jsonl")
    run_main(monkeypatch, tmp_path, *arguments, "plain", "guided")
    both = read_lines(tmp_path / "runs.jsonl")
    assert [line["arm"] for line in both] == ["plain", "guided"] and both[0] == first[0]
    for line in both:
        assert (line["dataset"], line["budget"], line["seed"], line["split"]) == ("smoke", 4, 0, "test")
        assert line["train_images"] == 4 * 3 + 16 and line["test_images"] == 32
        maps = {"map_ap", "gradcam_ap", "saliency_ap", "saliency_area90"}
        assert {"ap", "accuracy", "steps", *maps} <= set(line["metrics"])
    assert [line["metrics"]["phases"] for line in both] == [1, 2]
    assert both[0]["metrics"]["saliency_ap"] != both[1]["metrics"]["saliency_ap"]
    tables = all_tables(read_runs(tmp_path / "runs.jsonl"), ["plain"])
    assert "### smoke, 4 per class" in tables and "| minus plain | seeds |" in tables
    difference = both[1]["metrics"]["ap"] - both[0]["metrics"]["ap"]
    assert f"| guided | 1 | {difference:+.3f} | " in tables  # one seed: no interval
    assert " | 2 | 8 |" in tables and " | 1 | 4 |" in tables  # phases and steps


def test_search_needs_a_fixed_test_fold(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run_main(monkeypatch, tmp_path, "--tasks", "neu_det_long", "--search")
    assert "every fold of the other tasks is tested by some seed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--budgets", "0"], "--budgets 0: it must be at least 1"),
        (["--part", "2"], "--part"),
        (["--part", "2/2"], "--part"),
    ],
)
def test_options_out_of_range_are_refused(arguments, message, tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run_main(monkeypatch, tmp_path, "--tasks", "smoke", *arguments)
    assert message in capsys.readouterr().err


def test_part_takes_every_other_group(tmp_path, monkeypatch):
    monkeypatch.setattr(Bench, "run", lambda bench, arm: {"ap": 0.5})
    run_main(monkeypatch, tmp_path, "--tasks", "smoke", "--budgets", "2", "4", "--seeds", "0", "1", "--arms", "plain",
             "--part", "1/2")  # fmt: skip
    lines = [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()]
    assert [(line["seed"], line["budget"]) for line in lines] == [(0, 4), (1, 4)]


def test_arm_that_cannot_be_shuffled_is_skipped(tmp_path, monkeypatch, capsys):
    def run(bench, arm):
        if arm.prior == "shuffled":
            raise CannotShuffleError("too few.")
        return {"ap": 0.5}

    monkeypatch.setattr(Bench, "run", run)
    arguments = ["--tasks", "smoke", "--budgets", "4", "--seeds", "0", "--arms", "shuffled prior", "plain"]
    run_main(monkeypatch, tmp_path, *arguments)
    assert "smoke  4  0  shuffled prior  skipped: too few.\n" in capsys.readouterr().out
    assert [json.loads(line)["arm"] for line in (tmp_path / "runs.jsonl").read_text().splitlines()] == ["plain"]


def test_results_of_other_settings_are_refused(tmp_path, monkeypatch, capsys):
    line = run_identity("plain", "smoke", 4, 0, search=True, bf16=False) | {"metrics": {}}
    (tmp_path / "runs.jsonl").write_text(json.dumps(line) + "\n")
    arguments = ["--tasks", "smoke", "--budgets", "4", "--seeds", "0", "--arms", "plain"]
    with pytest.raises(SystemExit):
        run_main(monkeypatch, tmp_path, *arguments)
    assert "has a run of 'plain' with other settings" in capsys.readouterr().err
