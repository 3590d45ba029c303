"""The job on a frozen backbone: what a run writes, resuming after each step, two processes, refused settings."""

import json
import re
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from datasets import load_from_disk
from jobs import run_train, train_command
from safetensors.torch import load_file
from tiny import TRAIN_SCRIPT, launched, make_images, save_backbone

import kgl.training.frozen_heads
from kgl.cli.train import parse
from kgl.errors import InputError
from kgl.modeling_kgl import KGLForImageClassification
from kgl.train import run
from kgl.training.run_dir import RunState


@pytest.fixture(scope="module")
def frozen_run(tmp_path_factory):
    """One finished run: its settings without the output folder, the folder, and its standard output."""
    folder = tmp_path_factory.mktemp("frozen")
    settings = [
        make_images(folder / "images"), "--backbone", save_backbone(folder / "backbone"), "--image_height", 64,
        "--image_width", 64, "--num_folds", 2, "--validation_share", 0, "--use_cpu", "true",
    ]  # fmt: skip
    done = run_train(*settings, "--output_dir", folder / "out")
    assert done.returncode == 0, done.stderr
    return [*map(str, settings)], folder / "out", done.stdout


TUNED = ["--fine_tune", "true", "--num_train_epochs", "3", "--save_strategy", "epoch"]
TUNED += ["--per_device_train_batch_size", "4"]


@pytest.fixture(scope="module")
def tuned_run(frozen_run):
    """The same with a fine-tuned stage: its settings with the output folder, and the folder."""
    settings, out, _ = frozen_run
    command = [*settings, *TUNED, "--output_dir", str(out.with_name("tuned"))]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("kgl.evaluation.results.BOOTSTRAP_DRAWS", 10)
        run(parse(command))
    return command, out.with_name("tuned")


def make_report_again(command, out, monkeypatch):
    """Make the report of a finished run again; nothing is trained or cached for it."""
    (out / "metrics.json").unlink()
    for name in ("frozen_phases.write_frozen_features", "two_phase.cache_frozen_features", "two_phase.write_priors"):
        monkeypatch.setattr(f"kgl.training.{name}", lambda *_: pytest.fail("computed again"))
    steps = json.loads((out / "state.json").read_text())["steps"]
    return run(parse(command))["seconds"], {name: record.get("seconds") for name, record in steps.items()}


def weights_of(out, phase="final"):
    return load_file(out / phase / "model.safetensors")


def assert_same_files(out, other):
    name = "training_images.json"
    assert (other / name).read_bytes() == (out / name).read_bytes()
    for phase in ("primary", "final"):
        expected, found = weights_of(out, phase), weights_of(other, phase)
        assert all((found[name] == weights).all() for name, weights in expected.items()), phase


def test_run_writes_models_priors_and_metrics(frozen_run):
    _, out, printed = frozen_run
    assert len(printed.splitlines()) <= 24
    for line in ("Phase 1, primary classifier: heads fitted to frozen features", "Priors: distances from good parts",
                 "Phase 2, final classifier: heads fitted to frozen features"):  # fmt: skip
        assert printed.count(line) == 1
    metrics, state = (json.loads((out / name).read_text()) for name in ("metrics.json", "state.json"))
    assert set(metrics["results"]) == {"primary", "final"} and metrics["images"] == {"train": 9, "test": 9}
    assert metrics["results"]["final"]["ap"] == 1  # a bright line on grey
    model = metrics["settings"]["model"]
    assert (model["fine_tune"], model["head"], model["freeze_stages"]) == (False, "stages", None)
    assert model["out_features"] == ["stage2", "stage3", "stage4"]
    assert list(state["steps"]) == ["frozen_features", "primary", "priors", "final", "report"]
    assert state["steps"]["final"]["steps"] == 0 and state["steps"]["final"]["fit"]["saliency_weight"] > 0
    assert state["steps"]["primary"]["fit"]["saliency_weight"] == 0
    assert not (out / "cache").exists() and (out / "report.html").exists() and (out / "final" / "README.md").exists()
    priors = load_from_disk(out / "priors")
    assert np.asarray(priors["saliency_prior"]).shape == (9, 8, 8)
    models = [KGLForImageClassification.from_pretrained(out / name) for name in ("primary", "final")]
    for model in models:  # both know the training images, whose features are those of the same backbone
        assert model.config.training_range["images"] == model.config.training_range["groups"] == 9
        assert model.feature_center.any() and torch.equal(model.feature_center, models[0].feature_center)
    assert models[0].config.training_range == models[1].config.training_range
    stored = json.loads((out / "training_images.json").read_text())
    assert [len(stored[split]["brightness"]) for split in ("training", "test")] == [9, 9]
    assert "<h2>Training images</h2>" in (out / "report.html").read_text()


def test_groups_of_a_table_are_in_the_report(frozen_run, tmp_path, few_draws):
    settings, _, _ = frozen_run
    files = sorted(path.relative_to(settings[0]) for path in Path(settings[0]).rglob("*.png"))
    rows = [f"{file},{file.parent},lot {index // 3}" for index, file in enumerate(files)]
    (tmp_path / "t.csv").write_text("\n".join(["image,label,lot", *rows]))
    table = ["--data_file", str(tmp_path / "t.csv"), "--data_dir", settings[0], "--group_column", "lot"]
    run(parse([*table, *settings[1:], "--output_dir", str(tmp_path / "out")]))
    predicted = pd.read_csv(tmp_path / "out" / "predictions.csv")
    assert list(predicted.columns[:3]) == ["file_name", "label", "group"]
    lots = dict(zip(map(str, files), (row.rpartition(",")[2] for row in rows), strict=True))
    assert predicted["group"].to_list() == [lots[name] for name in predicted["file_name"]]
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    listed = dict(re.findall(r"<tr><td>(lot \d)</td><td>(\d+)</td>", page))
    assert listed == {name: str(count) for name, count in predicted["group"].value_counts().items()}
    assert "Results by group" in page


def test_backbone_is_left_as_it_was(frozen_run):
    settings, out, _ = frozen_run
    pretrained = load_file(f"{settings[2]}/model.safetensors")
    final, primary = weights_of(out), weights_of(out, "primary")
    for name, weights in final.items():
        if name.startswith("backbone."):
            assert (weights == primary[name]).all()
    stem = "embedder.embedder.convolution.weight"
    assert (final[f"backbone.{stem}"] == pretrained[stem]).all()
    assert (final["classifier.weight"] != primary["classifier.weight"]).any()
    models = {name: KGLForImageClassification.from_pretrained(out / name).config for name in ("primary", "final")}
    assert models["final"].has_heat_map and not models["primary"].has_heat_map


def run_until(step, command, monkeypatch):
    """Run a job and stop it when a step is recorded as finished."""
    finish = RunState.finish

    def stopped(self, name, **record):
        record = finish(self, name, **record)
        if name == step:
            raise KeyboardInterrupt
        return record

    with monkeypatch.context() as patched:
        patched.setattr(RunState, "finish", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(command)


@pytest.mark.parametrize("step", ["frozen_features", "primary", "priors", "final"])
def test_stopped_run_resumes_after_each_step(frozen_run, step, tmp_path, monkeypatch, few_draws):
    settings, out, _ = frozen_run
    command = parse([*settings, "--output_dir", str(tmp_path / "out")])
    run_until(step, command, monkeypatch)
    before = json.loads((tmp_path / "out" / "state.json").read_text())["steps"]
    assert (
        list(before) == ["frozen_features", "primary", "priors", "final"][: len(before)] and list(before)[-1] == step
    )
    run(command)
    after = json.loads((tmp_path / "out" / "state.json").read_text())["steps"]
    assert {name: after[name] for name in before} == before  # not done again
    assert_same_files(out, tmp_path / "out")


def test_run_that_is_stopped_within_a_step_resumes(frozen_run, tmp_path, monkeypatch, few_draws):
    """While the final heads are fitted, so with nothing of them on disk."""
    settings, out, _ = frozen_run
    command = parse([*settings, "--output_dir", str(tmp_path / "out")])
    with monkeypatch.context() as patched:
        patched.setattr(kgl.training.frozen_heads.FrozenHeads, "_set_saliency", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(command)
    assert not (tmp_path / "out" / "final" / "model.safetensors").exists()
    run(command)
    assert_same_files(out, tmp_path / "out")


def test_finished_run_is_not_repeated(frozen_run, monkeypatch):
    settings, out, _ = frozen_run
    monkeypatch.setattr("kgl.train.cache_features", lambda *_: pytest.fail("computed again"))
    before = {path: path.stat().st_mtime for path in out.rglob("*") if path.suffix in (".json", ".safetensors")}
    run(parse([*settings, "--output_dir", str(out)]))
    assert {path: path.stat().st_mtime for path in before} == before


def test_two_processes_fit_the_same_heads(frozen_run, tmp_path):
    """Also beside a stage that both processes fine-tune."""
    settings, out, _ = frozen_run
    for name, flags, line in ("out", [], "Phase 2, final classifier: heads"), ("tuned", TUNED, "stage: 6 steps"):
        job = [*launched(2), str(TRAIN_SCRIPT), *settings, *flags, "--output_dir", str(tmp_path / name)]
        done = subprocess.run(job, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert done.stdout.count(line) == 1
        assert_same_files(out, tmp_path / name)
    assert_has_tuned_stage(tmp_path / "tuned")


def test_masks_are_learned_as_defective_cells(frozen_run, tmp_path, monkeypatch, few_draws):
    settings, _, _ = frozen_run
    masks = []
    heads = kgl.training.frozen_phases.FrozenHeads
    monkeypatch.setattr(
        "kgl.training.frozen_phases.FrozenHeads",
        lambda *arguments: masks.append((arguments[2], arguments[5])) or heads(*arguments),
    )
    surfaces = ["--dataset", "surfaces", "--num_surfaces", "48", "--surface_size", "64", *settings[1:]]
    for learned in ("true", "false"):
        masks.clear()
        report = run(parse([*surfaces, "--train_on_masks", learned, "--output_dir", str(tmp_path / learned)]))
        (_, of_primary), (labels, of_final) = masks
        assert of_primary is None and (of_final is not None) == (learned == "true")
        if learned == "true":
            assert (of_final.any(axis=(1, 2)) == (labels > 0)).all() and of_final.mean() < 0.2
        assert {"map_ap", "saliency_ap"} <= set(report["results"]["final"])


@pytest.mark.parametrize("flags", [[], [*TUNED, "--validation_share", "0.5"]], ids=["frozen", "tuned"])
def test_run_without_a_good_class(frozen_run, flags, tmp_path, few_draws):
    settings, _, _ = frozen_run
    (tmp_path / "images").mkdir()
    (make_images(tmp_path / "made") / "good").rename(tmp_path / "images" / "dent")
    (tmp_path / "made" / "scratch").rename(tmp_path / "images" / "scratch")
    report = run(parse([str(tmp_path / "images"), *settings[1:], *flags, "--output_dir", str(tmp_path / "out")]))
    assert report["settings"]["prior"]["prior_source"] == "saliency"
    config = KGLForImageClassification.from_pretrained(tmp_path / "out" / "final").config
    assert config.defect_free_label is None and config.has_heat_map
    primary, final = (weights_of(tmp_path / "out", phase) for phase in ("primary", "final"))
    assert (primary["classifier.weight"] == final["classifier.weight"]).all()
    assert (primary["saliency_head.output.weight"] != final["saliency_head.output.weight"]).any()
    assert (report["validation"]["final"] is not None) == config.tuned_stage == bool(flags)
    if flags:
        assert_has_tuned_stage(tmp_path / "out")


@pytest.mark.parametrize(
    "arguments",
    [
        ["--max_steps", "300"],
        ["--num_train_epochs", "3"],
        ["--learning_rate", "0.01"],
        ["--kg_lambda", "1"],
        ["--cls_loss", "focal"],
        ["--class_weights", "balanced"],
        ["--balanced_sampling", "true"],
        ["--freeze_stages", "0"],
        ["--frozen_views", "2"],
        ["--augment", "false"],
        ["--bf16", "true"],
        ["--per_device_train_batch_size", "8"],
        ["--gradient_accumulation_steps", "2"],
        ["--warmup_steps", "5"],
        ["--save_strategy", "epoch"],
        ["--keep_checkpoints", "true"],
    ],
    ids=lambda arguments: arguments[0],
)
def test_settings_of_training_are_refused(arguments, tmp_path):
    command = ["images", "--use_cpu", "true", "--output_dir", str(tmp_path / "out"), *arguments]
    message = f"{arguments[0]} goes with --fine_tune true: by default the heads are fitted to frozen features"
    with pytest.raises(InputError, match=message):
        run(parse(command))
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="there is no such folder"):  # of images, which are read later
        run(parse([*command, "--fine_tune", "true", "--head", "avg_max"]))


def test_heads_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="--head avg_max goes with --fine_tune true"):
        parse(["images", "--head", "avg_max"])
    with pytest.raises(InputError, match="--fine_tune false goes with --backbone"):
        parse(["images", "--backbone_config", "{}", "--fine_tune", "false", "--head", "stages"])


@pytest.mark.parametrize("source", ["both", "saliency"])
def test_fine_tuning_is_guided_by_each_source(frozen_run, source, tmp_path, few_draws, monkeypatch):
    """Also where it was stopped behind the priors, which the resumed run knows as its own."""
    settings, _, _ = frozen_run
    steps = ["--max_steps", "2", "--per_device_train_batch_size", "4", "--prior_source", source]
    command = [*settings, "--fine_tune", "true", "--head", "avg_max", *steps, "--output_dir", str(tmp_path / "out")]
    run_until("priors", parse(command), monkeypatch)
    report = run(parse(command))
    assert report["settings"]["prior"]["prior_source"] == source
    seconds, steps = make_report_again(command, tmp_path / "out", monkeypatch)
    assert seconds.pop("feature_cache") == steps["cache"]
    assert seconds == {name: steps[name] for name in ("primary", "priors", "final")}
    model = KGLForImageClassification.from_pretrained(tmp_path / "out" / "final")
    assert model.config.head == "avg_max" and model.config.has_heat_map
    priors = load_from_disk(tmp_path / "out" / "priors")
    assert np.asarray(priors["saliency_prior"]).shape[1:] == model.saliency_grid((64, 64))
    logs = json.loads((tmp_path / "out" / "final" / "trainer_state.json").read_text())
    assert logs["global_step"] == 2
    final, primary = (weights_of(tmp_path / "out", phase)["classifier.weight"] for phase in ("final", "primary"))
    assert (final != primary).any()


def assert_has_tuned_stage(out):
    """Stage 3 of the final classifier's copy is the trained one, below it nothing was trained."""
    weights, tuned = weights_of(out), weights_of(out, "tuned")
    stage, frozen = "tuned.stage.layers.0.shortcut.convolution.weight", "backbone.encoder.stages.{}.layers.0"
    assert torch.equal(weights[stage], tuned[f"{frozen.format(2)}.shortcut.convolution.weight"])
    assert (weights[stage] != weights[f"{frozen.format(2)}.shortcut.convolution.weight"]).any()
    shared = f"{frozen.format(1)}.shortcut.convolution.weight"
    assert torch.equal(weights[shared], tuned[shared])


def test_fine_tuned_stage_joins_the_heads_of_the_default(frozen_run, tuned_run):
    """Stage 3 is trained beside the default's heads, which stay as they are."""
    (_, default, _), (_, out) = frozen_run, tuned_run
    assert_has_tuned_stage(out)
    weights, alone = weights_of(out), weights_of(default)
    model = KGLForImageClassification.from_pretrained(out / "final")
    temperature = KGLForImageClassification.from_pretrained(default / "final").config.temperature
    for name, value in alone.items():
        expected = value / temperature if name.startswith("classifier.") else value
        torch.testing.assert_close(weights[name], expected, msg=name)
    assert model.config.tuned_stage and model.config.has_heat_map
    page = (out / "report.html").read_text()
    assert "those of a fine-tuned stage" in page and "Loss terms over the training steps" in page
    card = (out / "final" / "README.md").read_text()
    assert "fine-tuned on image labels" in card and "kg_lambda" not in card


def test_killed_fine_tuning_of_a_stage_resumes(frozen_run, tuned_run, tmp_path, few_draws, capsys):
    settings, _, _ = frozen_run
    command = [*settings, *TUNED, "--output_dir", str(tmp_path / "out")]
    process = subprocess.Popen(train_command(*command), stdout=-3, stderr=-3)
    deadline = time.monotonic() + 120
    while not RunState(tmp_path / "out").checkpoints("tuned"):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert RunState(tmp_path / "out").record("tuned") is None
    run(parse(command))
    assert "Fine-tuned stage: resumed from" in capsys.readouterr().out
    assert_same_files(tuned_run[1], tmp_path / "out")


def test_report_of_a_tuned_run_is_made_again(tuned_run, monkeypatch, few_draws):
    seconds, steps = make_report_again(*tuned_run, monkeypatch)
    assert seconds["feature_cache"] == steps["frozen_features"]
    assert seconds["final"] == pytest.approx(steps["cache"] + steps["tuned"] + steps["final"])


@pytest.mark.parametrize("setting", [["--kg_lambda", "0.5"], ["--fusion_size", "8"]], ids=lambda one: one[0])
def test_settings_of_guidance_are_refused_for_a_tuned_stage(setting, tmp_path):
    with pytest.raises(InputError, match=f"{setting[0]} goes with --head avg_max"):
        run(parse(["images", "--fine_tune", "true", *setting, "--output_dir", str(tmp_path / "out")]))
