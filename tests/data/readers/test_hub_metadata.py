"""Metadata files in local folders like a repository of the Hub: their cells are text."""

import json
import zipfile
from itertools import cycle

import pytest
from tiny import count_labels, save_mask

from kgl.data.arguments import DataArguments
from kgl.data.loading import read_images
from kgl.errors import InputError


LABELS = ["1", "01", "NA", "1E3", "1000", "true", "null", "nan", "00"]


@pytest.fixture
def flat_folder(image_folder, tmp_path):
    """A folder of 18 images, `0.png` to `17.png`."""
    folder = tmp_path / "parts"
    folder.mkdir()
    for index, image in enumerate(sorted(image_folder.rglob("*.png"))):
        image.rename(folder / f"{index}.png")
    return folder


def rows_of(labels, **columns):
    return [
        {"file_name": f"{index}.png", "label": label} | {name: value(index) for name, value in columns.items()}
        for index, label in zip(range(18), cycle(labels), strict=False)
    ]


def write_csv(path, rows):
    path.write_text("\n".join([",".join(rows[0]), *(",".join(map(str, row.values())) for row in rows)]) + "\n")


def read(folder, **others):
    return read_images(DataArguments(dataset="hub", hub_dataset=str(folder), defect_free_label="1", **others))


@pytest.mark.parametrize("name", ["parts", "a::b", "[2024]"])
def test_labels_and_groups_stay_text(flat_folder, tmp_path, name):
    write_csv(flat_folder / "metadata.csv", rows_of(LABELS, lot=lambda index: "007" if index < 9 else "7"))
    loaded = read(flat_folder.rename(tmp_path / name), group_column="lot")
    rows = loaded.splits["train"]
    assert set(rows.features["label"].names) == set(LABELS) and count_labels(rows) == dict.fromkeys(LABELS, 2)
    assert set(rows["group"]) == {"7", "007"}


def test_numbers_of_json_lines_stay_as_written(flat_folder):
    lines = [json.dumps(row) for row in rows_of(["01", "1"])]
    lines[0] = '{"file_name": "0.png", "label": 1e3}'
    (flat_folder / "metadata.jsonl").write_text("\n".join(lines))
    assert count_labels(read(flat_folder).splits["train"]) == {"01": 8, "1": 9, "1e3": 1}


def test_splits_are_those_of_the_images(flat_folder):
    """One table above both splits, which names some of the images."""
    rows = rows_of(["1", "01"])
    for split in ("train", "test"):
        (flat_folder / split).mkdir()
    for index, row in enumerate(rows):
        split = "test" if index % 3 == 0 else "train"
        (flat_folder / row["file_name"]).rename(flat_folder / split / row["file_name"])
        row["file_name"] = f"{split}/{row['file_name']}"
    write_csv(flat_folder / "metadata.csv", rows[:-1])
    loaded = read(flat_folder)
    assert {name: count_labels(split) for name, split in loaded.splits.items()} == {
        "train": {"1": 6, "01": 5},
        "test": {"1": 3, "01": 3},
    }
    assert "1 image without a row in a metadata file left out" in loaded.notes[-1]


def test_tables_of_splits_and_masks(flat_folder):
    for split, indices in (("train", range(9)), ("test", range(9, 18))):
        rows = [row | {"mask_file_name": ""} for row in rows_of(["1", "01"])]
        rows[0]["mask_file_name"] = rows[9]["mask_file_name"] = "masks/0.jpg"
        for index in indices:
            (flat_folder / split).mkdir(exist_ok=True)
            (flat_folder / f"{index}.png").rename(flat_folder / split / f"{index}.png")
        save_mask(flat_folder / split / "masks" / "0.jpg")
        write_csv(flat_folder / split / "metadata.csv", [rows[index] for index in indices])
    splits = read(flat_folder, mask_column="mask").splits
    assert {name: count_labels(split) for name, split in splits.items()} == {
        "train": {"1": 5, "01": 4},
        "test": {"1": 4, "01": 5},
    }
    assert [mask is not None for mask in splits["test"]["mask"]] == [True] + [False] * 8
    assert splits["train"][0]["image"].size == (48, 40)


@pytest.mark.parametrize("name", ["../secret.png", "/etc/secret.png", "~/secret.png", "file:///secret.png"])
def test_files_elsewhere_and_missing_ones_are_refused(flat_folder, name):
    rows = rows_of(["1", "01"])
    rows[2]["file_name"] = name
    write_csv(flat_folder / "metadata.csv", rows)
    (flat_folder.parent / "secret.png").write_bytes((flat_folder / "0.png").read_bytes())
    with pytest.raises(InputError, match=r"row 3: image .* is no file of this dataset|image: train/2-secret"):
        read(flat_folder)


def test_what_is_missing_is_named(flat_folder):
    write_csv(flat_folder / "metadata.csv", rows_of(["1", "01"]))
    with pytest.raises(InputError, match=r"metadata\.csv: there is no column 'fault' \(--label_column\); it has file"):
        read(flat_folder, label_column="fault")
    write_csv(flat_folder / "metadata.csv", [*rows_of(["1", ""])])
    with pytest.raises(InputError, match="no 'label' in row 2, 4, 6"):
        read(flat_folder)
    (flat_folder / "metadata.csv").write_text("file_name,label\n")
    with pytest.raises(InputError, match="its metadata files have no rows"):
        read(flat_folder)


def test_text_in_an_archive_is_not_guessed(flat_folder, tmp_path):
    write_csv(flat_folder / "metadata.csv", rows_of(["1", "01"]))
    (tmp_path / "hub").mkdir()
    with zipfile.ZipFile(tmp_path / "hub" / "train.zip", "w") as archive:
        for file in flat_folder.iterdir():
            archive.write(file, file.name)
    with pytest.raises(InputError, match=r"train\.zip holds a metadata\.csv, .*; unpack the archive"):
        read(tmp_path / "hub")
