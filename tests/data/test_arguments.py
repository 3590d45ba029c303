"""Arguments that name a dataset and its splits."""

from pathlib import Path

import pytest

from kgl.data.arguments import DataArguments
from kgl.errors import InputError


@pytest.mark.parametrize(
    "setting",
    [
        {"fold": 3},
        {"num_folds": 1},
        {"split_seed": -1},
        {"train_per_class": 0},
        {"surface_size": 16},
        {"fold": -1},
        {"validation_share": 0.6},
        {"dataset": "folder"},
        {"on_bad_image": "keep"},
        {"duplicate_distance": 200},
        {"grade_thresholds": [2.0, 1.0]},
        {"grade_names": ["a", "b"]},
    ],
)
def test_settings_out_of_range_are_refused(setting):
    with pytest.raises(InputError, match=f"--{next(iter(setting))}[ :]"):
        DataArguments(**setting)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"dataset": "imagefolder", "data_dir": "a", "hub_dataset": "me/set"},
            "--hub_dataset me/set has no effect beside --dataset imagefolder; leave one of them out",
        ),
        (
            {"dataset": "hub", "hub_dataset": "me/set", "data_file": "t.csv"},
            "--data_file t.csv has no effect beside --dataset hub",
        ),
        (
            {"dataset": "hub", "data_dir": "me/set"},
            "--data_dir me/set has no effect beside --dataset hub; give it as --hub_dataset me/set.",
        ),
        ({"dataset": "surfaces", "data_dir": "a"}, "--data_dir a has no effect beside --dataset surfaces"),
        ({"dataset": "magnetic_tile", "data_file": "t.csv"}, "--data_file t.csv has no effect beside"),
        (
            {"data_file": "t.csv", "hub_dataset": "me/set"},
            "--hub_dataset me/set has no effect beside --data_file t.csv",
        ),
        ({"data_dir": "a", "hub_dataset": "me/set"}, "--data_dir a has no effect beside --hub_dataset me/set"),
        ({"data_dir": "a", "hub_config": "small"}, "--hub_config small has no effect beside --data_dir a"),
        ({"data_dir": "a", "group_column": "part"}, "--group_column part has no effect beside --data_dir a"),
        ({"hub_dataset": "me/set", "split_column": "use"}, "--split_column use has no effect beside --hub_dataset"),
        ({"data_dir": "a", "grade_thresholds": [1.0, 2.0]}, r"--grade_thresholds 1\.0 2\.0 has no effect beside"),
    ],
)
def test_settings_that_the_dataset_does_not_read_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        DataArguments(**settings)


def test_settings_that_the_dataset_reads_are_accepted():
    DataArguments(data_file="t.csv", data_dir="a", mask_column="mask", group_column="part", split_column="use")
    DataArguments(hub_dataset="me/set", hub_config="small", mask_column="mask", grade_thresholds=[1.0])


def test_home_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    assert DataArguments(data_dir="~/images").data_dir == "/home/me/images"
    table = DataArguments(data_file="~/t.csv", data_dir="images")
    assert (table.data_file, table.data_dir) == ("/home/me/t.csv", "images")
    assert Path(DataArguments(hub_dataset="~/set").hub_dataset) == Path("/home/me/set")
