"""Reader of Hub datasets, on local folders."""

import shutil

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, Value
from tiny import count_labels

from kgl.data.arguments import DataArguments
from kgl.data.loading import load_defect_dataset, read_defect_dataset, read_images
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
    with pytest.raises(
        InputError, match="--hub_dataset nobody/nothing: there is no such folder, and it cannot be loaded"
    ):
        load_defect_dataset(args)


@pytest.fixture
def images_named_like_splits(image_folder):
    """Images `test_*`, which `datasets` alone would read and no others."""
    for path in list(image_folder.rglob("[0-3].png")):
        path.rename(path.with_name(f"test_{path.name}"))
    return image_folder


def read_folder(folder, **others):
    loaded = read_images(DataArguments(dataset="hub", hub_dataset=str(folder), **others))
    return {name: count_labels(split) for name, split in loaded.splits.items()}, loaded.notes


ALL = {"good": 12, "scratch": 6}


def test_names_of_images_are_no_splits(images_named_like_splits):
    splits, notes = read_folder(images_named_like_splits)
    assert splits == {"train": ALL}
    assert "words in file names say nothing" in notes[0]


def test_whole_names_of_folders_are_splits(images_named_like_splits, tmp_path):
    for split in ("train", "Test", "val"):
        shutil.copytree(images_named_like_splits, tmp_path / "all" / "data" / split)
    assert read_folder(tmp_path / "all")[0] == {"train": ALL, "test": ALL, "validation": ALL}


@pytest.mark.parametrize("name", ["[2024] parts", "a?b", "testing", "a::b", "{a,b}"])
def test_name_of_the_folder_says_nothing(images_named_like_splits, tmp_path, name):
    shutil.copytree(images_named_like_splits, tmp_path / "axb")  # a?b must not read it
    images_named_like_splits.rename(tmp_path / name)
    assert read_folder(tmp_path / name)[0] == {"train": ALL}


@pytest.mark.parametrize("name", ["[2024] parts", "a?b", "a::b"])
def test_tables_in_a_folder_of_any_name(hub_folder, tmp_path, name):
    (hub_folder / "logo.png").write_bytes(b"of the README")
    hub_folder.rename(tmp_path / name)
    for _ in range(2):  # the second time from the cache
        splits, _ = read_folder(tmp_path / name, image_column="img", label_column="fault")
        assert splits == {"train": {"good": 6, "scratch": 3}, "test": {"good": 6, "scratch": 3}}


def test_classes_of_any_name(image_folder):
    (image_folder / "good").rename(image_folder / "a::b")
    assert read_folder(image_folder)[0] == {"train": {"a::b": 12, "scratch": 6}}


def test_folder_without_doubt_is_read_as_datasets_does(image_folder, tmp_path):
    assert read_folder(image_folder) == ({"train": ALL}, [])
    for split in ("train", "test"):
        shutil.copytree(image_folder, tmp_path / "split" / split)
    assert read_folder(tmp_path / "split") == ({"train": ALL, "test": ALL}, [])


def test_no_table_of_a_folder_is_lost(hub_folder):
    (hub_folder / "data" / "train-00000-of-00001.parquet").rename(hub_folder / "data" / "more.parquet")
    (hub_folder / "data" / "validation-00000-of-00001.parquet").rename(hub_folder / "data" / "test_1.parquet")
    splits, _ = read_folder(hub_folder, image_column="img", label_column="fault")
    assert splits == {"train": {"good": 6, "scratch": 3}, "test": {"good": 6, "scratch": 3}}


def test_names_that_datasets_cannot_read_are_refused(hub_folder, image_folder, tmp_path):
    table = hub_folder / "data" / "validation-00000-of-00001.parquet"
    table.rename(table.with_name("x::y.parquet"))
    with pytest.raises(InputError, match=r"x::y\.parquet cannot be read with :: in its name; rename it"):
        read_folder(hub_folder)
    (image_folder / "README.md").write_text(README)
    image_folder.rename(tmp_path / "a::b")
    with pytest.raises(InputError, match="the files that its README lists cannot be found; rename it"):
        read_folder(tmp_path / "a::b")


README = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: '*/?.png'\n---\n"


def test_splits_in_the_readme_are_kept_and_not_cached(images_named_like_splits, tmp_path):
    (images_named_like_splits / "README.md").write_text(README)
    splits, notes = read_folder(images_named_like_splits)
    assert splits == {"train": {"good": 6, "scratch": 2}} and notes == []
    shutil.copytree(images_named_like_splits, tmp_path / "other" / "images")
    (tmp_path / "other" / "images" / "good" / "9.png").unlink()
    assert read_folder(tmp_path / "other" / "images")[0] == {"train": {"good": 5, "scratch": 2}}


@pytest.mark.parametrize("place", ["train", "train/good"])
def test_folders_of_file_servers_are_left_out(image_folder, tmp_path, place):
    for split in ("train", "test"):
        shutil.copytree(image_folder, tmp_path / "hub" / split)
    shutil.copytree(image_folder / "good", tmp_path / "hub" / place / "@eaDir")
    loaded = read_defect_dataset(DataArguments(hub_dataset=str(tmp_path / "hub"), validation_share=0))
    assert loaded.class_names == ["good", "scratch"]
    assert {split: len(images) for split, images in loaded.splits.items()} == {"train": 18, "test": 18}


def test_tables_in_folders_of_file_servers_are_left_out(hub_folder):
    for split in ("train", "validation"):
        for folder in (split, f"{split}/@eaDir"):
            (hub_folder / folder).mkdir()
            shutil.copy(hub_folder / "data" / f"{split}-00000-of-00001.parquet", hub_folder / folder / "0.parquet")
    shutil.rmtree(hub_folder / "data")
    splits, _ = read_folder(hub_folder, image_column="img", label_column="fault")
    assert splits == {"train": {"good": 6, "scratch": 3}, "test": {"good": 6, "scratch": 3}}


@pytest.mark.parametrize("kind", ["bytes", "struct"])
def test_parquet_of_pandas_with_images(image_folder, tmp_path, kind):
    """The type of the column does not say that these are images."""
    contents = [(image_folder / label / f"{index}.png").read_bytes() for label, index in ROWS]
    cells = contents if kind == "bytes" else [{"bytes": content, "path": "a.png"} for content in contents]
    frame = pd.DataFrame({"image": cells, "mask": cells, "label": [label for label, _ in ROWS]})
    (tmp_path / "hub").mkdir()
    frame.to_parquet(tmp_path / "hub" / "train.parquet")
    row = read_images(DataArguments(hub_dataset=str(tmp_path / "hub"), mask_column="mask")).splits["train"][0]
    assert row["image"].size == row["mask"].size == (48, 40)
    assert row["file_name"] == ("train/0-a.png" if kind == "struct" else "train/0")


def test_masks_that_are_no_images_are_refused(hub_folder):
    with pytest.raises(InputError, match=r"column 'serial' holds Value\(.*, not images; see --mask_column"):
        read_folder(hub_folder, image_column="img", label_column="fault", mask_column="serial")


def test_folders_that_name_no_class_are_refused(image_folder, tmp_path):
    for split in ("train", "test"):
        shutil.copytree(image_folder / "good", tmp_path / "flat" / split)
    with pytest.raises(
        InputError, match=r"neither folders nor a metadata\.csv name the classes .* in .*flat/test; sort"
    ):
        read_folder(tmp_path / "flat")
    shutil.copytree(image_folder / "good", image_folder / "good" / "lot1")
    advice = rf"as {image_folder}/good and {image_folder}/good/lot1, .*; give --data_dir {image_folder}, which reads"
    with pytest.raises(InputError, match=advice):
        read_folder(image_folder)


def test_folders_of_one_name_are_noted(image_folder):
    for label in ("good", "scratch"):
        for index in (0, 1):
            (image_folder / label / f"lot{index}").mkdir()
        for path in sorted((image_folder / label).glob("*.png")):
            path.rename(path.parent / f"lot{int(path.stem) % 2}" / path.name)
    splits, notes = read_folder(image_folder)
    assert splits == {"train": {"lot0": 9, "lot1": 9}}
    assert "(lot0, lot1), and several are called lot0, lot1; if the folders around them are the classes" in notes[0]


def test_links_out_of_the_folder_get_advice(image_folder, tmp_path):
    (image_folder / "scratch").rename(tmp_path / "store")
    (image_folder / "scratch").symlink_to(tmp_path / "store")
    advice = (
        r"image .*scratch/0\.png lies outside of the folder, where a link leads; .* --data_dir, which follows links"
    )
    with pytest.raises(InputError, match=advice):
        read_folder(image_folder)


def test_validation_that_serves_as_test_is_noted(hub_folder):
    args = DataArguments(hub_dataset=str(hub_folder), image_column="img", label_column="fault", validation_share=0)
    note = f"--hub_dataset {hub_folder}: as there is no test split, validation serves as test split."
    assert note in read_images(args).notes
