"""Loading a dataset and its splits."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tiny import count_labels

from kgl.data.arguments import DataArguments
from kgl.data.loading import load_defect_dataset, read_defect_dataset, read_images
from kgl.errors import InputError


TRAIN = {True: "train", False: "test"}


def test_splits_have_the_columns_of_the_schema(image_folder):
    splits = load_defect_dataset(DataArguments(data_dir=str(image_folder)))
    assert list(splits) == ["train", "validation", "test"]
    for split in splits.values():
        assert set(split.column_names) == {"image", "label", "mask", "group", "file_name", "digest"}
        assert split.features == splits["train"].features


def test_dataset_and_defect_free_class_are_recognised(image_folder):
    loaded = read_defect_dataset(DataArguments(data_dir=str(image_folder)))
    assert (loaded.dataset, loaded.source) == ("imagefolder", f"--data_dir {image_folder}")
    assert (loaded.defect_free_label, loaded.defect_free.origin) == ("good", "recognised")
    assert (loaded.class_names, loaded.duplicate_distance) == (["good", "scratch"], 16)
    assert (loaded.issues, loaded.notes, loaded.warnings) == ([], [], [])
    given = read_images(DataArguments("imagefolder", str(image_folder), defect_free_label="scratch"))
    assert (given.defect_free_label, given.defect_free.origin) == ("scratch", "given")
    assert read_images(DataArguments(data_dir=str(image_folder), defect_free_label="none")).defect_free_label is None
    near = read_images(DataArguments(data_dir=str(image_folder), duplicate_distance=3))
    assert near.duplicate_distance == 3


def test_home_is_expanded(image_folder, monkeypatch):
    monkeypatch.setenv("HOME", str(image_folder.parent))
    assert len(read_images(DataArguments(data_dir="~/images")).splits["train"]) == 18


def test_nothing_is_printed_without_a_terminal(image_folder, capfd):
    read_defect_dataset(DataArguments(data_dir=str(image_folder)))
    assert capfd.readouterr() == ("", "")


def test_folds_partition_the_images(image_folder):
    tests = [
        load_defect_dataset(DataArguments(data_dir=str(image_folder), validation_share=0, fold=fold))["test"]
        for fold in range(3)
    ]
    names = [name for test in tests for name in test["file_name"]]
    assert len(names) == len(set(names)) == 18


def test_identical_images_stay_in_one_split(image_folder):
    for index in range(4):
        shutil.copy(image_folder / "good" / "0.png", image_folder / "good" / f"copy{index}.png")
    for fold in range(3):
        loaded = read_defect_dataset(DataArguments(data_dir=str(image_folder), validation_share=0.3, fold=fold))
        digests = [set(split["digest"]) for split in loaded.splits.values()]
        assert len(digests) == 3 and len(set.union(*digests)) == sum(map(len, digests)) == 18
    copies = next(issue for issue in loaded.issues if issue.kind == "identical images")
    assert copies.files == ("good/0.png", *(f"good/copy{index}.png" for index in range(4)))


def test_larger_budgets_contain_smaller_ones(image_folder):
    def names(**budget):
        args = DataArguments(data_dir=str(image_folder), validation_share=0, **budget)
        return set(load_defect_dataset(args)["train"]["file_name"])

    small, large = names(train_per_class=2, train_defect_free=3), names(train_per_class=3, train_defect_free=5)
    assert len(small) == 5 and len(large) == 8 and small < large
    assert len(names(train_per_class=2)) == 2 + 8


@pytest.mark.parametrize("seed", range(4))
def test_budgets_are_nested_in_training_and_validation(seed):
    def names(budget):
        args = DataArguments(
            "surfaces",
            num_surfaces=240,
            surface_size=32,
            split_seed=0,
            train_per_class=budget,
            train_defect_free=3 * budget,
        )
        splits = load_defect_dataset(args)
        assert count_labels(splits["train"], splits["validation"])["pit"] == budget
        return [set(splits[name]["file_name"]) for name in ("train", "validation")]

    (small, small_held), (large, large_held) = names(5 + seed), names(15)
    assert small < large and small_held < large_held and not large & large_held


def test_leaks_between_source_splits_are_warned_of(image_folder, tmp_path, caplog):
    for split in ("train", "test"):
        shutil.copytree(image_folder, tmp_path / "split" / split)
    shutil.rmtree(tmp_path / "split" / "test" / "good")
    shutil.copytree(image_folder / "scratch", tmp_path / "split" / "test" / "good")
    load_defect_dataset(DataArguments(data_dir=str(tmp_path / "split"), validation_share=0))
    assert "Leaks between splits of the source: 6, such as train/scratch/0.png, test/good/0.png" in caplog.text
    assert "Identical images with different labels: 6, such as" in caplog.text
    assert "Mind: figures of the test images come out too good; remove one side, or give images" in caplog.text


def test_validation_of_one_kind_only_is_noted(image_folder, tmp_path):
    for split in ("train", "test"):
        shutil.copytree(image_folder, tmp_path / "split" / split)
    shutil.copytree(image_folder / "good", tmp_path / "split" / "val" / "good")
    args = DataArguments(data_dir=str(tmp_path / "split"))
    note = "No operating point is chosen: the validation images are all good or all defective."
    assert read_defect_dataset(args).notes == [note]
    assert read_defect_dataset(replace(args, defect_free_label="none")).notes == []


def test_unrecognised_defect_free_class_is_noted(image_folder):
    (image_folder / "good").rename(image_folder / "below 0.4")
    args = DataArguments(data_dir=str(image_folder))
    (note,) = read_defect_dataset(args).notes
    assert "No class is recognised as free of defects" in note and "Name it with --defect_free_label" in note
    for label in ("below 0.4", "none"):
        assert read_defect_dataset(replace(args, defect_free_label=label)).notes == []


def test_the_first_unusable_images_are_named(image_folder):
    (image_folder / "good" / "3.png").write_bytes(b"no image")
    content = (image_folder / "scratch" / "1.png").read_bytes()
    (image_folder / "scratch" / "1.png").write_bytes(content[: len(content) // 2])
    (image_folder / "scratch" / "gone.png").symlink_to("nowhere.png")
    Image.fromarray(np.arange(300, dtype=np.uint16).reshape(15, 20)).save(image_folder / "scratch" / "deep.png")
    (image_folder / "scratch" / "empty.png").touch()
    Image.new("L", (1, 1)).save(image_folder / "scratch" / "dot.png")
    Image.new("1", (20_000, 10_000)).save(image_folder / "good" / "bomb.png")
    args = DataArguments(data_dir=str(image_folder), validation_share=0)
    named = [
        r"7 unusable images: good/3\.png \(not an image\), good/bomb\.png \(200\.0 megapixels",
        r"scratch/1\.png \(.*truncated.*\), scratch/deep\.png \(more than 8 bits per channel.*\)",
        r"scratch/dot\.png \(1 x 1 pixels",
        r" and 2 more; `kgl data --listed 7` lists all\. Repair",
        "leave them out with --on_bad_image skip",
    ]
    with pytest.raises(InputError, match=".*".join(named)):
        load_defect_dataset(args)
    loaded = read_defect_dataset(replace(args, on_bad_image="skip"))
    assert len(loaded.splits["train"]) + len(loaded.splits["test"]) == 16
    unusable = [str(issue) for issue in loaded.issues if issue.kind == "unusable"]
    assert len(unusable) == 7 and unusable[5] == "scratch/empty.png (empty file)" and "No such file" in unusable[6]
    assert loaded.warnings[0].startswith("Unusable images left out: 7, such as good/3.png (not an image); ")


def test_no_usable_image_is_refused(image_folder):
    for path in image_folder.rglob("*.png"):
        path.write_bytes(b"no image")
    message = r"--data_dir .*: no image is usable of 18; the first is good/0\.png \(not an image\)"
    with pytest.raises(InputError, match=message):
        load_defect_dataset(DataArguments(data_dir=str(image_folder), on_bad_image="skip"))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({}, "give --data_dir, --data_file or --hub_dataset"),
        ({"data_dir": "nowhere"}, "--data_dir nowhere: there is no such folder"),
        ({"data_dir": "images/good/0.png"}, "it is a file, not a folder; a table is given with --data_file"),
        ({"dataset": "imagefolder"}, "--dataset imagefolder needs --data_dir"),
        ({"dataset": "table", "data_dir": "images"}, "--dataset table needs --data_file"),
        ({"dataset": "hub"}, "--dataset hub needs --hub_dataset"),
        ({"data_dir": "empty"}, "no image in a class folder"),
        ({"data_dir": "images", "defect_free_label": "fine"}, "no such class; there are good, scratch"),
        ({"data_dir": "images", "num_folds": 7}, r"too few independent images of scratch \(6\)"),
        ({"data_dir": "images", "dataset": "kolektorsdd"}, "it is not KolektorSDD"),
        ({"data_dir": "images", "dataset": "magnetic_tile"}, "it is not the magnetic-tile dataset"),
        ({"data_dir": "images", "train_on_masks": True}, "no training image has a mask; see docs/data_formats.md"),
    ],
)
def test_a_dataset_that_cannot_be_used_is_refused(args, message, image_folder, monkeypatch):
    monkeypatch.chdir(image_folder.parent)
    (image_folder.parent / "empty").mkdir()
    with pytest.raises(InputError, match=message):
        load_defect_dataset(DataArguments(**args))


def test_one_class_and_empty_classes_are_refused(image_folder):
    shutil.rmtree(image_folder / "scratch")
    with pytest.raises(InputError, match=r"only one class \(good\)"):
        load_defect_dataset(DataArguments(data_dir=str(image_folder), validation_share=0))
    (image_folder / "scratch").mkdir()
    with pytest.raises(InputError, match="there is no image in scratch"):
        load_defect_dataset(DataArguments(data_dir=str(image_folder), validation_share=0))


def test_a_split_without_a_class_is_refused(image_folder, tmp_path):
    for split in ("train", "test"):
        shutil.copytree(image_folder, tmp_path / "split" / split)
    for path in (tmp_path / "split" / "test" / "scratch").iterdir():
        path.write_bytes(b"no image")
    args = DataArguments(data_dir=str(tmp_path / "split"), on_bad_image="skip", validation_share=0)
    with pytest.raises(InputError, match="the test split has no image of scratch; add images of it to the test split"):
        load_defect_dataset(args)


def refusals_of_folds(folder, groups):
    """Return the settings of images of these groups, by class, and what is said of seeds that cannot split them."""
    rows = [(label, group) for label, of_label in groups.items() for group in of_label]
    files = sorted(path.relative_to(folder) for path in folder.rglob("*.png"))
    lines = [f"{file},{label},{group}" for file, (label, group) in zip(files, rows, strict=False)]
    (folder / "t.csv").write_text("\n".join(["image,label,part", *lines]))
    args = DataArguments(data_file=str(folder / "t.csv"), group_column="part", num_folds=2, validation_share=0)
    refusals = []
    for seed in range(5):
        try:
            read_defect_dataset(replace(args, split_seed=seed))
        except InputError as error:
            refusals.append(str(error))
    return args, refusals


def test_no_seed_is_advised_where_none_helps(image_folder):
    """Three groups with two classes each: whatever the fold, a class is on one side only."""
    _, refusals = refusals_of_folds(image_folder, {"good": "aab", "scratch": "bbc", "dent": "ca"})
    assert len(refusals) == 5
    for refusal in refusals:
        assert re.search(
            r"no fold of the other seeds tried has every class: add images of \w+ from other groups", refusal
        )


def test_seed_that_is_advised_helps(image_folder):
    args, refusals = refusals_of_folds(image_folder, {"good": "ae", "scratch": "ad", "dent": "cde"})
    assert 0 < len(refusals) < 5
    for refusal in set(refusals):
        seed, fold = re.search(r"give --split_seed (\d+) --fold (\d), or add images", refusal).groups()
        assert read_defect_dataset(replace(args, split_seed=int(seed), fold=int(fold))).splits["test"]


@pytest.mark.parametrize("images", [1, 3])
def test_one_group_per_class_beside_a_test_split_has_no_validation(image_folder, images):
    """One image per class, or several of one part."""
    lines = ["image,label,part,use"]
    for label, count in (("good", 12), ("scratch", 6)):
        for index in range(count):
            lines.append(f"{label}/{index}.png,{label},{label if index < images else index},{TRAIN[index < images]}")
    (image_folder / "t.csv").write_text("\n".join(lines))
    args = DataArguments(data_file=str(image_folder / "t.csv"), group_column="part", split_column="use")
    loaded = read_defect_dataset(args)
    assert list(loaded.splits) == ["train", "test"] and len(loaded.splits["train"]) == 2 * images
    (note,) = loaded.notes
    assert "every class has a single independent training image, so none is held out" in note


def test_a_class_that_the_test_folder_lacks_gets_advice_that_helps(image_folder, tmp_path):
    for split in ("train", "test"):
        shutil.copytree(image_folder, tmp_path / "split" / split)
    shutil.rmtree(tmp_path / "split" / "test" / "scratch")
    with pytest.raises(InputError, match=r"split/test: there is no image in scratch; add images of it, or leave"):
        load_defect_dataset(DataArguments(data_dir=str(tmp_path / "split")))


def test_limit_of_pixels_is_a_setting(image_folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # 48 x 40 is more than twice of it, which Pillow refuses
    args = DataArguments(data_dir=str(image_folder))
    with pytest.raises(InputError, match=r"0\.0 megapixels, more than .*; if you trust .* --max_image_megapixels 1\)"):
        read_defect_dataset(args)
    splits = read_defect_dataset(replace(args, max_image_megapixels=1)).splits
    assert all(row["image"].size == (48, 40) for row in splits["train"])
    with pytest.raises(InputError, match="--max_image_megapixels 0: it must be at least 1"):
        DataArguments(data_dir="images", max_image_megapixels=0)
