"""Readers and splits."""

import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tiny import shared

from kgl.data.arguments import DataArguments
from kgl.data.loading import load_defect_dataset, read_defect_dataset
from kgl.data.masks import mask_to_array
from kgl.data.schema import dataset_fingerprint
from kgl.data.synthetic import CLASSES, generate_surface
from kgl.errors import InputError


def labels_of(split):
    return Counter(split.features["label"].int2str(split["label"]))


def test_image_folder(image_folder):
    splits = load_defect_dataset(
        DataArguments(data_dir=str(image_folder), validation_share=0, defect_free_label="good")
    )
    assert labels_of(splits["train"]) == {"good": 8, "scratch": 4}
    assert labels_of(splits["test"]) == {"good": 4, "scratch": 2}
    assert splits["train"].column_names == splits["test"].column_names
    assert set(splits["train"]["file_name"]).isdisjoint(splits["test"]["file_name"])
    assert splits["train"][0]["image"].size == (48, 40)


def test_image_folder_with_its_own_test_folder(image_folder, tmp_path, caplog):
    for split in ("train", "test"):
        shutil.copytree(image_folder, tmp_path / "split" / split)
    shutil.rmtree(tmp_path / "split" / "test" / "good")
    shutil.copytree(image_folder / "scratch", tmp_path / "split" / "test" / "good")
    splits = load_defect_dataset(DataArguments(data_dir=str(tmp_path / "split"), validation_share=0))
    assert labels_of(splits["train"]) == {"good": 12, "scratch": 6}
    assert labels_of(splits["test"]) == {"good": 6, "scratch": 6}
    assert "published split leaks, 6 times, such as train/scratch/0.png, test/good/0.png" in caplog.text
    assert "equal images of different classes, 6 times" in caplog.text


def test_names_of_files_and_folders_mean_nothing(tmp_path):
    """Whatever looks like a split, a pattern or a note in a name; below folders and behind links; upper case."""
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
    splits = load_defect_dataset(DataArguments(data_dir=str(tmp_path / "images"), num_folds=2, validation_share=0))
    assert labels_of(splits["train"]) + labels_of(splits["test"]) == {"good [1]": 6, "schlecht ü": 6}


def test_folds_part_the_images(image_folder):
    tests = [
        load_defect_dataset(DataArguments(data_dir=str(image_folder), validation_share=0, fold=fold))["test"]
        for fold in range(3)
    ]
    names = [name for test in tests for name in test["file_name"]]
    assert len(names) == len(set(names)) == 18


def test_images_of_equal_bytes_stay_together(image_folder):
    for index in range(4):
        shutil.copy(image_folder / "good" / "0.png", image_folder / "good" / f"copy{index}.png")
    for fold in range(3):
        args = DataArguments(data_dir=str(image_folder), validation_share=0.3, fold=fold)
        digests = [set(split["digest"]) for split in load_defect_dataset(args).values()]
        assert len(digests) == 3 and len(set.union(*digests)) == sum(map(len, digests)) == 18
    copies = next(one for one in read_defect_dataset(args)[1] if one.kind == "images of equal bytes")
    assert copies.files == ("good/0.png", *(f"good/copy{index}.png" for index in range(4)))


def test_larger_budgets_contain_smaller_ones(image_folder):
    def names(**budget):
        args = DataArguments(data_dir=str(image_folder), validation_share=0, defect_free_label="good", **budget)
        return set(load_defect_dataset(args)["train"]["file_name"])

    small, large = names(train_per_class=2, train_defect_free=3), names(train_per_class=3, train_defect_free=5)
    assert len(small) == 5 and len(large) == 8 and small < large
    assert len(names(train_per_class=2)) == 2 + 8


def test_fingerprint_follows_the_images(image_folder):
    args = DataArguments(data_dir=str(image_folder), validation_share=0)
    before = dataset_fingerprint(load_defect_dataset(args)["train"])
    assert dataset_fingerprint(load_defect_dataset(args)["train"]) == before
    train = load_defect_dataset(args)["train"]
    image = image_folder / train[0]["file_name"]
    kept = image.read_bytes()
    Image.new("L", (48, 40), 7).save(image)
    assert dataset_fingerprint(load_defect_dataset(args)["train"]) != before
    image.write_bytes(kept)
    assert dataset_fingerprint(load_defect_dataset(args)["train"]) == before
    (image_folder / "scratch").rename(image_folder / "stain")
    assert dataset_fingerprint(load_defect_dataset(args)["train"]) != before


def test_unreadable_images_are_all_named(image_folder):
    (image_folder / "good" / "3.png").write_bytes(b"no image")
    whole = (image_folder / "scratch" / "1.png").read_bytes()
    (image_folder / "scratch" / "1.png").write_bytes(whole[: len(whole) // 2])
    (image_folder / "scratch" / "gone.png").symlink_to("nowhere.png")
    Image.fromarray(np.arange(300, dtype=np.uint16).reshape(15, 20)).save(image_folder / "scratch" / "deep.png")
    (image_folder / "scratch" / "empty.png").touch()
    Image.new("L", (1, 1)).save(image_folder / "scratch" / "dot.png")
    bomb = Image.new("1", (20_000, 10_000))
    bomb.save(image_folder / "good" / "bomb.png")
    args = DataArguments(data_dir=str(image_folder), validation_share=0)
    named = [
        r"7 images cannot be used: good/3\.png \(not an image\), good/bomb\.png \(Image size",
        r"scratch/1\.png \(.*truncated.*\), scratch/deep\.png \(16 bits a channel.*\)",
        r"scratch/dot\.png \(1 x 1 pixels",
        r"scratch/empty\.png \(empty file\), scratch/gone\.png \(.*No such file",
    ]
    with pytest.raises(InputError, match=".*".join(named)):
        load_defect_dataset(args)
    splits, oddities = read_defect_dataset(replace(args, on_bad_image="skip"))
    assert len(splits["train"]) + len(splits["test"]) == 16
    assert [one.kind for one in oddities].count("cannot be used") == 7


def test_odd_images_that_can_be_used(image_folder):
    image = Image.open(image_folder / "good" / "0.png")
    exif = Image.Exif()
    exif[0x0112] = 6
    image.save(image_folder / "good" / "turned.jpg", exif=exif)
    image.convert("CMYK").save(image_folder / "good" / "cmyk.jpg", quality=100)
    image.convert("P").rotate(90).save(image_folder / "good" / "palette \u202e\u00fc.png")
    image.convert("RGBA").transpose(Image.Transpose.FLIP_TOP_BOTTOM).save(image_folder / "good" / "alpha.png")
    splits, oddities = read_defect_dataset(DataArguments(data_dir=str(image_folder), validation_share=0))
    assert len(splits["train"]) + len(splits["test"]) == 22
    found = {(one.kind, one.files, one.note) for one in oddities}
    assert found >= {
        ("turned upright by its EXIF tag", ("good/turned.jpg",), ""),
        ("converted to RGB", ("good/cmyk.jpg",), "CMYK"),
        ("converted to RGB", ("good/palette \u202e\u00fc.png",), "P"),
        ("converted to RGB", ("good/alpha.png",), "RGBA"),
        ("near-duplicates", ("good/0.png", "good/cmyk.jpg"), ""),
    }


def test_nothing_that_can_be_used(image_folder):
    for path in image_folder.rglob("*.png"):
        path.write_bytes(b"no image")
    with pytest.raises(InputError, match=r"none of 18 images can be used; the first is good/0\.png \(not an image"):
        load_defect_dataset(DataArguments(data_dir=str(image_folder), on_bad_image="skip"))


@pytest.mark.parametrize("seed", range(4))
def test_budgets_nest_in_training_and_in_validation(seed):
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
        assert labels_of(splits["train"])["pit"] + labels_of(splits["validation"])["pit"] == budget
        return [set(splits[name]["file_name"]) for name in ("train", "validation")]

    (small, small_held), (large, large_held) = names(5 + seed), names(15)
    assert small < large and small_held < large_held and not large & large_held


def test_a_validation_folder_is_used_as_it_is(image_folder, tmp_path):
    for split in ("train", "val", "test"):
        shutil.copytree(image_folder, tmp_path / "split" / split)
    splits = load_defect_dataset(DataArguments(data_dir=str(tmp_path / "split"), defect_free_label="good"))
    assert {name: len(split) for name, split in splits.items()} == {"train": 18, "validation": 18, "test": 18}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"data_dir": "nowhere"}, "--data_dir nowhere: there is no such folder"),
        ({"data_dir": None}, "needs --data_dir"),
        ({"data_dir": "."}, "no image in a folder of a class"),
        ({"data_dir": "images", "defect_free_label": "fine"}, "no such class; there are good, scratch"),
        ({"data_dir": "images", "num_folds": 7}, r"too few independent images of scratch \(6\)"),
        ({"data_dir": "images", "dataset": "kolektorsdd"}, "this is not KolektorSDD"),
        ({"data_dir": "images", "dataset": "magnetic_tile"}, "not the magnetic tiles"),
    ],
)
def test_bad_data_is_named(args, message, image_folder, monkeypatch):
    monkeypatch.chdir(image_folder.parent)
    if args["data_dir"] == ".":
        shutil.rmtree(image_folder)
    with pytest.raises(InputError, match=message):
        load_defect_dataset(DataArguments(**args))


@pytest.mark.parametrize(
    "wrong",
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
def test_settings_out_of_range_are_named(wrong):
    with pytest.raises(InputError, match=f"--{next(iter(wrong))}[ :]"):
        DataArguments(**wrong)


def test_one_class_and_empty_classes_are_refused(image_folder):
    shutil.rmtree(image_folder / "scratch")
    with pytest.raises(InputError, match=r"one class only \(good\)"):
        load_defect_dataset(DataArguments(data_dir=str(image_folder), validation_share=0))
    (image_folder / "scratch").mkdir()
    with pytest.raises(InputError, match="there is no image in scratch"):
        load_defect_dataset(DataArguments(data_dir=str(image_folder), validation_share=0))


def test_kolektorsdd_layout(tmp_path):
    for item in range(6):
        folder = tmp_path / f"kos{item:02d}"
        folder.mkdir()
        for part in range(2):
            pixels = np.random.default_rng([item, part]).integers(0, 255, (50, 20), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"Part{part}.jpg")
            mask = np.zeros((50, 20), dtype=bool)
            mask[10:20, 5] = part == 1
            Image.fromarray(mask).save(folder / f"Part{part}_label.bmp")
    splits = load_defect_dataset(DataArguments("kolektorsdd", str(tmp_path), validation_share=0))
    assert labels_of(splits["train"]) == {"good": 4, "defect": 4}
    assert not set(splits["train"]["group"]) & set(splits["test"]["group"])
    assert set(splits["train"]["mask"]) == {None}  # trained on labels alone
    assert mask_to_array(splits["test"][1]["mask"], (50, 20)).sum() == 10
    with_masks = load_defect_dataset(
        DataArguments("kolektorsdd", str(tmp_path), validation_share=0, train_on_masks=True)
    )
    assert None not in with_masks["train"]["mask"]
    (tmp_path / "kos03" / "Part1_label.bmp").unlink()
    with pytest.raises(InputError, match=r"1 masks are missing, the first is .*kos03/Part1_label\.bmp"):
        load_defect_dataset(DataArguments("kolektorsdd", str(tmp_path), validation_share=0))


def test_magnetic_tile_layout(tmp_path):
    for tile in range(8):
        folder = tmp_path / f"MT_{'Free' if tile < 4 else 'Crack'}" / "Imgs"
        folder.mkdir(parents=True, exist_ok=True)
        for exposure in (1, 2):
            pixels = np.random.default_rng([tile, exposure]).integers(0, 255, (20, 30), dtype=np.uint8)
            stem = f"exp{exposure}_num_{(tile + 5) * 1000 + 14 * (exposure - 1)}"
            Image.fromarray(pixels).save(folder / f"{stem}.jpg")
            Image.fromarray(pixels // 2).save(folder / f"{stem}.png")
    splits = load_defect_dataset(DataArguments("magnetic_tile", str(tmp_path), num_folds=2, validation_share=0))
    assert splits["train"].features["label"].names == ["Free", "Crack"]
    tiles = [{int(name.split("_num_")[1][:-4]) // 1000 for name in split["file_name"]} for split in splits.values()]
    assert not tiles[0] & tiles[1]  # both exposures of a tile on one side
    assert len(splits["train"]) == len(splits["test"]) == 8
    (tmp_path / "MT_Crack" / "Imgs" / "exp1_num_9000.png").write_bytes(b"no mask")
    with pytest.raises(InputError, match=r"MT_Crack/Imgs/exp1_num_9000\.jpg \(its mask: not an image"):
        load_defect_dataset(DataArguments("magnetic_tile", str(tmp_path), num_folds=2, validation_share=0))


def test_neu_det_layout(tmp_path):
    (tmp_path / "IMAGES").mkdir()
    (tmp_path / "MASKS").mkdir()
    for name in ("pitted_surface", "rolled-in_scale"):
        for index in range(1, 5):
            pixels = np.random.default_rng([len(name), index]).integers(0, 255, (20, 20), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "IMAGES" / f"{name}_{index}.jpg")
            if name == "pitted_surface":
                Image.fromarray(np.eye(20, dtype=np.uint8) * 255).save(tmp_path / "MASKS" / f"{name}_{index}.png")
    args = DataArguments("neu_det", str(tmp_path), num_folds=2, train_on_masks=True, validation_share=0)
    splits = load_defect_dataset(args)
    assert splits["train"].features["label"].names == ["pitted_surface", "rolled-in_scale"]
    for split in splits.values():
        assert labels_of(split) == {"pitted_surface": 2, "rolled-in_scale": 2}
        for row in split:
            assert (row["mask"] is None) == row["file_name"].startswith("IMAGES/rolled")
    with pytest.raises(InputError, match="this is not NEU-DET"):
        load_defect_dataset(DataArguments("neu_det", str(tmp_path / "MASKS")))


def test_shared_neu_det():
    splits = load_defect_dataset(
        DataArguments("neu_det", str(shared("data", "neu-det")), train_on_masks=True, validation_share=0)
    )
    whole = labels_of(splits["train"]) + labels_of(splits["test"])
    assert set(whole.values()) == {300} and len(whole) == 6
    assert sum(mask is not None for split in splits.values() for mask in split["mask"]) == 900


def test_shared_kolektorsdd_keeps_its_duplicates_together():
    folder = shared("data", "kolektorsdd")
    for fold in range(3):
        splits = load_defect_dataset(DataArguments("kolektorsdd", str(folder), fold=fold, validation_share=0))
        assert not set(splits["train"]["digest"]) & set(splits["test"]["digest"])
        assert len(splits["train"]) + len(splits["test"]) == 399
        labels = labels_of(splits["train"]) + labels_of(splits["test"])
        assert labels == {"good": 347, "defect": 52}


def test_shared_magnetic_tiles():
    args = DataArguments(
        "magnetic_tile",
        str(shared("data", "magnetic-tile")),
        train_per_class=16,
        train_defect_free=64,
        validation_share=0,
    )
    splits = load_defect_dataset(args)
    names = splits["train"].features["label"].names
    assert names == ["Free", "Blowhole", "Break", "Crack", "Fray", "Uneven"]
    assert labels_of(splits["train"]) == {name: 64 if name == "Free" else 16 for name in names}


@pytest.mark.parametrize("label", CLASSES)
def test_surfaces_are_the_same_again_and_marked_exactly(label):
    for seed in range(20):
        surface, twin = generate_surface(label, 64, seed), generate_surface(label, 64, seed)
        assert np.array_equal(surface.image, twin.image) and np.array_equal(surface.mask, twin.mask)
        assert surface.image.shape == (64, 64) and surface.image.dtype == np.uint8
        assert surface.mask.any() == (label != "good")
        assert surface.mask.mean() < 0.3
    assert not np.array_equal(generate_surface(label, 64, 0).image, generate_surface(label, 64, 1).image)


def test_generated_data_set():
    splits = load_defect_dataset(DataArguments("surfaces", num_surfaces=60, surface_size=32, validation_share=0))
    assert labels_of(splits["train"]) + labels_of(splits["test"]) == {
        "good": 30,
        "scratch": 10,
        "pit": 10,
        "stain": 10,
    }
    assert all(
        mask_to_array(mask, (32, 32)).any() == (label > 0)
        for mask, label in zip(*[splits["test"][c] for c in ("mask", "label")], strict=True)
    )
    with pytest.raises(ValueError, match="'rust': choose one of"):
        generate_surface("rust", 64, 0)
    with pytest.raises(ValueError, match="start at 32"):
        generate_surface("good", 16, 0)
