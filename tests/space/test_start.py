"""Arguments and variables of the app are checked before it serves anything."""

import argparse
import os
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from space_server import ROOT, app_command, save_model, stored_names
from tiny import tiny_model

import app
import quotas
from input_error import InputError


def arguments(model: object, **others: object) -> argparse.Namespace:
    settings = {"model": model, "trust_remote_code": True, "labelled": None, "examples": None} | others
    return argparse.Namespace(**settings)


def test_inputs_are_checked(tmp_path, auto_image_processor):
    folder = save_model(tmp_path / "model")
    table = tmp_path / "table.csv"
    table.write_text("label\ngood\n")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.png").write_bytes(b"broken")
    weights = save_model(tmp_path / "cut") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    code = save_model(tmp_path / "raises") / "modeling_kgl.py"
    code.write_text(f"{code.read_text()}\nraise RuntimeError(7)\n")
    (tmp_path / "run" / "final").mkdir(parents=True)
    no_decision = save_model(tmp_path / "all_defects", defect_free_label=None)
    for args, message in (
        (arguments(None), "--model: give a folder"),
        (arguments(tmp_path / "cut"), "--model .*cut: not a loadable model .* deserializing header"),
        (arguments(tmp_path / "raises"), "--model .*raises: not a loadable model of kgl. RuntimeError: 7$"),
        (arguments(folder, trust_remote_code=False), "--trust_remote_code: a model's folder holds code"),
        (arguments(str(tmp_path / "none")), "--model .*none: not a loadable model"),
        (arguments("owner/none"), "--model owner/none: not a loadable model"),
        (arguments(tmp_path / "run"), "--model .*run: this is the folder of a run. Use .*run/final"),
        (arguments(folder, labelled=tmp_path / "none.csv"), "--labelled .*none.csv: there is no such file"),
        (arguments(folder, examples=tmp_path / "none"), "--examples .*none: there is no such folder"),
        (arguments(folder, examples=tmp_path / "broken"), r"--examples .*a\.png: the file is not a readable image"),
        (arguments(folder, labelled=table), "--labelled .*table.csv: it has neither column"),
        (arguments(no_decision, labelled=table), "--labelled: the model has no defect-free class"),
    ):
        with pytest.raises(InputError, match=message) as refused:
            app.read_inputs(args)
        assert "\n" not in str(refused.value) and "Traceback" not in str(refused.value)


def test_inputs_are_read(tmp_path, auto_image_processor):
    table = tmp_path / "table.csv"
    table.write_text("label,defect_score\ngood,0.25\n")
    inputs = app.read_inputs(arguments(save_model(tmp_path / "model"), labelled=table))
    assert inputs.pipeline.model.config.defect_free_label == "good"
    assert inputs.labelled_set.name == "table.csv" and inputs.labelled_set.scores.tolist() == [0.25]
    assert [example.path.parent for example in inputs.examples] == [ROOT / "examples"] * 6


def test_no_pickle_is_loaded(tmp_path, auto_image_processor):
    import torch

    folder = save_model(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save(tiny_model().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"not a loadable model.*safetensors"):
        app.load_pipeline(str(folder), True)


def test_app_without_trust_does_not_start(tmp_path):
    command, environment = app_command(tmp_path, "--model", str(tmp_path))
    process = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert process.returncode == 2 and "Traceback" not in process.stderr
    assert process.stderr.startswith("app.py: error: --trust_remote_code: ") and process.stderr.count("\n") == 1
    assert stored_names(tmp_path) == []


def test_module_names_hide_no_other_module():
    """`python space/app.py` puts the folder first on `sys.path`."""
    names = {path.stem for path in (ROOT / "space").glob("*.py")}
    others = {path.stem for folder in ("tests", "benchmarks") for path in Path(ROOT, folder).iterdir()}
    assert len(names) > 5 and not names & (set(sys.stdlib_module_names) | set(packages_distributions()) | others)


def test_space_imports_nothing_of_kgl():
    for path in (ROOT / "space").glob("*.py"):
        lines = path.read_text("utf-8").splitlines()
        assert not [line for line in lines if line.strip().startswith(("import kgl", "from kgl", "from ."))]


def test_documented_commands_and_limits():
    text = (ROOT / "docs" / "space.md").read_text("utf-8")
    commands = [line.split("space/app.py ")[1] for line in text.splitlines() if "python space/app.py " in line]
    for command in commands:
        assert app.parse_arguments(command.split()).model
    assert len(commands) == 1
    for limit in (
        f"{quotas.MAX_FILE_BYTES // 1_000_000} MB;", f"{quotas.MAX_IMAGE_PIXELS // 1_000_000} million pixels",
        f"at least {quotas.MIN_IMAGE_SIDE} on", f"at once | {quotas.MAX_IMAGES_PER_REQUEST} |",
        f"client | {quotas.MAX_IMAGES_PER_MINUTE} |", f"client | {quotas.MAX_UPLOADS_PER_MINUTE} |",
        f"{quotas.MAX_STORED_BYTES // 1_000_000_000} GB in all", f"labelled set | {quotas.MAX_LABELLED_ROWS:,} |",
        f"waiting | {quotas.MAX_QUEUED_REQUESTS} |",
    ):  # fmt: skip
        assert limit in text
    assert (quotas.UPLOAD_SECONDS, quotas.LEFTOVER_SECONDS) == (600, 660)  # "ten minutes", "a minute later"


def test_space_settings_fit_the_folder():
    _, settings, _ = (ROOT / "space" / "README.md").read_text("utf-8").split("---\n", 2)
    settings = yaml.safe_load(settings)
    assert (ROOT / "space" / settings["app_file"]).is_file() and len(settings["short_description"]) <= 60
    lines = (ROOT / "space" / "requirements.txt").read_text().splitlines()
    gradio = next(one for one in map(Requirement, lines) if one.name == "gradio")
    assert gradio.specifier.contains(settings["sdk_version"])


def test_home_that_cannot_be_written(monkeypatch):
    monkeypatch.setenv("HOME", "/dev/null/home")
    monkeypatch.delenv("HF_HOME", raising=False)
    app._make_cache_writable()
    assert Path(os.environ["HF_HOME"]).is_dir() and not os.environ["HF_HOME"].startswith("/dev/null")


def test_home_is_expanded_in_paths(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    args = app.parse_arguments(["--model=~/final", "--labelled=~/table.csv", "--examples=~/examples"])
    assert (args.model, args.labelled) == (str(tmp_path / "final"), tmp_path / "table.csv")
    assert args.examples == tmp_path / "examples"
