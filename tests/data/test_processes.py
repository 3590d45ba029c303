"""What processes of several hosts agree on; all of them are played by this one."""

import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import pytest

import kgl.data.processes as processes
from kgl.cli.train import main
from kgl.data.processes import check_equal, is_lost_connection, run_on_all_processes
from kgl.data.storage import lock
from kgl.errors import InputError


SETTINGS = {"data": {"fold": 0, "train_images": "abc"}, "model": {"head": "stages"}}


def play(monkeypatch, *others):
    """Let gathering return this process's object first and then those of others."""
    monkeypatch.setattr(processes, "gather_object", lambda own: [*own, *others])


def refuse(message):
    raise InputError(message)


def test_equal_settings_pass(monkeypatch):
    play(monkeypatch, ("line-2", SETTINGS))
    check_equal(SETTINGS)


def test_other_settings_and_images_name_the_host(monkeypatch):
    play(monkeypatch, ("line-1", SETTINGS), ("line-2", {"data": {"fold": 1, "train_images": "xyz"}} | {"model": {}}))
    with pytest.raises(InputError) as refused:
        check_equal(SETTINGS)
    message = str(refused.value)
    assert f"Process 2 on line-2 was not started like process 0 on {socket.gethostname()}" in message
    assert "fold is 0 there and 1 here; head is 'stages' there and None here" in message
    assert "the images are not the same ones" in message and "abc" not in message


def test_error_of_one_process_is_raised_in_all(monkeypatch):
    play(monkeypatch, ("line-2", None))
    assert run_on_all_processes(lambda: 3) == 3
    with pytest.raises(InputError, match=r"^images: there is no such folder\.$"):
        run_on_all_processes(lambda: refuse("images: there is no such folder."))
    play(monkeypatch, ("line-2", "images: there is no such folder."))
    with pytest.raises(InputError, match=r"^Process 1 on line-2: images: there is no such folder\.$"):
        run_on_all_processes(lambda: 3)


@pytest.mark.parametrize(("is_main", "expected"), [(False, ["ran", "ended with 0"]), (True, ["ran"])])
def test_other_processes_of_a_training_end_at_once(is_main, expected, monkeypatch):
    done = []
    monkeypatch.setattr("kgl.train.run", lambda settings: done.append("ran"))
    monkeypatch.setattr(processes, "PartialState", lambda: SimpleNamespace(is_main_process=is_main))
    monkeypatch.setattr(processes, "end_process", lambda code: done.append(f"ended with {code}"))
    main(["images"])
    assert done == expected


def test_end_of_a_process_runs_exit_functions_and_no_other_clean_up():
    code = (
        "import atexit\n"
        "from kgl.data.processes import end_process\n"
        "class Model:\n"
        "    def __del__(self): print('cleaned up')\n"
        "model = Model()\n"
        "atexit.register(print, 'removed temporary files')\n"
        "print('job')\n"
        "end_process(143)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (143, "job\nremoved temporary files\n"), done.stderr


def test_errors_of_lost_connections_are_known():
    closed = "[../third_party/gloo/gloo/transport/tcp/pair.cc:534] Connection closed by peer [10.0.0.2]:41184"
    assert is_lost_connection(RuntimeError(closed))
    assert not is_lost_connection(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_lock_names_host_and_process(tmp_path):
    held = lock(tmp_path)
    with pytest.raises(
        InputError, match=f"another process is running in it, process {os.getpid()} on {socket.gethostname()}; "
    ):
        lock(tmp_path)
    held.release()
