"""The training job as a user runs it: what a run writes, on one process and on two."""

import csv
import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from datasets import load_from_disk
from jobs import run_train, write_recipe
from PIL import Image
from safetensors.torch import load_file
from tiny import TRAIN_SCRIPT, launched, make_images, shared
from transformers import pipeline

import kgl.training.trainer
from kgl.cli.train import parse
from kgl.data.loading import load_defect_dataset
from kgl.errors import InputError
from kgl.evaluation.report import comparison_table
from kgl.modeling_kgl import KGLForImageClassification
from kgl.train import run
from kgl.training.model_init import build_model


MAP_MEASURES = ("ap", "image_ap", "cell_ap", "pointing", "entropy", "area90")


def test_run_writes_models_priors_metrics_and_images(finished_run):
    recipe, out, printed = finished_run
    metrics = json.loads((out / "metrics.json").read_text())
    assert set(metrics["results"]) == {"primary", "final"}
    with_intervals = {"accuracy", "balanced_accuracy", "ap", "auroc", "f1_max", "recall_at_false_alarm_rate",
                      "false_alarm_rate_at_zero_missed"}  # fmt: skip
    expected = (
        {"ece", "seconds", "decisions_at_half"} | with_intervals | {f"{name}_interval" for name in with_intervals}
    )
    assert set(metrics["results"]["primary"]) == expected  # no masks, so no map metrics
    assert comparison_table(metrics["results"]) in printed
    assert metrics["images"] == {"train": 9, "test": 9}
    assert {"kgl", "python", "torch", "transformers", "datasets", "accelerate"} == metrics["versions"].keys()
    assert set(metrics["differences"]) == with_intervals
    assert metrics["validation"] == {"primary": None, "final": None}
    assert set(metrics["seconds"]) == {"feature_cache", "primary", "priors", "final"}
    table = list(csv.DictReader((out / "predictions.csv").open()))
    columns = {"file_name", "label", "primary_probability_scratch", "final_defect_score", "final_defective"}
    assert len(table) == 9 and columns <= table[0].keys()
    assert not (out / "cache").exists()
    assert metrics["results"]["final"]["seconds"] == pytest.approx(sum(metrics["seconds"].values()))
    models = [KGLForImageClassification.from_pretrained(out / name) for name in ("primary", "final")]
    assert [model.config.training_range["images"] for model in models] == [9, 9]
    assert (models[0].feature_center != models[1].feature_center).any()  # each of its own features
    for name in ("grid_train.png", "grid_test.png"):
        assert Image.open(out / name).size[0] > 400
    images, priors = load_defect_dataset(parse([recipe]).data)["train"], load_from_disk(out / "priors")
    assert priors["file_name"] == images["file_name"]
    blank = np.asarray(priors["saliency_prior"]).max(axis=(1, 2)) == 0
    assert blank.tolist() == [label == 0 for label in images["label"]]
    logs = json.loads((out / "final" / "trainer_state.json").read_text())["log_history"]
    assert {"loss", "loss_cls", "loss_kg", "kg_lambda"} <= set(logs[0])
    assert "kg_lambda" not in (out / "primary" / "trainer_state.json").read_text()


def test_every_file_of_a_run_is_documented(finished_run):
    _, out, _ = finished_run
    table = (TRAIN_SCRIPT.parent / "docs" / "training.md").read_text().partition("## Files of a run")[2]
    assert [path.name for path in out.iterdir() if path.name not in table] == []


def test_loss_is_logged_often_enough_for_a_curve(tmp_path, few_draws):
    recipe = write_recipe(tmp_path, data_dir=str(make_images(tmp_path / "images")), num_train_epochs=None)
    settings = yaml.safe_load(Path(recipe).read_text())
    Path(recipe).write_text(yaml.safe_dump(settings | {"logging_steps": None, "max_steps": 40}))
    run(parse([recipe, "--output_dir", str(tmp_path / "out")]))
    logs = json.loads((tmp_path / "out" / "final" / "trainer_state.json").read_text())["log_history"]
    assert [entry["step"] for entry in logs if "loss_kg" in entry] == list(range(2, 41, 2))


def test_output_fits_a_screen_without_bars(finished_run):
    _, _, printed = finished_run
    assert len(printed.splitlines()) <= 24
    assert "%|" not in printed  # a bar
    for step in (
        "Phase 1, primary classifier: 9 steps",
        "Priors: gradcam++",
        "Phase 2, final classifier: 9 steps",
        "Evaluation on 9 test images",
        "No threshold was chosen, so 0.5 is used: there are no validation images",
        "At P(defect) 0.5 the final classifier misses ",
    ):
        assert printed.count(step) == 1


def test_standard_error_has_no_bars(tmp_path):
    recipe = write_recipe(tmp_path, data_dir=str(make_images(tmp_path / "images")), num_train_epochs=1)
    done = run_train(recipe, "--output_dir", tmp_path / "out")
    assert done.returncode == 0 and "%|" not in done.stderr and "it/s" not in done.stderr, done.stderr
    assert not list((tmp_path / "out").rglob("checkpoint-*"))  # a finished run needs none


IN_EACH_PROCESS = """
import sys
import torch
from kgl.cli.train import parse
from kgl.train import run
run(parse(sys.argv[1:]))
assert not torch.distributed.is_initialized(), "a group left standing can abort its process and end the job"
"""


def test_two_processes_print_and_write_once(tmp_path):
    make_images(tmp_path / "images")
    (tmp_path / "job.py").write_text(IN_EACH_PROCESS)
    recipe = write_recipe(tmp_path, data_dir=str(tmp_path / "images"), use_cpu=torch.cuda.is_available())
    settings = [recipe, "--num_train_epochs", "1"]
    job = [*launched(2), str(tmp_path / "job.py"), *settings, "--output_dir", str(tmp_path / "out")]
    for line in ("Phase 2, final classifier: 2 steps", "holds this run, finished before"):
        done = subprocess.run(job, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(line) == 1


def test_trained_model_is_a_pipeline(finished_run, auto_image_processor):
    _, out, _ = finished_run
    classifier = pipeline("image-classification", model=str(out / "final"), trust_remote_code=True)
    image = sorted((out.parent / "images" / "scratch").iterdir())[0]
    assert {one["label"] for one in classifier(str(image))} == {"good", "scratch"}
    for folder in (out / "primary", out / "final", out / "final" / "checkpoint-9"):
        detector = pipeline("defect-detection", model=str(folder), trust_remote_code=True)
        assert detector(str(image))["heat_map"].size == (48, 40)


def test_without_guidance_phase_2_repeats_phase_1(finished_run, tmp_path, few_draws):
    """Both phases start from the same weights and see the same batches: equal up to rounding."""
    recipe, out, _ = finished_run
    run(parse([recipe, "--output_dir", str(tmp_path / "unguided"), "--kg_lambda", "0"]))
    primary, final = (load_file(tmp_path / "unguided" / phase / "model.safetensors") for phase in ("primary", "final"))
    guided = load_file(out / "final" / "model.safetensors")
    for name in primary:
        torch.testing.assert_close(primary[name], final[name], rtol=0, atol=1e-7)
    assert any((primary[name] != guided[name]).any() for name in primary)


def test_frozen_stages_keep_their_weights(tmp_path, monkeypatch):
    make_images(tmp_path / "images")
    recipe = write_recipe(
        tmp_path, data_dir=str(tmp_path / "images"), output_dir=str(tmp_path / "out"), num_train_epochs=2
    )
    settings = parse([recipe, "--freeze_stages", "1", "--frozen_views", "2"])
    columns = []
    optimise = kgl.training.trainer.ClassificationTrainer.train
    monkeypatch.setattr(
        kgl.training.trainer.ClassificationTrainer, "train",
        lambda self, **kwargs: columns.append(self.train_dataset.column_names) or optimise(self, **kwargs),
    )  # fmt: skip
    run(settings)
    assert len(columns) == 2 and not any("image" in names for names in columns)  # no image is decoded for nothing
    torch.manual_seed(settings.training.seed)
    initial = build_model(settings.model, ["good", "scratch"], "good")
    for phase in ("primary", "final"):
        trained = load_file(tmp_path / "out" / phase / "model.safetensors")
        changed = {name for name, value in initial.state_dict().items() if not torch.equal(trained[name], value)}
        assert changed and all("stages.1" in name or "backbone" not in name for name in changed)
    assert not (tmp_path / "out" / "cache").exists()
    with pytest.raises(
        InputError, match=r"--freeze_stages 2: it must lie in 0\.\.1: 0 freezes nothing, stage2 is trained"
    ):
        run(parse([recipe, "--freeze_stages", "2", "--output_dir", str(tmp_path / "other")]))


@pytest.mark.parametrize("path", sorted(TRAIN_SCRIPT.parent.glob("recipes/*.yaml")), ids=lambda path: path.stem)
def test_recipes_can_be_parsed(path):
    images = ["images"] if path.stem == "paper" else []  # for any images
    assert parse([*images, str(path), "--use_cpu", "true"]).training.output_dir.startswith("runs/")


def test_synthetic_surfaces_have_map_metrics(tmp_path, few_draws):
    report = run(
        parse([
            write_recipe(tmp_path), "--dataset", "surfaces", "--num_surfaces", "48", "--surface_size", "32",
            "--num_train_epochs", "1", "--output_dir", str(tmp_path / "out"), "--augment", "false",
        ])
    )  # fmt: skip
    metrics = report["results"]["final"]
    maps = {f"{kind}_{measure}" for kind in ("map", "saliency") for measure in MAP_MEASURES}
    assert maps | {"defect_ap", "defect_auroc"} <= set(metrics)


def test_magnetic_tiles_fine_tuned(tmp_path, few_draws):
    """The folder and the backbone are all that is given beside fine-tuning; the steps are cut short for the test."""
    run(
        parse([
            str(shared("data", "magnetic-tile")), "--backbone", str(shared("models", "resnet-18")),
            "--fine_tune", "true", "--head", "avg_max", "--image_height", "48", "--image_width", "48",
            "--max_steps", "2", "--prior_source", "saliency",
            "--train_per_class", "4", "--train_defect_free", "8", "--output_dir", str(tmp_path / "out"),
            "--use_cpu", "true",
        ])
    )  # fmt: skip
    assert (tmp_path / "out" / "grid_test.png").exists()
    stored = json.loads((tmp_path / "out" / "run.json").read_text())
    assert stored["model"]["freeze_stages"] == 2 and stored["model"]["out_features"] == ["stage3"]  # by default
    assert json.loads((tmp_path / "out" / "final" / "config.json").read_text())["defect_free_label"] == "Free"
