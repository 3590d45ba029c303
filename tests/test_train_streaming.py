"""The jobs on images that stay in their shards."""

import numpy as np
import pytest
from datasets import load_from_disk
from jobs import write_recipe
from safetensors.torch import load_file
from shards import shards_of, small_shards
from tiny import make_images, save_backbone

import kgl.training.trainer
from kgl.cli.train import main, parse
from kgl.errors import InputError
from kgl.prior import main as prior
from kgl.train import run
from kgl.training.collator import DefectCollator
from kgl.training.run_dir import RunState


EVERY_TWO_STEPS = {"save_strategy": "steps", "save_steps": 2, "per_device_train_batch_size": 2, "num_train_epochs": 2}


@pytest.fixture
def shards(tmp_path, monkeypatch, few_draws):
    """18 images in row groups of two and shards of six; the buffer of training holds two row groups."""
    small_shards(monkeypatch, shard_bytes=11_000)
    monkeypatch.setattr(kgl.training.trainer, "BUFFERED_GROUPS", 2)
    return shards_of(make_images(tmp_path / "images"), tmp_path / "shards")


def weights_of(folder):
    return load_file(folder / "final" / "model.safetensors")


def assert_same_weights(one, other):
    expected, found = weights_of(one), weights_of(other)
    assert expected.keys() == found.keys()
    for name, weights in expected.items():
        assert (found[name] == weights).all(), name


def test_frozen_features_fit_the_same_classifier(tmp_path, shards):
    backbone = str(save_backbone(tmp_path / "backbone"))
    args = ["--backbone", backbone, "--image_height", "32", "--image_width", "32", "--num_folds", "2"]
    main([str(tmp_path / "images"), *args, "--output_dir", str(tmp_path / "folder")])
    streamed = ["--hub_dataset", str(shards), "--streaming", "true"]
    main([*streamed, *args, "--output_dir", str(tmp_path / "streamed")])
    assert_same_weights(tmp_path / "folder", tmp_path / "streamed")
    tables = [(tmp_path / name / "predictions.csv").read_text() for name in ("folder", "streamed")]
    assert tables[0] == tables[1]


@pytest.fixture
def drawn(monkeypatch):
    """The numbers of the images of every training batch; KeyboardInterrupt instead of a batch where asked."""
    batches, stop_at = [], []
    collate = DefectCollator.__call__

    def record(self, rows):
        if len(batches) in stop_at:
            raise KeyboardInterrupt
        batches.append([row["index"] for row in rows])
        return collate(self, rows)

    monkeypatch.setattr(DefectCollator, "__call__", record)
    return batches, stop_at


@pytest.fixture
def without_report(monkeypatch):
    """End a run with its last training step: the report takes longer than a tiny model."""
    monkeypatch.setattr("kgl.train.evaluate", lambda *args: None)
    monkeypatch.setattr("kgl.train.write_run", lambda *args: {})
    monkeypatch.setattr("kgl.train.finish", lambda job, report, held: held.release())


def test_stopped_run_resumes_at_the_same_image(tmp_path, shards, drawn, without_report):
    batches, stop_at = drawn
    recipe = write_recipe(tmp_path, hub_dataset=str(shards), streaming=True, **EVERY_TWO_STEPS)
    command = [recipe, "--prior_source", "saliency", "--output_dir"]
    run(parse([*command, str(tmp_path / "whole")]))
    whole, phases = list(batches), 2
    assert not list((tmp_path / "whole" / "cache").glob("*/*.arrow"))  # of no image
    assert len(whole) == phases * 2 * 5  # two epochs of nine images, two a batch
    for epoch in (whole[:5], whole[5:10]):
        assert sorted(index for batch in epoch for index in batch) == list(range(9))
    assert whole[5:10] != whole[:5]
    for stopped_at in (4, 8, 13):  # in the first epoch, in the second, and in phase 2
        batches.clear()
        out = tmp_path / f"stopped{stopped_at}"
        stop_at[:] = [stopped_at]
        with pytest.raises(KeyboardInterrupt):
            run(parse([*command, str(out)]))
        assert batches == whole[:stopped_at]
        phase = "final" if stopped_at > 10 else "primary"
        step = RunState(out).checkpoints(phase)[-1]["step"] + (10 if phase == "final" else 0)
        assert 0 < step < stopped_at
        batches.clear()
        stop_at.clear()
        run(parse([*command, str(out)]))
        assert batches == whole[step:]
        assert_same_weights(tmp_path / "whole", out)


def test_prior_pass_makes_the_priors_of_the_files(tmp_path, shards, finished_run):
    model = str(finished_run[1] / "primary")
    for name, source in (("files", [str(tmp_path / "images")]), ("shards", ["--hub_dataset", str(shards)])):
        streaming = ["--streaming", "true"] * (name == "shards")
        prior([*source, *streaming, "--model", model, "--output_dir", str(tmp_path / f"of_{name}")])
    one, other = (load_from_disk(tmp_path / f"of_{name}" / "priors") for name in ("files", "shards"))
    assert one["file_name"][:] == other["file_name"][:]
    assert (np.asarray(one["saliency_prior"][:]) == np.asarray(other["saliency_prior"][:])).all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["--fine_tune", "true"], "give --head avg_max"),
        (["--fine_tune", "true", "--head", "avg_max", "--freeze_stages", "1"], "--freeze_stages 1"),
        (["--fine_tune", "true", "--head", "avg_max", "--balanced_sampling", "true"], "--class_weights balanced"),
    ],
)
def test_settings_that_streaming_does_not_support(tmp_path, settings, message):
    command = ["--hub_dataset", str(tmp_path), "--streaming", "true", "--backbone", "kgl-tiny", *settings]
    with pytest.raises(InputError, match=message):
        run(parse([*command, "--output_dir", str(tmp_path / "out")]))
