"""Atomic writes, locks and the check of disk space."""

import errno
import shutil

import pytest
from datasets import Dataset, are_progress_bars_disabled, load_from_disk
from safetensors import SafetensorError

from kgl.data import storage
from kgl.data.storage import (
    check_disk_space,
    full_disk_as_input_error,
    lock,
    no_library_progress_bars,
    save_dataset,
    write_json,
    write_text,
)
from kgl.errors import InputError


def test_a_write_that_fails_leaves_the_old_file(tmp_path):
    write_text(tmp_path / "a.txt", "größe")
    with pytest.raises(UnicodeEncodeError):
        write_text(tmp_path / "a.txt", "\udcff")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "größe"
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]
    write_json(tmp_path / "a.json", {"a": 1})
    assert (tmp_path / "a.json").read_text() == '{\n  "a": 1\n}\n'


def test_a_saved_dataset_leaves_nothing_unfinished(tmp_path, capfd):
    (tmp_path / ".rows-unfinished-killed").mkdir()
    save_dataset(Dataset.from_dict({"a": [1, 2]}), tmp_path / "rows")
    assert [path.name for path in tmp_path.iterdir()] == ["rows"]
    assert load_from_disk(tmp_path / "rows")["a"][:] == [1, 2]
    assert capfd.readouterr() == ("", "")


def test_a_dataset_that_cannot_be_saved_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"rows cannot be written: .* make room and run the same command again"):
        save_dataset(Dataset.from_dict({"a": [1, 2]}), tmp_path / "file" / "rows")


def test_progress_bars_are_as_before_afterwards():
    before = are_progress_bars_disabled()
    with pytest.raises(ZeroDivisionError), no_library_progress_bars():
        assert are_progress_bars_disabled()
        raise ZeroDivisionError
    assert are_progress_bars_disabled() == before


def test_too_small_a_disk_is_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(storage.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(1, 1, 2**30))
    check_disk_space(tmp_path, 2**30, "the images", "use fewer")
    with pytest.raises(
        InputError, match=r": the images take 2\.0 GiB and 1\.0 GiB are free; make room, or use fewer\."
    ):
        check_disk_space(tmp_path, 2**31, "the images", "use fewer")


def test_a_locked_folder_is_refused(tmp_path):
    held = lock(tmp_path / "run")
    with pytest.raises(InputError, match=r"--output .*run: another process is running in it"):
        lock(tmp_path / "run", "--output")
    held.release()
    lock(tmp_path / "run").release()
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--output_dir .*file: it cannot be used as a folder"):
        lock(tmp_path / "file")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"),
        RuntimeError("PytorchStreamWriter failed writing file data/1: file write failed"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_full_disk_is_one_sentence_whichever_library_writes(error, tmp_path):
    sentence = r"the disk is full .* GiB are free.*make room"
    with pytest.raises(InputError, match=sentence) as raised, full_disk_as_input_error(tmp_path):
        raise error
    assert str(raised.value).startswith(str(tmp_path)) and raised.value.__cause__ is error


@pytest.mark.parametrize("error", [PermissionError(errno.EACCES, "no"), RuntimeError("shapes"), InputError("mine")])
def test_other_errors_pass_unchanged(error, tmp_path):
    with pytest.raises(type(error)) as raised, full_disk_as_input_error(tmp_path):
        raise error
    assert raised.value is error
