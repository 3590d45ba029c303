"""Reader of KolektorSDD2."""

import pytest
from tiny import count_labels, save_mask, save_noise

from kgl.data.arguments import DataArguments
from kgl.data.loading import load_defect_dataset
from kgl.errors import InputError


@pytest.mark.parametrize("title", [str, str.title], ids=["lower", "capital"])
def test_the_published_split_is_kept(title, tmp_path):
    for split, count in (("train", 6), ("test", 4)):
        for index in range(count):
            save_noise(tmp_path / title(split) / f"{10000 + index}.png", count, index)
            save_mask(tmp_path / title(split) / f"{10000 + index}_GT.png", marked=index % 2 == 1)
    args = DataArguments(data_dir=str(tmp_path), validation_share=0)
    splits = load_defect_dataset(args)
    assert count_labels(splits["train"]) == {"good": 3, "defect": 3}
    assert count_labels(splits["test"]) == {"good": 2, "defect": 2}
    (tmp_path / title("test") / "10001_GT.png").unlink()
    with pytest.raises(InputError, match=r"1 mask missing.*10001_GT\.png"):
        load_defect_dataset(args)
    with pytest.raises(InputError, match="it is not KolektorSDD2"):
        load_defect_dataset(DataArguments("kolektorsdd2", str(tmp_path / title("train"))))
