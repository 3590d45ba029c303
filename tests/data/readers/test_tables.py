"""Tables and datasets of the Hub."""

import csv
import json
from collections import Counter

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value

from kgl.data.arguments import DataArguments
from kgl.data.loading import load_defect_dataset, read_defect_dataset
from kgl.errors import InputError


ROWS = [("good", index) for index in range(12)] + [("scratch", index) for index in range(6)]


def labels_of(splits):
    return sum((Counter(split.features["label"].int2str(split["label"])) for split in splits.values()), Counter())


def load(path, **others):
    return load_defect_dataset(DataArguments("table", data_file=str(path), validation_share=0, **others))


def write_csv(path, header, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def test_csv_jsonl_and_parquet_read_alike(image_folder):
    rows = [{"file": f"{label}/{index}.png", "class": label} for label, index in ROWS]
    table = write_csv(image_folder / "a.csv", rows[0].keys(), [row.values() for row in rows])
    lines = image_folder / "b.jsonl"
    lines.write_text("\n".join(map(json.dumps, rows)))
    frame = image_folder / "c.parquet"
    pd.DataFrame(rows).to_parquet(frame)
    names = {"image_column": "file", "label_column": "class", "defect_free_label": "good"}
    read = [load(path, **names) for path in (table, lines, frame)]
    assert labels_of(read[0]) == {"good": 12, "scratch": 6}
    for splits in read[1:]:
        assert splits["test"]["file_name"] == read[0]["test"]["file_name"]
        assert splits["train"]["digest"] == read[0]["train"]["digest"]
    elsewhere = table.rename(image_folder.parent / "elsewhere.csv")
    assert labels_of(load(elsewhere, data_dir=str(image_folder), **names)) == labels_of(read[0])


def test_labels_may_be_numbers_and_grades(image_folder):
    rows = [(f"{label}/{index}.png", 10 if label == "good" else 2, index * 0.25) for label, index in ROWS]
    table = write_csv(image_folder / "t.csv", ("image", "label", "grade"), rows)
    splits = load(table, defect_free_label="10")
    assert splits["train"].features["label"].names == ["2", "10"] and labels_of(splits) == {"10": 12, "2": 6}
    graded = load(table, label_column="grade", grade_thresholds=[0.5, 1.5])
    assert graded["train"].features["label"].names == ["below 0.5", "0.5 to 1.5", "from 1.5"]
    assert labels_of(graded) == {"below 0.5": 4, "0.5 to 1.5": 8, "from 1.5": 6}
    named = load(table, label_column="grade", grade_thresholds=[1.0], grade_names=["fine", "bad"])
    assert labels_of(named) == {"fine": 8, "bad": 10}
    with pytest.raises(InputError, match=r"'grade' holds grades such as 0\.0: part them by --grade_thresholds"):
        load(table, label_column="grade")


def test_groups_masks_and_splits_of_a_table(image_folder):
    rows = [
        (f"{label}/{index}.png", label, f"part{index // 2}", f"{label}/0.png" if label != "good" else "", split)
        for (label, index), split in zip(ROWS, ["train", "train", "eval"] * 6, strict=True)
    ]
    table = write_csv(image_folder / "t.csv", ("image", "label", "part", "mask", "use"), rows)
    splits = load(table, group_column="part", mask_column="mask", split_column="use", train_on_masks=True)
    assert len(splits["train"]) == 12 and len(splits["test"]) == 6
    assert {group for split in splits.values() for group in split["group"]} <= {f"part{i}" for i in range(6)}
    for row in splits["train"]:
        assert (row["mask"] is None) == row["file_name"].startswith("good")
    folds = load(table, group_column="part")
    assert not set(folds["train"]["group"]) & set(folds["test"]["group"])


def test_words_that_other_programs_take_for_nothing_are_words(image_folder):
    """And a row without a group is a group by itself."""
    rows = [(f"{label}/{index}.png", "NA" if label == "good" else "None", "a" * (index < 2)) for label, index in ROWS]
    table = write_csv(image_folder / "t.csv", ("image", "label", "part"), rows)
    splits = load(table, group_column="part", num_folds=2)
    assert labels_of(splits) == {"NA": 12, "None": 6}
    groups = [group for split in splits.values() for group in split["group"]]
    assert groups.count("a") == 4 and len(set(groups)) == 15


def test_a_table_may_bring_validation_and_groups_that_leak(image_folder):
    rows = [
        (f"{label}/{index}.png", label, f"p{index % 6}", split)
        for (label, index), split in zip(ROWS, ["train", "train", "valid", "test"] * 5, strict=False)
    ]
    table = write_csv(image_folder / "t.csv", ("image", "label", "part", "use"), rows)
    args = DataArguments("table", data_file=str(table), split_column="use", group_column="part")
    splits, oddities = read_defect_dataset(args)
    assert {name: len(split) for name, split in splits.items()} == {"train": 10, "validation": 4, "test": 4}
    leaks = [one for one in oddities if one.kind == "published split leaks"]
    assert len(leaks) == 6 and "one group in" in leaks[0].note


def test_labels_that_are_no_numbers(image_folder):
    table = image_folder / "t.parquet"
    rows = [{"image": f"good/{index}.png", "label": index / 2} for index in range(4)]
    rows[2]["label"] = float("nan")
    pd.DataFrame(rows).to_parquet(table)
    for others in ({}, {"grade_thresholds": [1.0]}):
        with pytest.raises(InputError, match=r"no 'label' in row 3\."):
            load(table, **others)
    (image_folder / "empty.jsonl").touch()
    with pytest.raises(InputError, match="it has no rows"):
        load(image_folder / "empty.jsonl")


@pytest.mark.parametrize(
    ("rows", "others", "message"),
    [
        ([("good/0.png", "a"), ("../secret.png", "b")], {}, r"row 2: \.\./secret\.png lies outside of"),
        ([("good/0.png", "a"), ("/etc/passwd", "b")], {}, r"row 2: /etc/passwd lies outside of"),
        ([("good/0.png", "a"), ("good/../../secret.png", "b")], {}, r"row 2: .* lies outside of"),
        ([("good/0.png", "a"), (f"{'a' * 300}/0.png", "b")], {}, r"row 2: a{80} \.\.\. is no path of an image"),
        ([("good/0.png", "a"), ("good/0.png", "b")], {}, r"listed more than once: .*good/0\.png"),
        ([("good/0.png", "a"), ("good/1.png", "")], {}, r"no 'label' in row 2\."),
        ([("good/0.png", "a"), ("", "b")], {}, "row 2: None is no path"),
        ([("good/0.png", "a"), ("good/gone.png", "b")], {}, r"1 images cannot be used: good/gone\.png \(.*No such"),
        ([("good/0.png", "a")], {"image_column": "file"}, r"no column 'file' \(--image_column\); it has image, label"),
        ([("good/0.png", "a")], {"grade_thresholds": [1.0]}, "part numbers, and 'label' holds 'a'"),
        ([("good/0.png", "a")], {"split_column": "label"}, "must say train, test and maybe validation; it says a"),
        ([], {}, "it has no rows|cannot be read"),
    ],
)
def test_bad_tables_are_named(image_folder, rows, others, message):
    (image_folder.parent / "secret.png").write_bytes((image_folder / "good" / "0.png").read_bytes())
    table = write_csv(image_folder / "t.csv", ("image", "label"), rows)
    with pytest.raises(InputError, match=message):
        load(table, **others)


def test_bad_files_are_named(tmp_path):
    for name, message in (("t.xlsx", r"must end in \.csv"), ("t.csv", "there is no such file")):
        with pytest.raises(InputError, match=message):
            load(tmp_path / name)
    (tmp_path / "b.parquet").write_bytes(b"no table")
    with pytest.raises(InputError, match=r"b\.parquet: it cannot be read"):
        load(tmp_path / "b.parquet")


@pytest.fixture
def hub_folder(image_folder, tmp_path):
    """A repository as the Hub's, in a folder: parquet files of two splits."""
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


def test_a_data_set_of_the_hub(hub_folder):
    args = DataArguments(
        "hub", hub_dataset=str(hub_folder), image_column="img", label_column="fault", group_column="serial",
        defect_free_label="good", validation_share=0,
    )  # fmt: skip
    splits = load_defect_dataset(args)
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
    with pytest.raises(InputError, match="no class in row 1, 2, 3, 4, 5; choose a split that has labels"):
        load_defect_dataset(args)
    args.label_column = "class"
    with pytest.raises(InputError, match=r"no column 'class' \(--label_column\); it has img, fault, serial"):
        load_defect_dataset(args)
    args.label_column, args.image_column = "fault", "serial"
    with pytest.raises(InputError, match="column 'serial' holds no images"):
        load_defect_dataset(args)
    args.hub_dataset = "nobody/nothing"
    with pytest.raises(InputError, match="--hub_dataset nobody/nothing: it cannot be loaded"):
        load_defect_dataset(args)
