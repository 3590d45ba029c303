"""The job as a user runs it: from a folder to a table, stopped, resumed and refused."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import load_from_disk
from PIL import Image
from safetensors.torch import load_file
from tiny import TRAIN_SCRIPT, launched, make_images, shared
from transformers import pipeline

import kgl.train
import kgl.training.trainer
from kgl.data.loading import load_defect_dataset
from kgl.data.storage import lock, write_json
from kgl.errors import InputError
from kgl.evaluation.report import comparison_table
from kgl.knowledge.saliency_priors import add_saliency_priors
from kgl.modeling_kgl import KGLForImageClassification
from kgl.train import parse, run
from kgl.training.callbacks import last_complete_checkpoint
from kgl.training.model_init import initial_model, make_image_processor
from kgl.training.run_dir import claim


MAP_MEASURES = ("ap", "image_ap", "cell_ap", "pointing", "entropy", "area90")
SETTINGS = {
    "defect_free_label": "good", "image_height": 32, "image_width": 48, "num_folds": 2, "out_features": ["stage2"],
    "validation_share": 0,
    "backbone_config": {
        "model_type": "resnet", "layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1],
    },
    "num_train_epochs": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "save_strategy": "epoch",
    "logging_steps": 2, "use_cpu": True,
}  # fmt: skip


def recipe(folder: Path, **settings: object) -> str:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(SETTINGS | settings))
    return str(path)


def command(*arguments: object) -> list[str]:
    return [sys.executable, str(TRAIN_SCRIPT), *map(str, arguments)]


def train(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(command(*arguments), capture_output=True, text=True)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, request):
    """One whole run on a folder of images; its recipe, its output folder and what it printed."""
    folder = tmp_path_factory.mktemp("run")
    make_images(folder / "images")
    settings = recipe(folder, data_dir=str(folder / "images"))
    done = train(settings, "--output_dir", folder / "out")
    assert done.returncode == 0, done.stderr
    return settings, folder / "out", done.stdout


def test_a_run_leaves_models_priors_metrics_and_images(finished):
    settings, out, printed = finished
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["results"]) == {"plain", "guided"}
    with_intervals = {"accuracy", "balanced_accuracy", "ap", "auroc", "f1_max", "recall_at_false_alarm_rate",
                      "false_alarm_rate_at_zero_missed"}  # fmt: skip
    expected = {"ece", "seconds"} | with_intervals | {f"{name}_interval" for name in with_intervals}
    assert set(metrics["results"]["plain"]) == expected  # no masks, so no map metrics
    assert comparison_table(metrics["results"]) in printed
    assert metrics["images"] == {"train": 9, "test": 9}
    assert set(metrics["differences"]) == with_intervals
    assert metrics["validation"] == {"plain": None, "guided": None}
    table = list(csv.DictReader((out / "predictions.csv").open()))
    assert len(table) == 9 and {"plain: P(scratch)", "guided: P(defect)", "guided: defective"} <= table[0].keys()
    assert not (out / "pixels").exists()
    assert metrics["results"]["guided"]["seconds"] == pytest.approx(sum(metrics["seconds"].values()))
    for name in ("grid_train.png", "grid_test.png"):
        assert Image.open(out / name).size[0] > 400
    images, priors = load_defect_dataset(parse([settings]).data)["train"], load_from_disk(out / "priors")
    assert priors["file_name"] == images["file_name"]
    blank = np.asarray(priors["saliency_prior"]).max(axis=(1, 2)) == 0
    assert blank.tolist() == [label == 0 for label in images["label"]]
    logs = json.loads((out / "final" / "trainer_state.json").read_text())["log_history"]
    assert {"loss", "loss_cls", "loss_kg", "kg_lambda"} <= set(logs[0])
    assert "kg_lambda" not in (out / "primary" / "trainer_state.json").read_text()


def test_old_checkpoints_are_deleted_by_the_run_itself(finished, tmp_path):
    limited = train(finished[0], "--output_dir", tmp_path / "out", "--save_total_limit", "1")
    assert limited.returncode == 0, limited.stderr
    out = finished[1]
    assert len(list((out / "final").glob("checkpoint-*"))) == 3
    assert [path.parent.name for path in (tmp_path / "out" / "final").glob("checkpoint-*/whole.json")] == [
        "checkpoint-9"
    ]


IN_EACH_PROCESS = """
import sys
import torch
from kgl.train import parse, run
run(parse(sys.argv[1:]))
assert not torch.distributed.is_initialized(), "a group left standing can abort its process and end the job"
"""


def test_two_processes_end_as_one_does(tmp_path):
    make_images(tmp_path / "images")
    (tmp_path / "job.py").write_text(IN_EACH_PROCESS)
    settings = [recipe(tmp_path, data_dir=str(tmp_path / "images")), "--num_train_epochs", "1"]
    job = [*launched(2), str(tmp_path / "job.py"), *settings, "--output_dir", str(tmp_path / "out")]
    for says in ("9 held-out images", "this very run, finished"):
        done = subprocess.run(job, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(says) == 1


def test_the_trained_model_is_a_pipeline(finished, auto_image_processor):
    _, out, _ = finished
    classifier = pipeline("image-classification", model=str(out / "final"), trust_remote_code=True)
    image = sorted((out.parent / "images" / "scratch").iterdir())[0]
    assert {one["label"] for one in classifier(str(image))} == {"good", "scratch"}
    for folder in (out / "primary", out / "final", out / "final" / "checkpoint-9"):
        detector = pipeline("defect-detection", model=str(folder), trust_remote_code=True)
        assert detector(str(image))["heat_map"].size == (48, 40)


def test_both_classifiers_start_from_the_same_weights_and_images(finished):
    """With the guidance at no weight at all, phase 2 is phase 1 again, up to rounding."""
    settings, out, _ = finished
    unguided = train(settings, "--output_dir", out.parent / "unguided", "--kg_lambda", "0")
    assert unguided.returncode == 0, unguided.stderr
    plain, again = (load_file(out.parent / "unguided" / phase / "model.safetensors") for phase in ("primary", "final"))
    guided = load_file(out / "final" / "model.safetensors")
    for name in plain:
        torch.testing.assert_close(plain[name], again[name], rtol=0, atol=1e-7)
    assert any((plain[name] != guided[name]).any() for name in plain)


def test_cross_fitted_priors_come_from_primaries_that_did_not_see_the_image(tmp_path, monkeypatch):
    """Each scratch stands in two files of equal bytes, so in one group."""
    folder = make_images(tmp_path / "images")
    for path in sorted((folder / "scratch").iterdir()):
        shutil.copy(path, path.with_stem(f"{path.stem}_again"))
    learned = {}
    train_phase = kgl.train.train_phase

    def spy(phase, images, *args):
        learned[phase] = set(images["digest"])
        return train_phase(phase, images, *args)

    monkeypatch.setattr(kgl.train, "train_phase", spy)
    path = recipe(tmp_path, data_dir=str(folder), output_dir=str(tmp_path / "out"))
    settings = parse([path, "--prior_folds", "3"])
    report = run(settings)
    images, priors = load_defect_dataset(settings.data)["train"], load_from_disk(tmp_path / "out" / "priors")
    everything = set(images["digest"])
    assert list(learned) == ["primary", "primary_fold0", "primary_fold1", "primary_fold2", "final"]
    assert learned["primary"] == learned["final"] == everything
    seen = dict.fromkeys(range(len(images)), 0)
    for fold in range(3):
        phase = f"primary_fold{fold}"
        unseen = [index for index, digest in enumerate(images["digest"]) if digest not in learned[phase]]
        model = KGLForImageClassification.from_pretrained(tmp_path / "out" / phase)
        expected = add_saliency_priors(images.select(unseen), model, make_image_processor(settings.model))
        for index, prior in zip(unseen, expected["saliency_prior"], strict=True):
            seen[index] += 1
            assert np.abs(np.subtract(priors[index]["saliency_prior"], prior)).max() <= 1  # batched otherwise
    assert set(seen.values()) == {1} and priors["digest"] == images["digest"]
    assert report["seconds"]["primaries of the folds"] > 0
    assert report["results"]["guided"]["seconds"] == pytest.approx(sum(report["seconds"].values()))
    with pytest.raises(InputError, match=r"--prior_folds 9: too few independent images of .*scratch"):
        run(parse([path, "--output_dir", str(tmp_path / "other"), "--prior_folds", "9"]))
    with pytest.raises(InputError, match="--prior_folds 1: cross-fitting takes at least 2"):
        parse([path, "--prior_folds", "1"])


def test_frozen_stages_stay_as_they_were(tmp_path, monkeypatch):
    make_images(tmp_path / "images")
    path = recipe(tmp_path, data_dir=str(tmp_path / "images"), output_dir=str(tmp_path / "out"), num_train_epochs=2)
    settings = parse([path, "--freeze_stages", "1", "--frozen_views", "2", "--prior_folds", "2"])
    columns = []
    optimise = kgl.training.trainer.ClassificationTrainer.train
    monkeypatch.setattr(
        kgl.training.trainer.ClassificationTrainer, "train",
        lambda self, **kwargs: columns.append(self.train_dataset.column_names) or optimise(self, **kwargs),
    )  # fmt: skip
    run(settings)
    assert len(columns) == 4 and not any("image" in names for names in columns)  # none is decoded for nothing
    initial = initial_model(settings.model, ["good", "scratch"], "good", settings.training.seed)
    for phase in ("primary", "final"):
        trained = load_file(tmp_path / "out" / phase / "model.safetensors")
        changed = {name for name, value in initial.state_dict().items() if not torch.equal(trained[name], value)}
        assert changed and all("stages.1" in name or "backbone" not in name for name in changed)
    assert not list((tmp_path / "out").glob("frozen_features*"))
    with pytest.raises(InputError, match=r"--freeze_stages 2: it must lie in 1\.\.1, below stage2"):
        run(parse([path, "--freeze_stages", "2", "--output_dir", str(tmp_path / "other")]))


def test_a_finished_run_is_not_done_again(finished):
    settings, out, printed = finished
    before = {path: path.stat().st_mtime for path in out.rglob("*")}
    again = train(settings, "--output_dir", out)
    assert again.returncode == 0, again.stderr
    assert "finished" in again.stdout
    assert again.stdout.splitlines()[-6:] == printed.splitlines()[-6:]  # the same table
    assert {path: path.stat().st_mtime for path in out.rglob("*")} == before


def test_another_setting_in_the_same_folder_is_refused_by_name(finished):
    settings, out, _ = finished
    other = train(settings, "--output_dir", out, "--learning_rate", "0.01", "--fold", "1")
    assert other.returncode == 2
    assert (
        "fold is 0 there and 1 here" in other.stderr and "learning_rate is 0.001 there and 0.01 here" in other.stderr
    )
    assert "Traceback" not in other.stderr
    harmless = train(settings, "--output_dir", out, "--logging_steps", "7")
    assert harmless.returncode == 0, harmless.stderr


def test_a_changed_image_is_another_run(finished):
    settings, out, _ = finished
    image = out.parent / "images" / "good" / "0.png"
    kept = image.read_bytes()
    Image.new("L", (48, 40), 3).save(image)
    changed = train(settings, "--output_dir", out)
    image.write_bytes(kept)
    assert changed.returncode == 2 and "_images is" in changed.stderr


@pytest.mark.parametrize("phase", ["primary", "final"])
def test_a_killed_run_resumes_to_the_same_weights(finished, phase, tmp_path):
    settings, out, _ = finished
    process = subprocess.Popen(command(settings, "--output_dir", tmp_path / "out"), stdout=-3, stderr=-3)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "out" / phase).glob("checkpoint-*/whole.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / phase / "phase.json").exists()
    resumed = train(settings, "--output_dir", tmp_path / "out")
    assert resumed.returncode == 0, resumed.stderr
    assert f"goes on from {tmp_path / 'out' / phase / 'checkpoint-'}" in resumed.stdout
    for name, weights in load_file(out / "final" / "model.safetensors").items():
        assert (load_file(tmp_path / "out" / "final" / "model.safetensors")[name] == weights).all(), name


def test_leftovers_of_a_killed_run_do_no_harm(finished, tmp_path):
    """Half-written settings, priors and checkpoints, as a kill at the worst moments leaves them."""
    settings, out, _ = finished
    half = tmp_path / "out"
    shutil.copytree(out / "primary", half / "primary")
    shutil.copy(out / "run.json", half / "run.json")
    (half / "run.json.unfinished").write_text("{")
    (half / ".priors-unfinished-abc" / "priors").mkdir(parents=True)
    (half / "priors.json").write_text('{"seconds": 1}')
    (half / "final" / "checkpoint-3").mkdir(parents=True)
    resumed = train(settings, "--output_dir", half)
    assert resumed.returncode == 0, resumed.stderr
    assert not (half / ".priors-unfinished-abc").exists()
    for name, weights in load_file(out / "final" / "model.safetensors").items():
        assert (load_file(half / "final" / "model.safetensors")[name] == weights).all(), name


def test_a_folder_is_claimed_once(tmp_path):
    (tmp_path / "run.json.unfinished").write_text("{")
    claim(tmp_path, {"data": {"fold": 0}})
    claim(tmp_path, {"data": {"fold": 0}})
    with pytest.raises(InputError, match="fold is 0 there and 1 here"):
        claim(tmp_path, {"data": {"fold": 1}})
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json is damaged"):
        claim(tmp_path, {"data": {"fold": 0}})
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be used as a folder"):
        claim(tmp_path / "file" / "below", {})


def test_one_process_a_folder(tmp_path):
    held = lock(tmp_path)
    with pytest.raises(InputError, match="another process is running in it"):
        lock(tmp_path)
    held.release()
    lock(tmp_path).release()


def test_only_marked_checkpoints_count(tmp_path):
    assert last_complete_checkpoint(tmp_path) == (None, 0.0)
    for step in (9, 10, 20):
        (tmp_path / f"checkpoint-{step}").mkdir()
    for step in (9, 10):
        write_json(tmp_path / f"checkpoint-{step}" / "whole.json", {"seconds": step})
    assert last_complete_checkpoint(tmp_path) == (tmp_path / "checkpoint-10", 10)


def test_a_folder_of_something_else_is_refused(finished, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    refused = train(finished[0], "--output_dir", tmp_path)
    assert refused.returncode == 2 and "holds something else" in refused.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


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
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, message, finished, tmp_path):
    refused = train(finished[0], "--output_dir", tmp_path / "out", *arguments)
    assert refused.returncode == 2
    assert message in refused.stderr and "Traceback" not in refused.stderr
    assert refused.stderr.splitlines()[-1].startswith("kgl-train: error: ")
    assert not (tmp_path / "out").exists()  # nothing is claimed for a run that cannot start


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--eval_strategy", "epoch"], "used once, at the end"),
        (["--save_only_model", "true"], "cannot be resumed"),
        (["--resume_from_checkpoint", "x"], "resumes by itself"),
        (["--per_device_eval_batch_size", "0"], "--per_device_eval_batch_size 0"),
        (["--learning_rate", "-1"], "--learning_rate -1"),
        (["--backbone", "/nowhere"], "Give either --backbone"),
        (["--kg_form", "convex", "--kg_lambda", "3"], r"--kg_lambda 3\.0: it must lie in 0\.\.1"),
        (["--warmup_steps", "-1"], "warmup_steps"),
        (["--no_such_flag", "1"], "no setting --no_such_flag 1; see --help"),
        (["--kg_lamda", "1"], r"no setting --kg_lamda 1; did you mean --kg_lambda\?"),
        (["--pooling", "most"], "argument --pooling: invalid choice: 'most'"),
        (["--kg_objective", "cosine", "--kg_ignore_band", "0.1"], "goes with --kg_objective otsu_bce: no other"),
        (["--kg_objective", "kl", "--kg_positive_weight", "2"], "goes with --kg_objective otsu_bce or soft_bce"),
        (["--miss_cost", "20", "--wanted_recall", "0.9"], "give one of them"),
    ],
)
def test_settings_that_cannot_work_are_named(arguments, message, tmp_path):
    path = recipe(tmp_path, data_dir="images")
    with pytest.raises(InputError, match=message):
        run(parse([path, "--output_dir", str(tmp_path / "out"), *arguments]))


def test_no_output_folder_is_named(tmp_path):
    with pytest.raises(InputError, match="--output_dir: name a folder"):
        run(parse([recipe(tmp_path, data_dir="images")]))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [1, 2", "it is no YAML"),
        ("- a\n- b", "list of `setting: value` lines"),
        ("", "list of `setting: value` lines"),
        ("learning_rat: 1", "no setting --learning_rat 1"),
    ],
)
def test_recipes_that_cannot_be_read(content, message, tmp_path):
    (tmp_path / "r.yaml").write_text(content)
    with pytest.raises(InputError, match=message):
        parse([str(tmp_path / "r.yaml")])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("dataset: foo", "argument --dataset: invalid choice: 'foo'"),
        ("num_folds: 2.5", "argument --num_folds.*: invalid int value: '2.5'"),
        ("learning_rate: fast", "argument --learning_rate.*: invalid float value: 'fast'"),
    ],
)
def test_values_of_a_recipe_are_checked_like_flags(content, message, tmp_path):
    (tmp_path / "r.yaml").write_text(content)
    with pytest.raises(InputError, match=message):
        parse([str(tmp_path / "r.yaml")])


def test_priors_of_another_image_size_are_refused(finished, tmp_path):
    settings, out, _ = finished
    shutil.copytree(out, tmp_path / "out")
    shutil.rmtree(tmp_path / "out" / "final")
    (tmp_path / "out" / "metrics.json").unlink()
    stored = json.loads((tmp_path / "out" / "run.json").read_text())
    stored["model"]["image_height"] = 64
    (tmp_path / "out" / "run.json").write_text(json.dumps(stored))
    refused = train(settings, "--output_dir", tmp_path / "out", "--image_height", "64")
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "priors holds the results of another model, other settings or other images" in refused.stderr


def test_what_cannot_work_is_known_before_the_folder_is_claimed(tmp_path):
    path = recipe(tmp_path, data_dir=str(make_images(tmp_path / "images")), output_dir=str(tmp_path / "out"))
    for wrong, message in (
        (["--pooling", "attention", "--kg_objective", "cosine"], "go with --pooling avg_max, not with attention"),
        (["--pooling", "attention", "--prior_method", "cam"], "--prior_method cam: CAM needs a layer"),
        (
            ["--prior_method", "gradcam", "--prior_layers", "nowhere"],
            "the model has no layer nowhere; its layers with spatial maps",
        ),
    ):
        with pytest.raises(InputError, match=message):
            run(parse([path, *wrong]))
        assert not (tmp_path / "out").exists()


def test_flags_go_before_the_recipe_s(tmp_path):
    path = recipe(tmp_path, data_dir="images", learning_rate="5e-4")
    model_args, data_args, *_, training_args = parse([path, "--fold", "1", "--output_dir", str(tmp_path / "out")])
    assert (data_args.fold, training_args.learning_rate, model_args.image_width) == (1, 5e-4, 48)
    with pytest.raises(InputError, match="no such recipe"):
        parse(["nowhere.yaml"])


@pytest.mark.parametrize("path", sorted(TRAIN_SCRIPT.parent.glob("recipes/*.yaml")), ids=lambda path: path.stem)
def test_recipes_can_be_read(path):
    assert parse([str(path), "--use_cpu", "true"])[-1].output_dir.startswith("runs/")


def test_generated_surfaces_have_map_metrics(tmp_path):
    done = train(
        recipe(tmp_path), "--dataset", "surfaces", "--num_surfaces", 48, "--surface_size", 32, "--num_train_epochs", 1,
        "--output_dir", tmp_path / "out", "--augment", "false",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "class map's pixel AP" in done.stdout
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())["results"]["guided"]
    maps = {f"{kind}_{measure}" for kind in ("map", "saliency") for measure in MAP_MEASURES}
    assert maps | {"defect_ap", "defect_auroc"} <= set(metrics)


def test_shared_magnetic_tiles_end_to_end(tmp_path):
    done = train(
        TRAIN_SCRIPT.parent / "recipes" / "magnetic_tile.yaml", "--data_dir", shared("data", "magnetic-tile"),
        "--backbone", shared("models", "resnet-18"), "--image_height", 48, "--image_width", 48, "--max_steps", 2,
        "--per_device_train_batch_size", 4, "--output_dir", tmp_path / "out", "--use_cpu", "true",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "grid_test.png").exists()
