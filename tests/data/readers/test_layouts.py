"""Published layouts, on small generated copies."""

from collections import Counter

import numpy as np
import pytest
from PIL import Image

from kgl.data.arguments import DataArguments
from kgl.data.loading import load_defect_dataset
from kgl.data.masks import mask_to_array
from kgl.errors import InputError


def save_noise(path, *seed):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng([*seed, len(path.name)]).integers(0, 255, (24, 24), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def save_mask(path, marked=True):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.eye(24, dtype=np.uint8) * 255 * marked).save(path)


def counts(split):
    return Counter(split.features["label"].int2str(split["label"]))


def args(dataset, folder, **others):
    return DataArguments(dataset, str(folder), validation_share=0, **others)


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


def test_mvtec_is_one_pool_with_masks(mvtec):
    splits = load_defect_dataset(args("imagefolder", mvtec, defect_free_label="good", train_on_masks=True))
    assert counts(splits["train"]) + counts(splits["test"]) == {"good": 12, "crack": 6, "hole": 6}
    for split in splits.values():
        for row in split:
            assert (row["mask"] is None) == ("good" in row["file_name"])
            assert row["mask"] is None or mask_to_array(row["mask"], (24, 24)).sum() == 24


def test_masks_to_learn_from_have_to_be_there(mvtec):
    with pytest.raises(InputError, match="--train_on_masks: no training image has a mask"):
        load_defect_dataset(args("imagefolder", mvtec / "test", defect_free_label="good", train_on_masks=True))


def test_masks_beside_class_folders_keep_the_split(mvtec):
    """train/ and test/ with the same classes stay what they are."""
    for index in range(3):
        for kind, defect in enumerate(("crack", "hole")):
            save_noise(mvtec / "train" / defect / f"more{index}.png", 4 + kind, index)
    splits = load_defect_dataset(args("imagefolder", mvtec, defect_free_label="good"))
    assert counts(splits["train"]) == {"good": 6, "crack": 3, "hole": 3}
    assert counts(splits["test"]) == {"good": 6, "crack": 6, "hole": 6}


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("ground_truth/crack/none_mask.png", "1 masks have no image, one is .*none_mask.png"),
        ("ground_truth/crack/001.bmp", "are masks of the same image"),
        ("test/crack/001.bmp", "several images are called crack/001; whose is the mask"),
    ],
)
def test_masks_that_fit_nothing_or_two_are_named(mvtec, path, message):
    save_mask(mvtec / path)
    with pytest.raises(InputError, match=message):
        load_defect_dataset(args("imagefolder", mvtec))


def test_kolektorsdd2_keeps_its_split(tmp_path):
    for split, count in (("train", 6), ("test", 4)):
        for index in range(count):
            save_noise(tmp_path / split / f"{10000 + index}.png", count, index)
            save_mask(tmp_path / split / f"{10000 + index}_GT.png", marked=index % 2 == 1)
    splits = load_defect_dataset(args("kolektorsdd2", tmp_path))
    assert counts(splits["train"]) == {"good": 3, "defect": 3}
    assert counts(splits["test"]) == {"good": 2, "defect": 2}
    (tmp_path / "test" / "10001_GT.png").unlink()
    with pytest.raises(InputError, match=r"1 masks are missing.*10001_GT\.png"):
        load_defect_dataset(args("kolektorsdd2", tmp_path))
    with pytest.raises(InputError, match="this is not KolektorSDD2"):
        load_defect_dataset(args("kolektorsdd2", tmp_path / "train"))


def test_dagm_keeps_its_split(tmp_path):
    for texture in (1, 2):
        for split in ("Train", "Test"):
            folder = tmp_path / f"Class{texture}" / split
            for index in range(4):
                save_noise(folder / f"{index:04d}.PNG", texture, index, len(split))
                if index % 2:
                    save_mask(folder / "Label" / f"{index:04d}_label.PNG")
    splits = load_defect_dataset(args("dagm", tmp_path))
    for split in splits.values():
        assert counts(split) == {"good": 4, "defect": 4}
    assert [mask is not None for mask in splits["test"]["mask"]] == [label == 1 for label in splits["test"]["label"]]
    assert counts(load_defect_dataset(args("dagm", tmp_path / "Class1"))["test"]) == {"good": 2, "defect": 2}
    with pytest.raises(InputError, match="this is not DAGM 2007"):
        load_defect_dataset(args("dagm", tmp_path / "Class1" / "Train"))


@pytest.mark.parametrize(
    ("file", "dataset"),
    [
        ("kos01/Part0_label.bmp", "kolektorsdd"),
        ("train/10000_GT.png", "kolektorsdd2"),
        ("Class1/Train/Label/0576_label.PNG", "dagm"),
        ("MT_Free/Imgs/exp1_num_1.png", "magnetic_tile"),
        ("IMAGES/scratches_1.jpg", "neu_det"),
    ],
)
def test_a_published_layout_is_not_taken_for_class_folders(tmp_path, file, dataset):
    save_mask(tmp_path / file)
    with pytest.raises(InputError, match=f"read it by --dataset {dataset}"):
        load_defect_dataset(args("imagefolder", tmp_path))
