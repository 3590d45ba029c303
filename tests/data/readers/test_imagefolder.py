"""Reader of image folders."""

import os
import shutil

import numpy as np
import pytest
from PIL import Image
from tiny import count_labels, save_mask, save_noise

from kgl.data.arguments import DataArguments
from kgl.data.loading import load_defect_dataset, read_images
from kgl.data.masks import mask_to_array
from kgl.data.readers.imagefolder import read_image_folder
from kgl.errors import InputError


def load(folder, **others):
    return load_defect_dataset(DataArguments("imagefolder", str(folder), validation_share=0, **others))


@pytest.fixture
def mvtec(tmp_path):
    for index in range(6):
        save_noise(tmp_path / "train" / "good" / f"{index:03d}.png", 0, index)
        save_noise(tmp_path / "test" / "good" / f"{index:03d}.png", 1, index)
        for kind, defect in enumerate(("crack", "hole")):
            save_noise(tmp_path / "test" / defect / f"{index:03d}.png", 2 + kind, index)
            save_mask(tmp_path / "ground_truth" / defect / f"{index:03d}_mask.png")
    (tmp_path / "license.txt").write_text("mine")
    return tmp_path


def test_class_folders(image_folder):
    splits = load(image_folder)
    assert count_labels(splits["train"]) == {"good": 8, "scratch": 4}
    assert count_labels(splits["test"]) == {"good": 4, "scratch": 2}
    assert splits["train"].column_names == splits["test"].column_names
    assert set(splits["train"]["file_name"]).isdisjoint(splits["test"]["file_name"])
    assert splits["train"][0]["image"].size == (48, 40)


def test_train_and_test_folders(image_folder, tmp_path):
    for split in ("train", "test"):
        shutil.copytree(image_folder, tmp_path / "split" / split)
    shutil.rmtree(tmp_path / "split" / "test" / "good")
    shutil.copytree(image_folder / "scratch", tmp_path / "split" / "test" / "good")
    splits = load(tmp_path / "split")
    assert count_labels(splits["train"]) == {"good": 12, "scratch": 6}
    assert count_labels(splits["test"]) == {"good": 6, "scratch": 6}


@pytest.mark.parametrize("name", ["validation", "valid", "val"])
def test_a_validation_folder_is_used_unchanged(image_folder, tmp_path, name):
    for split in ("train", name, "test"):
        shutil.copytree(image_folder, tmp_path / "split" / split)
    splits = load_defect_dataset(DataArguments(data_dir=str(tmp_path / "split")))
    assert {split: len(rows) for split, rows in splits.items()} == {"train": 18, "validation": 18, "test": 18}


def test_a_class_of_test_only_is_refused(image_folder, tmp_path):
    for split in ("train", "test"):
        shutil.copytree(image_folder, tmp_path / "split" / split)
    (tmp_path / "split" / "test" / "dent").mkdir()
    with pytest.raises(InputError, match=r"split/test: dent is no class of .*split/train; add images of it there, or"):
        read_image_folder(tmp_path / "split")


@pytest.mark.parametrize("name", ["val", "Validation"])
def test_a_validation_folder_is_the_test_split_where_there_is_none(image_folder, tmp_path, name):
    for split in ("train", name):
        shutil.copytree(image_folder, tmp_path / "split" / split)
    (tmp_path / "split" / name / "good" / "0.png").unlink()
    loaded = read_images(DataArguments(data_dir=str(tmp_path / "split")))
    assert {split: len(rows) for split, rows in loaded.splits.items()} == {"train": 18, "test": 17}
    note = f"{tmp_path}/split: train/ serves as train split and, as there is no test/, {name}/ as test split."
    assert loaded.notes == [note] and note in loaded.warnings


@pytest.mark.parametrize("with_test", [True, False])
def test_a_class_of_validation_only_is_refused(image_folder, tmp_path, with_test):
    for split in ("train", "val", "test")[: 2 + with_test]:
        shutil.copytree(image_folder, tmp_path / "split" / split)
    shutil.copytree(image_folder / "good", tmp_path / "split" / "val" / "dent")
    with pytest.raises(InputError, match=r"split/val: dent is no class of .*split/train; add images of it there, or"):
        read_image_folder(tmp_path / "split")


@pytest.mark.parametrize(
    "names", [("Train", "Test", "VAL"), ("TRAIN", "testing", "dev"), ("training", "TEST", "Valid")]
)
def test_names_of_splits_are_recognised_in_any_case(image_folder, tmp_path, names):
    for split in names:
        shutil.copytree(image_folder, tmp_path / "split" / split)
    source = read_image_folder(tmp_path / "split")
    assert source.class_names == ["good", "scratch"]
    assert {split: len(rows) for split, rows in source.splits.items()} == {"train": 18, "test": 18, "validation": 18}


def test_splits_without_training_images_or_with_two_folders_are_refused(image_folder, tmp_path):
    for split in ("test", "val"):
        shutil.copytree(image_folder, tmp_path / "split" / split)
    with pytest.raises(InputError, match=r"there is test/, val/ and no train/"):
        read_image_folder(tmp_path / "split")
    for split in ("train", "valid"):
        shutil.copytree(image_folder, tmp_path / "split" / split)
    with pytest.raises(InputError, match=r"val/, valid/ are all named as validation images; keep one of them"):
        read_image_folder(tmp_path / "split")


def test_folders_that_may_be_no_classes_are_noted(image_folder, tmp_path):
    for product in ("product0", "product1"):
        shutil.copytree(image_folder, tmp_path / "products" / product)
    (note,) = read_image_folder(tmp_path / "products").notes
    assert "every class (product0, product1) has good/ and scratch/; if these are the classes" in note
    shutil.copytree(image_folder / "scratch", image_folder / "mask" / "scratch")
    shutil.copytree(image_folder / "good", image_folder / "test")
    shutil.copytree(image_folder / "good", image_folder / "good" / "Masks")
    test, mask, inner = read_image_folder(image_folder).notes
    assert "test/ is read as a class, as there is no train/" in test
    assert "mask/ is read as a class; masks belong in ground_truth/CLASS/NAME.png" in mask
    assert "the files in Masks/ of good/ are read as images of it" in inner


def test_products_with_different_classes_and_other_folders_of_masks_are_noted(image_folder, tmp_path):
    shutil.copytree(image_folder, tmp_path / "products" / "product0")
    shutil.copytree(image_folder / "good", tmp_path / "products" / "product1" / "good")
    (note,) = read_image_folder(tmp_path / "products").notes
    assert "each class is a folder of folders: a class (product0, product1) has good/ and scratch/" in note
    for name in ("Segmentation", "crack_mask"):
        shutil.copytree(image_folder / "scratch", image_folder / name)
    notes = read_image_folder(image_folder).notes
    assert [note.partition(": ")[2].partition("/")[0] for note in notes] == ["Segmentation", "crack_mask"]


@pytest.mark.parametrize("held_out", ["Test", "val"])
def test_mvtec_folders_in_any_case_and_for_validation(mvtec, held_out):
    """Where the held-out images are pooled, no note says that they serve as test split."""
    for old, new in (("train", "Train"), ("test", held_out), ("ground_truth", "Ground_Truth")):
        (mvtec / old).rename(mvtec / new)
    source = read_image_folder(mvtec)
    assert source.class_names == ["crack", "good", "hole"] and len(source.splits["train"]) == 24
    note = f"{mvtec}: Train/ lacks classes of {held_out}/ (MVTec's one-class data), so both are pooled."
    assert source.notes == (note,)
    assert sum(mask is not None for mask in source.splits["train"]["mask"]) == 12


def test_unreadable_folder_is_named(image_folder, monkeypatch):
    scan = os.scandir

    def refuse(folder):
        if str(folder).endswith("inner"):
            raise PermissionError(13, "Permission denied", str(folder))
        return scan(folder)

    shutil.copytree(image_folder / "good", image_folder / "good" / "inner")
    monkeypatch.setattr("os.scandir", refuse)
    with pytest.raises(InputError, match=r"good/inner: this folder cannot be read \(Permission denied\)"):
        read_image_folder(image_folder)


def test_hidden_folders_are_no_classes(image_folder):
    for name in (".ipynb_checkpoints", "@eaDir", "__MACOSX", "good/.thumbs"):
        shutil.copytree(image_folder / "scratch", image_folder / name)
    source = read_image_folder(image_folder)
    assert source.class_names == ["good", "scratch"] and len(source.splits["train"]) == 18


def test_file_and_folder_names_do_not_matter(tmp_path):
    """Names like splits, patterns or notes; nested folders; links; suffixes in capitals."""
    generator = np.random.default_rng(0)
    names = ["val_0.png", "test_1.png", "train_2.PNG", "x[1].png", "größe 3.png", "deep/4.png"]
    for label in ("good [1]", "schlecht ü"):
        for name in names:
            path = tmp_path / "store" / label / name
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(generator.integers(0, 255, (8, 8), dtype=np.uint8)).save(path)
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / label).symlink_to(tmp_path / "store" / label)
    (tmp_path / "images" / "metadata.csv").write_text("file_name,label")
    splits = load(tmp_path / "images", num_folds=2)
    assert count_labels(*splits.values()) == {"good [1]": 6, "schlecht ü": 6}


def test_an_explicit_imagefolder_is_read_whatever_its_layout(tmp_path):
    for item in range(3):
        save_noise(tmp_path / f"kos{item}" / "Part0.jpg", item)
        save_mask(tmp_path / f"kos{item}" / "Part0_label.bmp")
    assert read_images(DataArguments("imagefolder", str(tmp_path))).class_names == ["kos0", "kos1", "kos2"]


def test_mvtec_one_class_data_is_pooled_with_masks(mvtec):
    splits = load(mvtec, train_on_masks=True)
    assert count_labels(*splits.values()) == {"good": 12, "crack": 6, "hole": 6}
    for split in splits.values():
        for row in split:
            assert (row["mask"] is None) == ("good" in row["file_name"])
            assert row["mask"] is None or mask_to_array(row["mask"], (24, 24)).sum() == 24
    note = f"{mvtec}: train/ lacks classes of test/ (MVTec's one-class data), so both are pooled."
    assert read_image_folder(mvtec).notes == (note,)


def test_masks_beside_class_folders_keep_the_split(mvtec):
    """train/ and test/ with the same classes are not pooled."""
    for index in range(3):
        for kind, defect in enumerate(("crack", "hole")):
            save_noise(mvtec / "train" / defect / f"more{index}.png", 4 + kind, index)
    splits = load(mvtec)
    assert count_labels(splits["train"]) == {"good": 6, "crack": 3, "hole": 3}
    assert count_labels(splits["test"]) == {"good": 6, "crack": 6, "hole": 6}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("ground_truth/crack/none_mask.png", "1 mask without an image; one is .*none_mask.png"),
        ("ground_truth/crack/001.bmp", "are masks of the same image"),
        ("test/crack/001.bmp", "several images are named crack/001, so their mask is ambiguous"),
    ],
)
def test_masks_of_no_image_or_two_are_refused(mvtec, path, message):
    save_mask(mvtec / path)
    with pytest.raises(InputError, match=message):
        load(mvtec)


def test_images_that_are_not_read_are_named(image_folder, tmp_path):
    for split in ("train", "test"):
        shutil.copytree(image_folder, tmp_path / "split" / split)
    shutil.copytree(image_folder / "good", tmp_path / "split" / "extra_images" / "more")
    (tmp_path / "split" / "notes").mkdir()
    for name in ("overview.png", ".hidden.png", "license.txt", "test/a.png", "test/b.png"):
        shutil.copy(image_folder / "good" / "0.png", tmp_path / "split" / name)
    folder = tmp_path / "split"
    assert read_images(DataArguments(data_dir=str(folder))).notes == [
        f"{folder / 'extra_images'} is not read (12 images): beside train/, in no split.",
        f"{folder}: images that are in no class folder are not read (1).",
        f"{folder / 'test'}: images that are in no class folder are not read (2).",
    ]
    shutil.copy(image_folder / "good" / "0.png", image_folder / "loose.png")
    notes = [f"{image_folder}: images that are in no class folder are not read (1)."]
    assert read_images(DataArguments(data_dir=str(image_folder))).notes == notes


def test_folders_that_kgl_wrote_are_no_classes(image_folder, tmp_path):
    runs = tmp_path / "runs"
    for name, files in {"few": ("run.json", "metrics.json"), "few_audit": ("run.json",)}.items():
        (runs / name).mkdir(parents=True)
        for file in files:
            (runs / name / file).write_text("{}")
    save_noise(runs / "few" / "grid_test.png", 0, 0)
    for folder, message in (
        (runs / "few", r"few: it is a run of kgl train, no folder of images; give its images\."),
        (runs / "few_audit", r"few_audit: it is an output folder of kgl, no folder of images"),
        (runs, r"runs: it holds output folders of kgl \(few, few_audit\), which are no classes; give the fol"),
    ):
        with pytest.raises(InputError, match=message):
            read_image_folder(folder)
    shutil.copytree(runs / "few", image_folder / "out")
    with pytest.raises(InputError, match=r"output folders of kgl \(out\).*among its classes, move them elsewhere\."):
        read_image_folder(image_folder)
    (image_folder / "runs").mkdir()  # of `kgl train .`
    (image_folder / "out").rename(image_folder / "runs" / "few")
    with pytest.raises(InputError, match=r"output folders of kgl \(runs/few\)"):
        read_image_folder(image_folder)


def test_folders_without_images_are_not_to_be_removed(image_folder, tmp_path):
    (image_folder / "notes").mkdir()
    with pytest.raises(InputError, match=r"no image in notes; each subfolder .* a class: .*move .* elsewhere") as met:
        read_image_folder(image_folder)
    assert "remove" not in str(met.value)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="no image in a class folder of it; each subfolder of a folder of images is"):
        read_image_folder(tmp_path / "empty")
