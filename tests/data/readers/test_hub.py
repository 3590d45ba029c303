"""Reader of Hub datasets, on local folders."""

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from kgl.data.arguments import DataArguments
from kgl.data.loading import load_defect_dataset, read_defect_dataset
from kgl.errors import InputError


ROWS = [("good", index) for index in range(12)] + [("scratch", index) for index in range(6)]


@pytest.fixture
def hub_folder(image_folder, tmp_path):
    """A folder like a Hub repository: parquet files of two splits."""
    features = Features(img=Image(), fault=ClassLabel(names=["good", "scratch"]), serial=Value("int64"))

    def table(rows):
        columns = {
            "img": [
                {"bytes": (image_folder / label / f"{index}.png").read_bytes(), "path": f"{index}.png"}
                for label, index in rows
            ],
            "fault": [label for label, _ in rows],
            "serial": [index for _, index in rows],
        }
        return Dataset.from_dict(columns, features=features)

    folder = tmp_path / "hub" / "data"
    folder.mkdir(parents=True)
    for split, rows in DatasetDict(train=table(ROWS[::2]), validation=table(ROWS[1::2])).items():
        rows.to_parquet(folder / f"{split}-00000-of-00001.parquet")
    return folder.parent


def test_splits_groups_and_file_names(hub_folder):
    args = DataArguments(
        hub_dataset=str(hub_folder), image_column="img", label_column="fault", group_column="serial",
        validation_share=0,
    )  # fmt: skip
    loaded = read_defect_dataset(args)
    assert (loaded.dataset, loaded.source) == ("hub", f"--hub_dataset {hub_folder}")
    assert loaded.defect_free_label == "good"
    splits = loaded.splits
    assert {name: len(split) for name, split in splits.items()} == {"train": 9, "test": 9}
    assert set(splits["train"].column_names) == {"image", "label", "mask", "file_name", "digest", "group"}
    assert splits["train"][0]["image"].size == (48, 40)
    assert splits["train"][0]["file_name"] == "train/0-0.png" and splits["train"][1]["group"] == "2"
    rows = Dataset.from_parquet(str(hub_folder / "data" / "train-00000-of-00001.parquet")).select(range(4, 9))
    rows.to_parquet(hub_folder / "data" / "test-00000-of-00001.parquet")
    splits = load_defect_dataset(args)
    assert {name: len(split) for name, split in splits.items()} == {"train": 9, "validation": 9, "test": 5}
    unlabelled = rows.remove_columns("fault").add_column("fault", [-1] * 5)
    unlabelled = unlabelled.cast_column("fault", ClassLabel(names=["good", "scratch"]))
    unlabelled.to_parquet(hub_folder / "data" / "test-00000-of-00001.parquet")
    with pytest.raises(InputError, match="no 'fault' in row 1, 2, 3, 4, 5; every row needs a label"):
        load_defect_dataset(args)
    args.label_column = "class"
    with pytest.raises(InputError, match=r"no column 'class' \(--label_column\); it has img, fault, serial"):
        load_defect_dataset(args)
    args.label_column, args.image_column = "fault", "serial"
    with pytest.raises(InputError, match=r"column 'serial' holds Value.*, not images; see --image_column"):
        load_defect_dataset(args)
    args.hub_dataset = "nobody/nothing"
    with pytest.raises(InputError, match="--hub_dataset nobody/nothing: it cannot be loaded"):
        load_defect_dataset(args)
