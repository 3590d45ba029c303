"""The run folder: claimed by settings, locked by a process, and the state of its steps."""

import json
from pathlib import Path

import pytest

from kgl.data.storage import lock
from kgl.errors import InputError
from kgl.training.run_dir import RunState, absolute_paths, claim, strip_paths


RUN = {"data": {"fold": 0, "data_dir": "images"}}
OTHER = {"data": {"fold": 1, "data_dir": "images"}}


def test_folder_is_claimed_once(tmp_path):
    (tmp_path / "run.json.unfinished").write_text("{")
    claim(tmp_path, RUN).release()
    (tmp_path / "metrics.json").write_text("{}")
    claim(tmp_path, RUN).release()
    with pytest.raises(InputError, match="fold is 0 there and 1 here"):
        claim(tmp_path, OTHER)
    claim(tmp_path, {"data": {"fold": 0, "data_dir": "./images/"}}, ignored=("data_dir",)).release()
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json is damaged"):
        claim(tmp_path, RUN)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be used as a folder"):
        claim(tmp_path / "file" / "below", {})


def test_changed_thresholds_are_rounded_and_their_cause_is_named(tmp_path):
    before = {"predictions": {"threshold": 0.25729004776154174, "look_again_threshold": None, "box_threshold": 0.0}}
    claim(tmp_path, before).release()
    (tmp_path / "predictions.csv").touch()
    with pytest.raises(InputError) as refused:
        claim(tmp_path, {"predictions": {"threshold": 0.5, "look_again_threshold": 0.2, "box_threshold": 1e-12}})
    for said in (
        "threshold is 0.2573 there and 0.5 here; ",
        "look_again_threshold is not set there and 0.2 here; ",
        "box_threshold is 0.0 there and 1e-12 here; ",
        "most likely kgl threshold was run in between. Give another",
    ):
        assert said in str(refused.value)
    with pytest.raises(InputError, match=r"threshold is 0\.25729004776154174 there and 0\.2573 here"):
        claim(tmp_path, {"predictions": before["predictions"] | {"threshold": 0.2573}})


def test_folder_that_datasets_cannot_read_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"--output a::b: .* with :: in its path; rename it"):
        claim(Path("a::b"), {}, flag="--output")
    assert not Path("a::b").exists()


def test_settings_are_compared_as_json(tmp_path):
    for _ in range(2):
        claim(tmp_path, {"data": {"size": (40, 48), "folder": tmp_path}}).release()


def test_settings_of_a_run_without_results_are_replaced(tmp_path):
    claim(tmp_path, RUN).release()
    RunState(tmp_path).finish("cache", seconds=1.0)
    (tmp_path / "cache").mkdir()
    (tmp_path / "primary").mkdir()  # made by a Trainer that wrote nothing yet
    assert RunState(tmp_path).is_empty
    claim(tmp_path, OTHER).release()
    assert json.loads((tmp_path / "run.json").read_text()) == OTHER
    assert not (tmp_path / "cache").exists() and RunState(tmp_path).record("cache") is None


@pytest.mark.parametrize("result", ["state", "checkpoint", "file"])
def test_settings_of_a_run_with_results_stay(tmp_path, result):
    claim(tmp_path, RUN).release()
    if result == "state":
        RunState(tmp_path).finish("primary", seconds=1.0)
    elif result == "checkpoint":
        RunState(tmp_path).set_checkpoints("primary", [{"step": 1, "seconds": 1.0}])
    else:
        (tmp_path / "predictions.csv").write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(InputError, match="fold is 0 there and 1 here"):
        claim(tmp_path, OTHER)
    assert {path: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_folder_of_another_command_is_refused(tmp_path):
    """`kgl predict` into a run that has only been trained to phase 1, and the other way round."""
    claim(tmp_path, RUN).release()
    RunState(tmp_path).finish("cache", seconds=1.0)
    with pytest.raises(InputError, match=r"--output .* holds the files of another command"):
        claim(tmp_path, {"predictions": {"model": "x"}}, flag="--output")
    assert RunState(tmp_path).record("cache") == {"seconds": 1.0}


def test_refused_folder_is_left_as_it_was(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="the folder holds other files"):
        claim(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_second_job_does_not_touch_a_running_one(tmp_path):
    held = claim(tmp_path, RUN)
    RunState(tmp_path).finish("cache", seconds=1.0)
    (tmp_path / "cache").mkdir()
    with pytest.raises(InputError, match="another process"):
        claim(tmp_path, OTHER)
    assert json.loads((tmp_path / "run.json").read_text()) == RUN and (tmp_path / "cache").exists()
    held.release()


def test_one_process_per_folder(tmp_path):
    held = lock(tmp_path)
    with pytest.raises(InputError, match="another process"):
        lock(tmp_path)
    held.release()
    lock(tmp_path).release()


def test_state_is_read_back(tmp_path):
    state = RunState(tmp_path)
    state.set_checkpoints("primary", [{"step": 3, "seconds": 1.5}, {"step": 6, "seconds": 3.0}])
    assert RunState(tmp_path).checkpoints("primary")[-1] == {"step": 6, "seconds": 3.0}
    assert not RunState(tmp_path).is_empty
    state.finish("primary", seconds=4.0, steps=9)
    reread = RunState(tmp_path)
    assert reread.record("primary") == {"seconds": 4.0, "steps": 9} and reread.checkpoints("primary") == []
    assert reread.record("final") is None


def test_only_the_main_process_writes_the_state(tmp_path):
    RunState(tmp_path, is_main_process=False).finish("primary", seconds=4.0)
    assert not (tmp_path / "state.json").exists()


def test_damaged_state_is_named(tmp_path):
    for content in ("{", "[]", '{"_data_files": []}'):  # the last is a saved dataset's
        (tmp_path / "state.json").write_text(content)
        with pytest.raises(InputError, match=r"state\.json is damaged"):
            RunState(tmp_path)


def test_paths_are_stripped_to_names(tmp_path):
    settings = {"data": {"data_dir": str(tmp_path / "parts"), "fold": 0}, "lists": ["~/x/y", "owner/name"]}
    assert strip_paths(settings) == {"data": {"data_dir": "parts", "fold": 0}, "lists": ["y", "owner/name"]}
    assert absolute_paths(settings) == [str(tmp_path / "parts")]


def test_names_are_no_paths():
    settings = {"data": {"defect_free_label": "/ok", "label_column": "~/x", "grade_names": ["/ok", "/bad"]}}
    assert strip_paths(settings) == settings and absolute_paths(settings) == []


def test_folder_of_a_split_is_named_with_the_one_above(tmp_path):
    assert strip_paths(str(tmp_path / "parts" / "train")) == "parts"
    assert strip_paths("~/parts/Train/good") == "good"
