"""Reader of the magnetic-tile dataset."""

import numpy as np
import pytest
from PIL import Image
from tiny import count_labels, save_noise, shared

from kgl.data.arguments import DataArguments
from kgl.data.loading import load_defect_dataset
from kgl.errors import InputError


@pytest.fixture
def folder(tmp_path):
    for tile in range(8):
        images = tmp_path / f"MT_{'Free' if tile < 4 else 'Crack'}" / "Imgs"
        images.mkdir(parents=True, exist_ok=True)
        for exposure in (1, 2):
            pixels = np.random.default_rng([tile, exposure]).integers(0, 255, (20, 30), dtype=np.uint8)
            stem = f"exp{exposure}_num_{(tile + 5) * 1000 + 14 * (exposure - 1)}"
            Image.fromarray(pixels).save(images / f"{stem}.jpg")
            Image.fromarray(pixels // 2).save(images / f"{stem}.png")
    return tmp_path


def load(folder):
    return load_defect_dataset(DataArguments("magnetic_tile", str(folder), num_folds=2, validation_share=0))


def test_exposures_of_a_tile_stay_in_one_split(folder):
    splits = load(folder)
    assert splits["train"].features["label"].names == ["Free", "Crack"]
    tiles = [{int(name.split("_num_")[1][:-4]) // 1000 for name in split["file_name"]} for split in splits.values()]
    assert not tiles[0] & tiles[1]
    assert len(splits["train"]) == len(splits["test"]) == 8


def test_unusable_masks_and_other_names_are_refused(folder):
    mask = folder / "MT_Crack" / "Imgs" / "exp1_num_9000.png"
    mask.write_bytes(b"no mask")
    with pytest.raises(InputError, match=r"MT_Crack/Imgs/exp1_num_9000\.jpg \(its mask: not an image"):
        load(folder)
    mask.unlink()
    with pytest.raises(InputError, match=r"1 mask missing; the first is .*exp1_num_9000\.png"):
        load(folder)
    save_noise(folder / "MT_Crack" / "Imgs" / "tile.jpg", 0)
    with pytest.raises(InputError, match=r"not named expK_num_N\.jpg: .*tile\.jpg"):
        load(folder)


def test_few_labels_of_the_published_set():
    folder = shared("data", "magnetic-tile")
    args = DataArguments(data_dir=str(folder), train_per_class=16, train_defect_free=64, validation_share=0)
    train = load_defect_dataset(args)["train"]
    names = train.features["label"].names
    assert names == ["Free", "Blowhole", "Break", "Crack", "Fray", "Uneven"]
    assert count_labels(train) == {name: 64 if name == "Free" else 16 for name in names}
