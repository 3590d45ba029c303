"""Reader of KolektorSDD."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image
from tiny import count_labels, shared

from kgl.data.arguments import DataArguments
from kgl.data.loading import load_defect_dataset, read_images, split_images
from kgl.data.masks import mask_to_array
from kgl.errors import InputError


def load(folder, **others):
    return load_defect_dataset(DataArguments(data_dir=str(folder), validation_share=0, **others))


@pytest.fixture
def folder(tmp_path):
    for item in range(6):
        parts = tmp_path / f"kos{item:02d}"
        parts.mkdir()
        for part in range(2):
            pixels = np.random.default_rng([item, part]).integers(0, 255, (50, 20), dtype=np.uint8)
            Image.fromarray(pixels).save(parts / f"Part{part}.jpg")
            mask = np.zeros((50, 20), dtype=bool)
            mask[10:20, 5] = part == 1
            Image.fromarray(mask).save(parts / f"Part{part}_label.bmp")
    return tmp_path


def test_labels_masks_and_groups(folder):
    splits = load(folder)
    assert count_labels(splits["train"]) == {"good": 4, "defect": 4}
    assert not set(splits["train"]["group"]) & set(splits["test"]["group"])
    assert set(splits["train"]["mask"]) == {None}  # trained on labels only
    assert mask_to_array(splits["test"][1]["mask"], (50, 20)).sum() == 10
    assert None not in load(folder, train_on_masks=True)["train"]["mask"]


def test_missing_masks_and_other_folders_are_refused(folder):
    (folder / "kos03" / "Part1_label.bmp").unlink()
    with pytest.raises(InputError, match=r"1 mask missing; the first is .*kos03/Part1_label\.bmp"):
        load(folder)
    with pytest.raises(InputError, match="it is not KolektorSDD"):
        load(folder / "kos03", dataset="kolektorsdd")


def test_an_unusable_mask_is_named(folder):
    (folder / "kos03" / "Part1_label.bmp").write_bytes(b"no mask")
    with pytest.raises(InputError, match=r"1 unusable image: kos03/Part1\.jpg \(its mask: not an image\)"):
        load(folder)


def test_duplicates_of_the_published_set_stay_together():
    args = DataArguments(data_dir=str(shared("data", "kolektorsdd")), validation_share=0)
    loaded = read_images(args)
    for fold in range(3):
        splits = split_images(loaded, replace(args, fold=fold)).splits
        assert not set(splits["train"]["digest"]) & set(splits["test"]["digest"])
        assert count_labels(*splits.values()) == {"good": 347, "defect": 52}
