"""Reader of tables."""

import csv
import json
import shutil

import pandas as pd
import pytest
from tiny import count_labels

from kgl.data.arguments import DataArguments
from kgl.data.loading import load_defect_dataset, read_defect_dataset, read_images
from kgl.errors import InputError


ROWS = [("good", index) for index in range(12)] + [("scratch", index) for index in range(6)]


def load(path, **others):
    return load_defect_dataset(DataArguments(data_file=str(path), validation_share=0, **others))


def write_csv(path, header, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def test_formats_are_read_alike(image_folder):
    rows = [{"file": f"{label}/{index}.png", "class": label} for label, index in ROWS]
    table = write_csv(image_folder / "a.csv", rows[0].keys(), [row.values() for row in rows])
    lines = image_folder / "b.jsonl"
    lines.write_text("\n".join(map(json.dumps, rows)))
    frame = image_folder / "c.parquet"
    pd.DataFrame(rows).to_parquet(frame)
    names = {"image_column": "file", "label_column": "class"}
    read = [load(path, **names) for path in (table, lines, frame)]
    assert count_labels(*read[0].values()) == {"good": 12, "scratch": 6}
    for splits in read[1:]:
        assert splits["test"]["file_name"] == read[0]["test"]["file_name"]
        assert splits["train"]["digest"] == read[0]["train"]["digest"]
    elsewhere = table.rename(image_folder.parent / "elsewhere.csv")
    assert count_labels(*load(elsewhere, data_dir=str(image_folder), **names).values()) == count_labels(
        *read[0].values()
    )


def test_numbers_and_grades_as_labels(image_folder):
    rows = [(f"{label}/{index}.png", 10 if label == "good" else 2, index * 0.25) for label, index in ROWS]
    table = write_csv(image_folder / "t.csv", ("image", "label", "grade"), rows)
    splits = load(table, defect_free_label="10")
    assert splits["train"].features["label"].names == ["2", "10"]
    assert count_labels(*splits.values()) == {"10": 12, "2": 6}
    graded = load(table, label_column="grade", grade_thresholds=[0.5, 1.5])
    assert graded["train"].features["label"].names == ["below 0.5", "0.5 to 1.5", "from 1.5"]
    assert count_labels(*graded.values()) == {"below 0.5": 4, "0.5 to 1.5": 8, "from 1.5": 6}
    named = load(table, label_column="grade", grade_thresholds=[1.0], grade_names=["fine", "bad"])
    assert count_labels(*named.values()) == {"fine": 8, "bad": 10}
    with pytest.raises(
        InputError, match=r"'grade' holds grades such as 0\.0; give --grade_thresholds to turn them into classes"
    ):
        load(table, label_column="grade")


@pytest.mark.parametrize("separator", [";", "  "])
def test_decimal_commas_are_read_like_points(image_folder, separator):
    def write(grade):
        lines = [f"{label}/{index}.png{separator}{grade(index)}" for label, index in ROWS]
        (image_folder / "t.csv").write_text("\n".join(lines))
        return image_folder / "t.csv"

    table = write(lambda index: f"{index / 8:.3f}".replace(".", ","))
    graded = load(table, grade_thresholds=[0.5])
    assert count_labels(*graded.values()) == {"below 0.5": 8, "from 0.5": 10}
    with pytest.raises(InputError, match="holds grades such as 0,000; give --grade_thresholds"):
        load(table)
    for ambiguous in (lambda index: f"{index + 1},000", lambda index: ("0,5", "1.5")[index % 2]):
        with pytest.raises(InputError, match=r"needs numbers, and .* holds '.*,.*'; write numbers as 0\.7 or 1000\."):
            load(write(ambiguous), grade_thresholds=[1.0])
    assert len(load(write(lambda index: f"{index % 2 + 1},000"))["train"].features["label"].names) == 2


def test_decimal_commas_before_a_semicolon(image_folder):
    lines = [f"{'0,7' if label == 'good' else '1,5'};{label}/{index}.png" for label, index in ROWS]
    (image_folder / "t.csv").write_text("\n".join(lines))
    splits = load(image_folder / "t.csv", image_column="2", label_column="1", grade_thresholds=[1.0])
    assert count_labels(*splits.values()) == {"below 1": 12, "from 1": 6}


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


def test_groups_of_the_source_are_kept_where_near_duplicates_join_them(image_folder):
    shutil.copy(image_folder / "good" / "0.png", image_folder / "good" / "copy.png")
    rows = [(f"{label}/{index}.png", label, f"part{index // 2}" * (index < 4)) for label, index in ROWS]
    table = write_csv(image_folder / "t.csv", ("image", "label", "part"), [*rows, ("good/copy.png", "good", "lot")])
    loaded = read_defect_dataset(DataArguments(data_file=str(table), group_column="part"))
    assert loaded.source_groups == {"good/copy.png": "lot"} | {name: part for name, _, part in rows if part}
    joined = {row["file_name"]: row["group"] for split in loaded.splits.values() for row in split}
    assert joined["good/copy.png"] == joined["good/0.png"]
    assert read_defect_dataset(DataArguments(data_file=str(table))).source_groups == {}


def test_na_and_none_are_labels_and_a_missing_group_is_its_own(image_folder):
    rows = [(f"{label}/{index}.png", "NA" if label == "good" else "None", "a" * (index < 2)) for label, index in ROWS]
    table = write_csv(image_folder / "t.csv", ("image", "label", "part"), rows)
    splits = load(table, group_column="part", num_folds=2)
    assert count_labels(*splits.values()) == {"NA": 12, "None": 6}
    groups = [group for split in splits.values() for group in split["group"]]
    assert groups.count("a") == 4 and len(set(groups)) == 15


def test_a_validation_split_and_leaking_groups(image_folder):
    rows = [
        (f"{label}/{index}.png", label, f"p{index % 6}", split)
        for (label, index), split in zip(ROWS, ["train", "train", "valid", "test"] * 5, strict=False)
    ]
    table = write_csv(image_folder / "t.csv", ("image", "label", "part", "use"), rows)
    args = DataArguments(data_file=str(table), split_column="use", group_column="part")
    loaded = read_defect_dataset(args)
    assert (loaded.dataset, loaded.source) == ("table", f"--data_file {table}")
    assert {name: len(split) for name, split in loaded.splits.items()} == {"train": 10, "validation": 4, "test": 4}
    leaks = [issue for issue in loaded.issues if issue.kind == "source split leaks"]
    assert len(leaks) == 6 and "one group in" in leaks[0].note


def test_missing_labels_and_empty_tables_are_refused(image_folder):
    table = image_folder / "t.parquet"
    rows = [{"image": f"good/{index}.png", "label": index / 2} for index in range(4)]
    rows[2]["label"] = float("nan")
    pd.DataFrame(rows).to_parquet(table)
    for others in ({}, {"grade_thresholds": [1.0]}):
        with pytest.raises(InputError, match=r"no 'label' in row 3; every row needs a label"):
            load(table, **others)
    (image_folder / "empty.jsonl").touch()
    with pytest.raises(InputError, match="it has no rows"):
        load(image_folder / "empty.jsonl")


@pytest.mark.parametrize(
    ("rows", "others", "message"),
    [
        ([("good/0.png", "a"), ("../secret.png", "b")], {}, r"row 2: \.\./secret\.png is outside of"),
        ([("good/0.png", "a"), ("/etc/passwd", "b")], {}, r"row 2: /etc/passwd is outside of"),
        ([("good/0.png", "a"), ("good/../../secret.png", "b")], {}, r"row 2: .* is outside of"),
        ([("good/0.png", "a"), (f"{'a' * 300}/0.png", "b")], {}, r"row 2: a{80} \.\.\. is not the path of an image"),
        ([("good/0.png", "a"), ("good/0.png", "b")], {}, r"listed more than once: .*good/0\.png"),
        ([("good/0.png", "a"), ("good/1.png", "")], {}, r"no 'label' in row 2; every row needs a label"),
        ([("good/0.png", "a"), ("", "b")], {}, "row 2: column 'image' is empty"),
        ([("good/0.png", "a"), ("good/gone.png", "b")], {}, r"1 unusable image: good/gone\.png \(.*No such"),
        ([("good/0.png", "a")], {"image_column": "file"}, r"no column 'file' \(--image_column\); it has image, label"),
        ([("good/0.png", "a")], {"grade_thresholds": [1.0]}, "needs numbers, and 'label' holds 'a'; leave it out"),
        (
            [("good/0.png", "a")],
            {"split_column": "label"},
            "must hold train, test and optionally validation; it holds a",
        ),
        ([], {}, "it has no rows|cannot be read"),
    ],
)
def test_tables_that_cannot_be_used_are_refused(image_folder, rows, others, message):
    (image_folder.parent / "secret.png").write_bytes((image_folder / "good" / "0.png").read_bytes())
    table = write_csv(image_folder / "t.csv", ("image", "label"), rows)
    with pytest.raises(InputError, match=message):
        load(table, **others)


def test_files_that_are_no_table_are_refused(tmp_path):
    for name, message in (("t.doc", r"must end in \.csv, \.tsv"), ("t.csv", "there is no such file")):
        with pytest.raises(InputError, match=message):
            load(tmp_path / name)
    for ending in (".xls", ".ODS"):
        with pytest.raises(
            InputError, match=rf"spreadsheets ending in {ending.lower()} are not read; save it as \.xlsx"
        ):
            load(tmp_path / f"t{ending}")
    (tmp_path / "b.parquet").write_bytes(b"no table")
    with pytest.raises(InputError, match=r"b\.parquet: it cannot be read"):
        load(tmp_path / "b.parquet")


def test_words_for_splits_are_those_of_folders(image_folder):
    rows = [(f"{label}/{index}.png", label, "Training" if index % 2 else "testing") for label, index in ROWS]
    splits = load(write_csv(image_folder / "t.csv", ("image", "label", "use"), rows), split_column="use")
    assert {split: len(images) for split, images in splits.items()} == {"train": 9, "test": 9}


def test_validation_that_serves_as_test_is_noted(image_folder):
    rows = [(f"{label}/{index}.png", label, "train" if index % 2 else "val") for label, index in ROWS]
    table = write_csv(image_folder / "t.csv", ("image", "label", "use"), rows)
    args = DataArguments(data_file=str(table), split_column="use", validation_share=0)
    assert f"--data_file {table}: as there is no test split, val serves as test split." in read_images(args).notes
