"""All settings of a job: defaults, refused settings, and the ones that decide a run."""

from dataclasses import fields
from importlib.metadata import PackageNotFoundError

import pytest
from transformers import TrainingArguments

from kgl import KGLTrainingArguments
from kgl.cli.train import parse
from kgl.data.arguments import DataArguments
from kgl.training.arguments import DEFAULT_BACKBONE, GuidanceArguments, RecipeArguments
from kgl.training.settings import _DECIDING, UNSUPPORTED, default_output_dir, installed_versions


def test_defaults_are_the_measured_recipe(tmp_path):
    settings = parse(["images", "--output_dir", str(tmp_path)])
    training, model = settings.training, settings.model
    assert (training.learning_rate, training.weight_decay, training.warmup_steps) == (1e-3, 0.01, 0.1)
    assert (training.lr_scheduler_type, training.max_steps, training.per_device_train_batch_size) == (
        "cosine",
        500,
        16,
    )
    assert (model.backbone, model.size) == (DEFAULT_BACKBONE, (160, 160))


def test_epochs_replace_the_default_steps(tmp_path):
    by_epochs = KGLTrainingArguments(output_dir=str(tmp_path), num_train_epochs=3)
    assert (by_epochs.num_train_epochs, by_epochs.max_steps) == (3, -1)
    both = KGLTrainingArguments(output_dir=str(tmp_path), num_train_epochs=3, max_steps=7)
    assert both.max_steps == 7  # as in transformers


def test_named_settings_exist_in_transformers():
    known = {one.name for one in fields(KGLTrainingArguments)}
    newer = {"train_sampling_strategy"}  # not in the oldest transformers that is supported
    assert set(_DECIDING) - known <= newer
    assert {one.name for one in fields(GuidanceArguments)} <= set(_DECIDING)
    assert not UNSUPPORTED.keys() & set(_DECIDING)
    own = {one.name for one in fields(RecipeArguments)} - {one.name for one in fields(TrainingArguments)}
    assert own == {"keep_checkpoints"}


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (DataArguments(data_dir="some/my parts"), "runs/my_parts"),
        (DataArguments(data_dir="some/parts/train"), "runs/parts"),
        (DataArguments(data_dir="/Test"), "runs/Test"),
        (DataArguments(data_file="some/labels.csv", dataset="table"), "runs/labels"),
        (DataArguments(hub_dataset="owner/name", dataset="hub"), "runs/name"),
        (DataArguments(dataset="surfaces"), "runs/surfaces"),
    ],
)
def test_output_folder_is_named_after_the_data(data, expected):
    assert default_output_dir(data) == expected


def test_versions_of_a_checkout_that_is_not_installed(monkeypatch):
    def find(name):
        if name == "kgl-defects":
            raise PackageNotFoundError(name)
        return "1.0"

    monkeypatch.setattr("kgl.training.settings.version", find)
    assert installed_versions()["kgl"] == "not installed" and installed_versions()["torch"] == "1.0"
