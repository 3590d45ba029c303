"""Reader of NEU-DET."""

import numpy as np
import pytest
from PIL import Image
from tiny import count_labels, shared

from kgl.data.arguments import DataArguments
from kgl.data.loading import load_defect_dataset
from kgl.errors import InputError


def test_labels_and_masks(tmp_path):
    (tmp_path / "IMAGES").mkdir()
    (tmp_path / "MASKS").mkdir()
    for name in ("pitted_surface", "rolled-in_scale"):
        for index in range(1, 5):
            pixels = np.random.default_rng([len(name), index]).integers(0, 255, (20, 20), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "IMAGES" / f"{name}_{index}.jpg")
            if name == "pitted_surface":
                Image.fromarray(np.eye(20, dtype=np.uint8) * 255).save(tmp_path / "MASKS" / f"{name}_{index}.png")
    args = DataArguments(data_dir=str(tmp_path), num_folds=2, train_on_masks=True, validation_share=0)
    splits = load_defect_dataset(args)
    assert splits["train"].features["label"].names == ["pitted_surface", "rolled-in_scale"]
    for split in splits.values():
        assert count_labels(split) == {"pitted_surface": 2, "rolled-in_scale": 2}
        for row in split:
            assert (row["mask"] is None) == row["file_name"].startswith("IMAGES/rolled")
    with pytest.raises(InputError, match="it is not NEU-DET"):
        load_defect_dataset(DataArguments("neu_det", str(tmp_path / "MASKS")))


def test_the_published_set():
    args = DataArguments(data_dir=str(shared("data", "neu-det")), train_on_masks=True, validation_share=0)
    splits = load_defect_dataset(args)
    counts = count_labels(*splits.values())
    assert set(counts.values()) == {300} and len(counts) == 6
    assert sum(mask is not None for split in splits.values() for mask in split["mask"]) == 900
