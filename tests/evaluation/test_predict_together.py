"""`kgl predict` in several processes, as launchers start them: the table and the overlays of one process."""

import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from tiny import make_images, tiny_model
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.cli import data
from kgl.cli.predict import main
from kgl.evaluation.predict_folder import predict_folder


PARENT = Path(__file__).resolve().parents[3]  # of the package


def start(folder, *arguments):
    """Start two processes, each in a folder of its own."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    jobs = []
    for number in range(2):
        variables = {
            "RANK": str(number), "WORLD_SIZE": "2", "LOCAL_RANK": str(number), "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "PYTHONPATH": str(PARENT),
        }  # fmt: skip
        command = [sys.executable, "-m", "kgl.cli.main", "predict", *arguments]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        jobs.append(subprocess.Popen(command, cwd=folder / str(number), env=os.environ | variables, **pipes))
    return jobs


def test_two_processes_predict_like_one(tmp_path, monkeypatch):
    """Three batches, so that one process has none of the last ones, and an image that cannot be read."""
    one = tmp_path / "0"
    make_images(one / "line", good=8, scratched=3)
    (one / "line" / "good" / "8.png").write_bytes(b"no image")
    (one / "line" / "good" / "9.png").symlink_to("nowhere")
    tiny_model(id2label={0: "good", 1: "scratch"}).save_pretrained(one / "model")
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(one / "model")
    shutil.copytree(one, tmp_path / "1", symlinks=True)
    settings = ["--model", "model", "--output", "predicted", "--batch_size", "4"]
    jobs = start(tmp_path, "line", *settings)
    outputs = [job.communicate(timeout=300) for job in jobs]
    assert [job.returncode for job in jobs] == [1, 0], outputs  # the main process names the unusable image
    assert "11 images" in outputs[0][0] and outputs[1][0] == ""
    assert "8.png" in outputs[0][1] and "9.png" in outputs[0][1]
    monkeypatch.chdir(one)
    predict_folder([Path("line")], "model", Path("alone"), batch_size=4)
    files = [
        {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.suffix in (".csv", ".jpg")}
        for folder in (one / "alone", one / "predicted")
    ]
    assert b"8.png,not an image" in files[1].pop(Path("unusable.csv"))  # the command alone writes it
    assert files[0] == files[1] and len(files[0]) == 12
    assert not (tmp_path / "1" / "predicted").exists()


@pytest.mark.parametrize(("images", "difference"), [("line", "the images are not the same"), ("shards", "model is ")])
def test_other_images_and_models_are_refused_before_anything_is_written(images, difference, tmp_path):
    for number in range(2):
        make_images(tmp_path / str(number) / "line", good=4 + number, scratched=3)
        tiny_model(seed=number if images == "shards" else 0).save_pretrained(tmp_path / str(number) / "model")
        ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / str(number) / "model")
        if images == "shards":
            data.main([str(tmp_path / "0" / "line"), "--to_shards", str(tmp_path / str(number) / "shards")])
    jobs = start(tmp_path, images, "--model", "model", "--output", "predicted")
    for job in jobs:
        _, errors = job.communicate(timeout=300)
        assert job.returncode == 2 and difference in errors, errors
    assert not (tmp_path / "0" / "predicted").exists()


def test_watching_is_for_one_process(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr("kgl.data.processes.end_process", sys.exit)
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path), "--model", "model", "--output", str(tmp_path / "out"), "--watch", "1"])
    assert "--watch goes with one process; start it without torchrun" in capsys.readouterr().err
