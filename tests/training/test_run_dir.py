"""The run folder: claimed by settings, locked by a process, and the state of its steps."""

import json

import pytest

from kgl.data.storage import lock
from kgl.errors import InputError
from kgl.training.run_dir import RunState, absolute_paths, claim, strip_paths


def test_folder_is_claimed_once(tmp_path):
    (tmp_path / "run.json.unfinished").write_text("{")
    claim(tmp_path, {"data": {"fold": 0}}, started=False)
    claim(tmp_path, {"data": {"fold": 0}}, started=True)
    with pytest.raises(InputError, match="fold is 0 there and 1 here"):
        claim(tmp_path, {"data": {"fold": 1}}, started=True)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json is damaged"):
        claim(tmp_path, {"data": {"fold": 0}}, started=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be used as a folder"):
        claim(tmp_path / "file" / "below", {}, started=False)


def test_settings_of_a_run_without_results_are_replaced(tmp_path):
    claim(tmp_path, {"data": {"fold": 0}}, started=False)
    RunState(tmp_path).finish("cache", seconds=1.0)
    (tmp_path / "cache").mkdir()
    assert RunState(tmp_path).is_empty
    claim(tmp_path, {"data": {"fold": 1}}, started=not RunState(tmp_path).is_empty)
    assert json.loads((tmp_path / "run.json").read_text()) == {"data": {"fold": 1}}
    assert not (tmp_path / "cache").exists() and RunState(tmp_path).record("cache") is None


def test_folder_of_other_files_is_refused(tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="the folder holds other files"):
        claim(tmp_path, {}, started=False)


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
    (tmp_path / "state.json").write_text("{")
    with pytest.raises(InputError, match=r"state\.json is damaged"):
        RunState(tmp_path)


def test_paths_are_stripped_to_names(tmp_path):
    settings = {"data": {"data_dir": str(tmp_path / "parts"), "fold": 0}, "lists": ["~/x/y", "owner/name"]}
    assert strip_paths(settings) == {"data": {"data_dir": "parts", "fold": 0}, "lists": ["y", "owner/name"]}
    assert absolute_paths(settings) == [str(tmp_path / "parts")]
