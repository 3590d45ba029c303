"""The training job stopped, killed, resumed, and run again in the same folder."""

import json
import resource
import shutil
import signal
import subprocess
import time

import pytest
from jobs import run_train, train_command, write_recipe
from PIL import Image
from safetensors.torch import load_file
from tiny import make_images

from kgl.cli.train import main, parse
from kgl.errors import InputError
from kgl.train import run
from kgl.training.run_dir import RunState


def assert_same_weights(out, other):
    expected, found = (load_file(folder / "final" / "model.safetensors") for folder in (out, other))
    for name, weights in expected.items():
        assert (found[name] == weights).all(), name


def test_finished_run_is_not_repeated(finished_run):
    recipe, out, printed = finished_run
    before = {path: path.stat().st_mtime for path in out.rglob("*") if path.name != "run.lock.txt"}  # who holds it
    again = run_train(recipe, "--output_dir", out, "--keep_checkpoints", "true")
    assert again.returncode == 0, again.stderr
    assert "finished before" in again.stdout
    assert again.stdout.splitlines()[-6:] == printed.splitlines()[-6:]  # the same table
    assert {path: path.stat().st_mtime for path in out.rglob("*") if path.name != "run.lock.txt"} == before


def test_other_settings_in_the_same_folder_are_refused_by_name(finished_run):
    recipe, out, _ = finished_run
    with pytest.raises(InputError) as refused:
        run(parse([recipe, "--output_dir", str(out), "--learning_rate", "0.01", "--fold", "1"]))
    assert "fold is 0 there and 1 here" in str(refused.value)
    assert "learning_rate is 0.001 there and 0.01 here" in str(refused.value)
    harmless = ["--logging_steps", "7", "--save_total_limit", "3", "--keep_checkpoints", "true"]
    run(parse([recipe, "--output_dir", str(out), *harmless]))


def test_changed_image_is_another_run(finished_run):
    recipe, out, _ = finished_run
    image = out.parent / "images" / "good" / "0.png"
    kept = image.read_bytes()
    Image.new("L", (48, 40), 3).save(image)
    with pytest.raises(InputError, match=r"the (train|test) images have changed since\. Give another --output_dir"):
        run(parse([recipe, "--output_dir", str(out)]))
    image.write_bytes(kept)


def test_full_disk_is_one_sentence_and_resumes(tmp_path, few_draws, capsys):
    """A limit of file sizes fails like a full disk; as it rises, other kinds of files fail, in the same folder."""
    command = [write_recipe(tmp_path, data_dir=str(make_images(tmp_path / "images"))), "--decode_once", "false"]
    command += ["--output_dir", str(tmp_path / "out"), "--disable_tqdm", "true"]
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    stopped_by = []
    for limit in (200, 4_000, 25_000, 40_000, 150_000, 250_000):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
        try:
            with pytest.raises(SystemExit, match="2"):
                main(command)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        printed = capsys.readouterr().err.splitlines()[-1]
        assert printed.startswith("kgl train: error: ") and str(tmp_path / "out") in printed, printed
        stopped_by.append(printed)
    for error, text in zip(
        stopped_by,
        ("used as a folder", "modeling_kgl.py", "serializing", "unexpected pos", "too large", "too large"),
        strict=True,
    ):
        assert text in error
    main(command)
    assert "Report: " in capsys.readouterr().out


@pytest.mark.parametrize("phase", ["primary", "final"])
def test_killed_run_resumes_to_the_same_weights(finished_run, phase, tmp_path):
    recipe, out, _ = finished_run
    process = subprocess.Popen(train_command(recipe, "--output_dir", tmp_path / "out"), stdout=-3, stderr=-3)
    deadline = time.monotonic() + 120
    while not RunState(tmp_path / "out").checkpoints(phase):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert RunState(tmp_path / "out").record(phase) is None
    resumed = run_train(recipe, "--output_dir", tmp_path / "out")
    assert resumed.returncode == 0, resumed.stderr
    assert f"resumed from {tmp_path / 'out' / phase / 'checkpoint-'}" in resumed.stdout
    assert_same_weights(out, tmp_path / "out")


def test_leftovers_of_a_killed_run_do_no_harm(finished_run, tmp_path):
    """Half-written settings, priors and checkpoints, as a kill at the worst moments leaves them."""
    recipe, out, _ = finished_run
    half = tmp_path / "out"
    shutil.copytree(out / "primary", half / "primary")
    shutil.copy(out / "run.json", half / "run.json")
    state = json.loads((out / "state.json").read_text())
    state["steps"] = {name: state["steps"][name] for name in ("cache", "primary")}
    (half / "state.json").write_text(json.dumps(state))
    (half / "run.json.unfinished").write_text("{")
    (half / ".priors-unfinished-abc" / "priors").mkdir(parents=True)
    (half / "priors.json").write_text('{"seconds": 1}')
    (half / "final" / "checkpoint-3").mkdir(parents=True)
    resumed = run_train(recipe, "--output_dir", half)
    assert resumed.returncode == 0, resumed.stderr
    assert "Phase 1, primary classifier: finished before" in resumed.stdout
    assert not (half / ".priors-unfinished-abc").exists()
    assert_same_weights(out, half)


def test_priors_of_another_image_size_are_refused(finished_run, tmp_path):
    recipe, out, _ = finished_run
    shutil.copytree(out, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "final")
    state = json.loads((tmp_path / "out" / "state.json").read_text())
    state["steps"] = {name: state["steps"][name] for name in ("cache", "primary")}
    (tmp_path / "out" / "state.json").write_text(json.dumps(state))
    stored = json.loads((tmp_path / "out" / "run.json").read_text())
    stored["model"]["image_height"] = 64
    (tmp_path / "out" / "run.json").write_text(json.dumps(stored))
    with pytest.raises(InputError, match="priors holds"):
        run(parse([recipe, "--output_dir", str(tmp_path / "out"), "--image_height", "64"]))


def test_old_checkpoints_are_deleted_while_training(finished_run, tmp_path, few_draws):
    recipe, out, _ = finished_run
    kept = ["--save_total_limit", "1", "--keep_checkpoints", "true"]
    run(parse([recipe, "--output_dir", str(tmp_path / "out"), *kept]))
    assert {path.name for path in (out / "final").glob("checkpoint-*")} == {"checkpoint-6", "checkpoint-9"}
    assert {path.name for path in (tmp_path / "out" / "final").glob("checkpoint-*")} == {"checkpoint-9"}
