"""The list of faults that are injected, and their table."""

from collections import Counter

from kgl.benchmarks.faults import JOBS, faults, part_of, table
from kgl.training.run_dir import RunState


def test_faults_are_the_same_ones_whenever_listed():
    seconds = dict.fromkeys(JOBS, 10.0)
    keys = [keys for keys, _ in faults(5, 2, seconds, 900)]
    assert keys == [keys for keys, _ in faults(5, 2, seconds, 900)]
    assert len({tuple(one.values()) for one in keys}) == len(keys)
    kills = Counter(one["job"] for one in keys if one["fault"] == "SIGKILL")
    assert kills == {"two phases": 5, "tuned stage": 2}


def test_part_of_a_stopped_run(tmp_path):
    state = RunState(tmp_path)
    assert part_of("two phases", tmp_path) == "start and cache"
    for step, part in (("cache", "primary classifier"), ("primary", "priors"), ("priors", "final classifier")):
        state.finish(step)
        assert part_of("two phases", tmp_path) == part


def test_table_counts_parts_and_outcomes():
    lines = [
        {"fault": "SIGKILL", "job": "two phases", "index": index, "part": part, "code": -9, "after": after}
        for index, (part, after) in enumerate([("priors", "the same"), ("priors", "the same"), ("report", "other")])
    ]
    lines.append(
        {"fault": "missing", "job": "two phases", "index": "x", "part": "x", "code": None, "after": "the same"}
    )
    rows = table(lines).splitlines()
    assert rows[-2] == "| two phases | SIGKILL | 3 | priors 2, report 1 | -9 | the same 2, other 1 |"
    assert rows[-1] == "| two phases | missing | 1 | x 1 |  | the same 1 |"
