"""Inputs and settings that the training job refuses, in one sentence and before it claims its folder."""

import re

import pytest
from jobs import run_train, write_recipe
from tiny import make_images

from kgl.cli.train import main, parse
from kgl.errors import InputError
from kgl.train import run


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data_dir", "/nowhere"], "there is no such folder"),
        (["--backbone_config", '{"model_type": "bert"}'], "cannot be the backbone"),
        (["--backbone_config", '{"model_type": "resnet", "depths": "deep"}'], "--backbone_config"),
        (["--out_features", "stage7"], "stage7"),
        (["--image_height", "0"], "at least one pixel"),
        (["--fusion_size", "0"], "fusion_size=0"),
        (["--num_folds", "1"], "--num_folds 1"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, message, tmp_path, capsys):
    recipe = write_recipe(tmp_path, data_dir=str(make_images(tmp_path / "images")))
    with pytest.raises(SystemExit) as stopped:
        main([recipe, "--output_dir", str(tmp_path / "out"), *arguments])
    assert stopped.value.code == 2
    printed = capsys.readouterr().err
    assert message in printed and printed.splitlines()[-1].startswith("kgl train: error: ")
    assert not (tmp_path / "out").exists()  # a run that cannot start claims no folder


def test_folder_of_other_files_is_refused(finished_run, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    refused = run_train(finished_run[0], "--output_dir", tmp_path)
    assert refused.returncode == 2 and "holds other files" in refused.stderr and "Traceback" not in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--eval_strategy", "epoch"], "used once, at the end"),
        (["--save_only_model", "true"], "cannot be resumed"),
        (["--resume_from_checkpoint", "x"], "resumes from its last checkpoint"),
        (["--load_best_model_at_end", "true", "--save_strategy", "no"], "the last weights are taken"),
        (["--do_train", "true"], "--do_train: it has no effect"),
        (["--per_device_eval_batch_size", "0"], "--per_device_eval_batch_size 0"),
        (["--learning_rate", "-1"], "--learning_rate -1"),
        (["--backbone", "/nowhere"], "Give either --backbone"),
        (["--kg_form", "convex", "--kg_lambda", "3"], r"--kg_lambda 3\.0: it must lie in 0\.\.1"),
        (["--warmup_steps", "-1"], "warmup_steps"),
        (["--head", "most"], "argument --head: invalid choice: 'most'"),
        (["--miss_cost", "20", "--wanted_recall", "0.9"], "give one of them"),
    ],
)
def test_unusable_settings_are_named(arguments, message, tmp_path):
    recipe = write_recipe(tmp_path, data_dir="images")
    with pytest.raises(InputError, match=message):
        run(parse([recipe, "--output_dir", str(tmp_path / "out"), *arguments]))


def test_output_folder_is_named_after_the_images(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make_images(tmp_path / "my parts")
    recipe = write_recipe(tmp_path, data_dir="my parts", num_train_epochs=1)
    run(parse([recipe]))
    assert (tmp_path / "runs" / "my_parts" / "metrics.json").exists()


def test_what_cannot_work_is_known_before_the_folder_is_claimed(tmp_path):
    recipe = write_recipe(tmp_path, data_dir=str(make_images(tmp_path / "images")), output_dir=str(tmp_path / "out"))
    for wrong, message in (
        (["--prior_source", "good_parts"], "--prior_source good_parts goes with --backbone"),
        (["--prior_method", "gradcam", "--prior_layers", "nowhere"], "the model has no layer nowhere"),
    ):
        with pytest.raises(InputError, match=re.escape(message)):
            run(parse([recipe, *wrong]))
        assert not (tmp_path / "out").exists()


def test_run_that_failed_before_training_leaves_its_folder_free(tmp_path, monkeypatch):
    recipe = write_recipe(
        tmp_path, data_dir=str(make_images(tmp_path / "images")), output_dir=str(tmp_path / "out"), num_train_epochs=1
    )

    def no_space(*args, **kwargs):
        raise InputError("there is no space.")

    with monkeypatch.context() as patched:
        patched.setattr("kgl.training.two_phase.cache_resized_images", no_space)
        with pytest.raises(InputError, match="no space"):
            run(parse([recipe]))
    report = run(parse([recipe, "--seed", "7"]))  # other settings, the same folder
    assert report["settings"]["training"]["seed"] == 7
