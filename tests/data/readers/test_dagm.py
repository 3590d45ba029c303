"""Reader of DAGM 2007."""

import pytest
from tiny import count_labels, save_mask, save_noise

from kgl.data.arguments import DataArguments
from kgl.data.loading import load_defect_dataset
from kgl.errors import InputError


def test_the_published_split_is_kept(tmp_path):
    for texture in (1, 2):
        for split in ("Train", "Test"):
            folder = tmp_path / f"Class{texture}" / split
            for index in range(4):
                save_noise(folder / f"{index:04d}.PNG", texture, index, len(split))
                if index % 2:
                    save_mask(folder / "Label" / f"{index:04d}_label.PNG")
    splits = load_defect_dataset(DataArguments(data_dir=str(tmp_path), validation_share=0))
    for split in splits.values():
        assert count_labels(split) == {"good": 4, "defect": 4}
    assert [mask is not None for mask in splits["test"]["mask"]] == [label == 1 for label in splits["test"]["label"]]
    one_texture = load_defect_dataset(DataArguments(data_dir=str(tmp_path / "Class1"), validation_share=0))
    assert count_labels(one_texture["test"]) == {"good": 2, "defect": 2}
    with pytest.raises(InputError, match="it is not DAGM 2007"):
        load_defect_dataset(DataArguments("dagm", str(tmp_path / "Class1" / "Train")))
