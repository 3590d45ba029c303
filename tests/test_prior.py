"""The job that makes priors: one process or several, resuming, refusals."""

import os
import subprocess
import sys

import pytest
from datasets import load_from_disk
from tiny import TINY_BACKBONES, launched, tiny_model
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.data.synthetic import CLASSES
from kgl.errors import InputError
from kgl.knowledge.arguments import PriorPassArguments
from kgl.knowledge.prior_columns import PRIOR_COLUMNS
from kgl.prior import main
from kgl.training.model_init import load_classifier


PROCESSOR = ViTImageProcessorPil(size={"height": 32, "width": 64})


def test_one_process_and_two_make_the_same_priors(tmp_path):
    """146 images are three shards, which two processes share."""
    tiny_model(id2label=dict(enumerate(CLASSES))).save_pretrained(tmp_path / "model")
    PROCESSOR.save_pretrained(tmp_path / "model")
    settings = ["--dataset", "surfaces", "--num_surfaces", "219", "--surface_size", "32", "--validation_share", "0"]

    def command(output):
        return ["--model", str(tmp_path / "model"), "--output_dir", str(tmp_path / output),
                "--prior_method", "gradcam", *settings]  # fmt: skip

    def run(launcher, output):
        arguments = [*launcher, "-m", "kgl.prior", *command(output)]
        done = subprocess.run(arguments, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert "images/s" not in done.stderr  # no progress bar without a terminal
        return load_from_disk(tmp_path / output / "priors")

    one, two = run([sys.executable], "one"), run(launched(2), "two")
    assert one.column_names == ["file_name", "digest", *PRIOR_COLUMNS] and len(one) == 146
    assert two[:] == one[:]
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == [
        "priors",
        "priors.json",
        "run.json",
        "run.lock",
        "run.lock.txt",
    ]
    before = (tmp_path / "one" / "priors" / "state.json").stat().st_mtime_ns
    main(command("one"))
    assert (tmp_path / "one" / "priors" / "state.json").stat().st_mtime_ns == before


def test_bad_settings_are_refused(tmp_path, image_folder, capsys):
    (tmp_path / "file").write_text("")
    tiny_model(id2label={0: "good", 1: "scratch"}).save_pretrained(tmp_path / "model")
    PROCESSOR.save_pretrained(tmp_path / "model")
    (tmp_path / "run" / "primary").mkdir(parents=True)
    (tmp_path / "used" / "priors").mkdir(parents=True)
    (tmp_path / "used" / "priors" / "mine.txt").touch()
    given = [str(image_folder), "--model", str(tmp_path / "model"), "--output_dir"]
    for arguments, message in (
        (["--model", str(image_folder)], "not a classifier saved by kgl train"),
        (["--model", str(tmp_path / "run")], f"the folder of a run; give {tmp_path / 'run' / 'primary'}."),
        (["--output_dir", str(tmp_path / "used")], "the folder holds other files"),
        (["--prior_method", "lrp"], "invalid choice: 'lrp'"),
        (
            ["--prior_layers", "nowhere", "--prior_method", "gradcam"],
            "the model has no layer nowhere; its layers with",
        ),
        (["--output_dir", str(tmp_path / "file" / "below")], "cannot be used as a folder"),
    ):
        with pytest.raises(SystemExit) as stopped:
            main([*given, str(tmp_path / "out"), *arguments])
        assert stopped.value.code == 2 and message in capsys.readouterr().err
    with pytest.raises(InputError, match="--batch_size 0"):
        PriorPassArguments(model="m", output_dir="o", batch_size=0)


def test_differences_of_other_settings_are_named(tmp_path, image_folder, capsys):
    for seed, name in enumerate(("one", "two")):
        tiny_model(id2label={0: "good", 1: "scratch"}, seed=seed).save_pretrained(tmp_path / name)
        PROCESSOR.save_pretrained(tmp_path / name)
    given = [str(image_folder), "--output_dir", str(tmp_path / "out"), "--model"]
    main([*given, str(tmp_path / "one")])
    table = (tmp_path / "out" / "priors" / "state.json").stat().st_mtime_ns
    for arguments, message in (
        ([*given, str(tmp_path / "two")], "holds a run with other settings: the model is another one"),
        (
            [*given, str(tmp_path / "one"), "--prior_method", "gradcam", "--fold", "1"],
            "prior_method is 'gradcam++' there and 'gradcam' here",
        ),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        assert message in capsys.readouterr().err
    assert (tmp_path / "out" / "priors" / "state.json").stat().st_mtime_ns == table
    main([*given, str(tmp_path / "one")])
    assert "Priors of " in capsys.readouterr().out


def test_model_of_another_kind_is_refused(tmp_path):
    TINY_BACKBONES["resnet"].save_pretrained(tmp_path / "resnet")
    with pytest.raises(InputError, match="not a classifier saved by kgl train"):
        load_classifier(str(tmp_path / "resnet"))


def test_processes_of_fsdp_are_refused(tmp_path, image_folder):
    """transformers would load the weights in the main process only, and the others would make priors of none."""
    tiny_model(id2label={0: "good", 1: "scratch"}).save_pretrained(tmp_path / "model")
    PROCESSOR.save_pretrained(tmp_path / "model")
    command = [*launched(2), "-m", "kgl.prior", str(image_folder), "--model", str(tmp_path / "model")]
    environment = os.environ | {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}
    done = subprocess.run(
        [*command, "--output_dir", str(tmp_path / "out")], capture_output=True, text=True, env=environment
    )
    assert "accelerate launch --use_fsdp: each process needs the whole model here; leave it out." in done.stderr
    assert not (tmp_path / "out").exists()
