"""The samples, tables and checks of the soak."""

import os
import threading

import numpy as np
import pytest

from kgl.benchmarks import soak
from kgl.benchmarks.evidence.records import append_lines, stored_lines
from kgl.benchmarks.soak import condense, count_runs, growth, growth_table, read_process, requests_table, sample
from kgl.benchmarks.soak_requests import Request, Upload, check_limit, check_queue, count_requests, judge


CARD = """<article class="card wide" data-score="%s" data-decision="good">
<h3>%s</h3><p class="line">Most probable class: <b>%s</b> 0.9</p></article>"""
PROBLEM = '<p class="problem" role="alert"><b>%s</b> was left out: the file is damaged. Save it again.</p>'


def test_what_this_process_holds_is_read():
    before = read_process(os.getpid())
    held, event = np.ones(20_000_000), threading.Event()
    thread = threading.Thread(target=event.wait)
    thread.start()
    with open(__file__), open(__file__):
        after = read_process(os.getpid())
    event.set()
    thread.join()
    for memory in ("resident", "anonymous"):
        assert after[memory] - before[memory] == pytest.approx(held.nbytes / 2**20, abs=20)
    assert (after["files"], after["threads"]) == (before["files"] + 2, before["threads"] + 1)


def test_samples_are_appended(tmp_path, monkeypatch):
    monkeypatch.setattr(soak, "_SAMPLE_EVERY", 0.1)
    sample({"this": os.getpid()}, 0.001, tmp_path / "samples.jsonl")
    (line,) = stored_lines(tmp_path / "samples.jsonl")
    assert line["process"] == "this" and line["resident"] > 50 and line["threads"] >= 1


def samples(slope: float, files: int = 10) -> list[dict]:
    """Two hours of samples of a process that grows by `slope` MiB an hour from 400 MiB, and opens files at last."""
    return [
        {"process": "app", "seconds": second, "resident": 400 + slope * second / 3600, "anonymous": 300.0,
         "files": 10 if second < 6000 else files, "threads": 7, "cpu": second / 4}
        for second in range(0, 7200, 10)
    ]  # fmt: skip


def test_table_tells_flat_from_growing():
    lines = condense(samples(6.0))
    assert len(lines) == 120
    row = growth_table(lines).splitlines()[2]
    assert row.startswith(
        "| app | 402 MiB | 411 MiB | +9.6 MiB, +2.4% | +6.0 (+6.0 .. +6.0) MiB | 10, 10 | 7, 7 | yes |"
    )
    assert row.endswith("| 0.25 cores |")
    assert "| no |" in growth_table(condense(samples(15.0)))
    assert "| yes |" in growth_table(condense(samples(0.0, files=12)))
    assert "| no |" in growth_table(condense(samples(0.0, files=13)))


def test_growth_has_an_interval_of_its_noise():
    minutes = np.arange(120.0)
    found = growth(minutes, 100 + minutes + np.random.default_rng(0).normal(0, 20, 120))
    assert found["low"] < 60 < found["high"] and 1 < found["high"] - found["low"] < 60


def test_other_results_and_failures_of_training_are_counted(tmp_path):
    lines = [("a", 0, "x"), ("a", 1, "y"), ("a", 0, "x"), ("a", 0, "z"), ("a", 1, None), ("b", 1, "x")]
    append_lines(tmp_path / "runs.jsonl", *(dict(zip(("job", "seed", "digest"), line, strict=True)) for line in lines))
    found = count_runs(tmp_path)
    assert (found["runs"], found["failed"], found["other_results"]) == (6, 1, 1)


def test_answers_on_the_page_are_compared():
    sent = {
        "a.png": Upload(".png", b"", "good", 0.25), "b.png": Upload(".png", b"", problem="the file is damaged"),
    }  # fmt: skip
    page = CARD % (0.25, "a.png", "good") + PROBLEM % "b.png"
    assert judge(page, sent) == ""
    assert "0.26" in judge(page.replace("0.25", "0.26"), sent)
    assert "pit" in judge(page.replace("<b>good", "<b>pit"), sent)
    assert "a.png" in judge(PROBLEM % "b.png", sent)
    assert "b.png" in judge(CARD % (0.25, "a.png", "good") + CARD % (0.25, "b.png", "good"), sent)
    assert "damaged" in judge(page.replace("damaged", "too large"), sent)
    assert "c.png" in judge(page.replace("b.png", "c.png"), sent)


def test_requests_above_and_below_a_limit_are_found():
    def request(second: float, outcome: str = "answered", units: int = 1) -> Request:
        return Request("uploads above the rate", "127.0.0.6", units, second, second + 1, outcome)

    right = [request(0), request(10), request(20), request(30, "refused"), request(62)]
    assert check_limit(right, 3) == {"above": 0, "below": 0}
    assert check_limit([*right, request(31)], 3) == {"above": 2, "below": 0}
    assert check_limit([*right, request(90, "refused")], 3) == {"above": 0, "below": 1}
    assert check_limit([request(0, units=2), request(10, "refused", 2)], 3) == {"above": 0, "below": 0}
    assert check_limit([request(0, units=2), request(10, "refused", 1)], 3) == {"above": 0, "below": 1}


def test_refusals_of_a_queue_with_room_are_found():
    def request(sent: float, answered: float, outcome: str = "answered") -> Request:
        return Request("images", "127.0.0.2", 1, sent, answered, outcome, queued=True)

    waiting = [request(0, 10), request(1, 0, "left"), Request("page", "127.0.0.2", 1, 0, 10, "answered")]
    refused = [request(5, 6, "queue full"), request(5, 6, "queue full")]
    assert check_queue([*waiting, *refused], 2) == 0
    assert check_queue([*waiting, *refused], 3) == 2
    assert check_queue([*waiting, request(30, 31, "queue full")], 2) == 1
    assert check_queue([*waiting, request(30, 31, "queue full"), request(90, 91, "queue full")], 1) == 1


def test_table_counts_every_request():
    requests = [Request("images", "127.0.0.2", 1, 0.0, 1.0, outcome) for outcome in ("answered", "wrong", "lost")]
    requests.append(Request("uploads above the rate", "127.0.0.6", 1, 0.0, 1.0, "refused"))
    rows = requests_table(count_requests(requests)).splitlines()
    assert rows[2] == "| images | 3 | 1 | 0 | 0 | 0 | 1 | 1 |  |"
    assert rows[3] == "| uploads above the rate | 1 | 0 | 1 | 0 | 0 | 0 | 0 | 0 admitted above, 1 refused below |"
