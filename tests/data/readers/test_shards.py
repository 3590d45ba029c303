"""Reader of parquet and WebDataset shards that are streamed."""

from pathlib import Path

import fsspec
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, Image, concatenate_datasets
from shards import shards_of, small_shards, tars_of
from tiny import count_labels
from torch.utils.data import DataLoader

import kgl.data.shard_files
from kgl.data.arguments import DataArguments
from kgl.data.images import image_bytes, without_decoding
from kgl.data.loading import read_defect_dataset, read_images
from kgl.data.readers.columns import Columns
from kgl.data.readers.shards import _read_shard, load_shard_images
from kgl.data.shard_files import shard_blocks
from kgl.errors import InputError
from kgl.evaluation.predict_shards import find_shards


def bytes_of(images: Dataset) -> list[bytes]:
    return [image_bytes(image) for image in without_decoding(images)["image"][:]]


def test_webdataset_shards(image_folder, tmp_path):
    tars = tars_of(image_folder, tmp_path / "tars")
    args = {"image_column": "png", "label_column": "txt", "validation_share": 0}
    found = read_defect_dataset(DataArguments(hub_dataset=str(tars), streaming=True, **args)).splits
    copied = read_defect_dataset(DataArguments(hub_dataset=str(tars), **args)).splits
    assert count_labels(*found.values()) == {"good": 12, "scratch": 6}
    for split, images in copied.items():
        assert bytes_of(found[split]) == bytes_of(images)
        assert found[split]["label"][:] == images["label"][:]
        assert found[split]["digest"][:] == images["digest"][:]
    assert found["train"][0]["image"].size == (48, 40)
    with pytest.raises(InputError, match="no column 'cls'"):
        read_images(DataArguments(hub_dataset=str(tars), streaming=True, image_column="png", label_column="cls"))


def write_foreign(folder: Path, rows: list[tuple[bytes | None, str]]) -> Path:
    (folder / "data").mkdir(parents=True)
    columns = {
        "img": [{"bytes": content, "path": f"{row}.png"} for row, (content, _) in enumerate(rows)],
        "fault": [label for _, label in rows],
    }
    features = Features(img=Image(), fault=ClassLabel(names=["good", "scratch"]))
    table = Dataset.from_dict(columns, features=features).data.table
    pq.write_table(table.cast(features.arrow_schema), folder / "data" / "train-00000-of-00001.parquet")
    return folder


def test_shards_of_others_are_inspected_in_place(image_folder, tmp_path):
    files = [(path.read_bytes(), path.parent.name) for path in sorted(image_folder.rglob("*.png"))]
    folder = write_foreign(tmp_path / "foreign", [*files, (files[0][0], "good"), (b"damaged", "scratch")])
    args = {"image_column": "img", "label_column": "fault", "hub_dataset": str(folder)}
    with pytest.raises(InputError, match=r"1 unusable image: train/19-19\.png"):
        read_images(DataArguments(**args, streaming=True))
    found = read_images(DataArguments(**args, streaming=True, on_bad_image="skip"))
    copied = read_images(DataArguments(**args, on_bad_image="skip"))
    images, expected = found.splits["train"], copied.splits["train"]
    assert images["file_name"][:] == expected["file_name"][:] and images["group"][:] == expected["group"][:]
    assert images[0]["group"] == images[18]["group"]
    assert bytes_of(images) == bytes_of(expected)


def test_row_without_image_reads_no_other_file(image_folder, tmp_path):
    """A stranger's table may name any file of this machine."""
    files = [(path.read_bytes(), path.parent.name) for path in sorted(image_folder.rglob("*.png"))]
    folder = write_foreign(tmp_path / "foreign", [*files, (None, "good")])
    args = {"image_column": "img", "label_column": "fault", "hub_dataset": str(folder)}
    with pytest.raises(InputError, match="no image in its row of the shard"):
        read_images(DataArguments(**args, streaming=True))


def test_row_groups_are_read_once_and_few_stay_in_memory(image_folder, tmp_path, monkeypatch):
    small_shards(monkeypatch)
    shards = shards_of(image_folder, tmp_path / "shards")
    images = read_images(DataArguments(hub_dataset=str(shards), streaming=True), trust_shards=True).splits["train"]
    blocks = shard_blocks(images)
    assert [block.tolist() for block in blocks] == [[row, row + 1] for row in range(0, 18, 2)]
    read = kgl.data.shard_files._read_row_group
    read.cache_clear()
    bytes_of(images)
    assert (read.cache_info().misses, read.cache_info().hits) == (9, 9)
    assert read.cache_info().maxsize == kgl.data.shard_files.BUFFERED_GROUPS + 8


def test_shards_at_an_address(image_folder, tmp_path):
    """Of the Hub, for example; here in a file system in memory."""
    shards, tars = shards_of(image_folder, tmp_path / "shards"), tars_of(image_folder, tmp_path / "tars", 1)
    files = {"train.parquet": next((shards / "data").iterdir()), "train.tar": next(tars.iterdir())}
    memory = fsspec.filesystem("memory")
    for name, file in files.items():
        memory.pipe(f"/set/{name}", file.read_bytes())
    parquet = _read_shard("memory://set/train.parquet", Columns(), "")
    tar = _read_shard("memory://set/train.tar", Columns(image="png", label="txt"), "").rename_column("png", "image")
    expected = [path.read_bytes() for path in sorted(image_folder.rglob("*.png"))]
    for table in (parquet, tar):
        assert sorted(bytes_of(table)) == sorted(expected)
        assert table[3]["image"].size == (48, 40)  # as datasets opens it


def test_processes_that_load_read_for_themselves(image_folder, tmp_path, monkeypatch):
    """Workers are forked, and must not share the position in a file that the main process has opened."""
    small_shards(monkeypatch)
    shards = shards_of(image_folder, tmp_path / "shards")
    images = read_images(DataArguments(hub_dataset=str(shards), streaming=True), trust_shards=True).splits["train"]
    expected = [row["image"].tobytes() for row in images]
    loader = DataLoader(images.select_columns("image"), batch_size=2, num_workers=2, collate_fn=list)
    assert [row["image"].tobytes() for batch in loader for row in batch] == expected


def test_tables_of_other_kinds_are_refused(image_folder, tmp_path):
    with pytest.raises(InputError, match="--streaming true reads parquet and WebDataset shards, not"):
        read_images(DataArguments(hub_dataset=str(image_folder), streaming=True))
    with pytest.raises(InputError, match="--streaming true has no effect beside --data_dir"):
        DataArguments(data_dir=str(image_folder), streaming=True)
    folder = tmp_path / "damaged"
    folder.mkdir()
    (folder / "train.parquet").write_bytes(b"PAR1 and no more")
    with pytest.raises(InputError, match=r"cannot be (read|loaded)"):
        read_images(DataArguments(hub_dataset=str(folder), streaming=True))


@pytest.mark.parametrize("workers", [0, 1])
def test_damaged_shard_is_named_though_its_images_can_be_decoded(image_folder, tmp_path, workers):
    """Its images were inspected when `kgl data` wrote it, and are not inspected again."""
    shards = shards_of(image_folder, tmp_path / "shards")
    shard = shards / "data" / "train-00000-of-00001.parquet"
    content = bytearray(shard.read_bytes())
    place = content.index((image_folder / "good" / "3.png").read_bytes()[:60]) + 40
    content[place] ^= 1
    shard.write_bytes(content)
    images = concatenate_datasets(
        list(read_defect_dataset(DataArguments(hub_dataset=str(shards), streaming=True)).splits.values())
    )
    with pytest.raises(InputError, match=f"{shard}: the shard is damaged, copy it again"):
        list(DataLoader(images, collate_fn=list, num_workers=workers))
    with pytest.raises(InputError, match=f"{shard}: the shard is damaged, copy it again"):
        bytes_of(images)


@pytest.mark.parametrize("streaming", [True, False])
def test_missing_shard_is_named(image_folder, tmp_path, monkeypatch, streaming):
    small_shards(monkeypatch)
    shards = shards_of(image_folder, tmp_path / "shards")
    for number in (1, 2):
        next(shards.rglob(f"train-0000{number}-of-*")).unlink()
    with pytest.raises(InputError, match=r"train-00001-of-0000\d\.parquet is missing, like 1 more of \d; copy"):
        read_images(DataArguments(hub_dataset=str(shards), streaming=streaming))
    with pytest.raises(InputError, match=r"train-00001-of-0000\d\.parquet is missing"):
        find_shards([shards])
    left = sorted(shards.rglob("*.parquet"))
    assert find_shards(left) == left  # those alone, named one by one


def test_words_in_a_field_of_numbers_are_refused_by_name(image_folder, tmp_path):
    tars = tars_of(image_folder, tmp_path / "tars", ending="cls")
    with pytest.raises(InputError, match=r"train-00000\.tar: good_0\.cls holds 'good', where `datasets` reads"):
        read_images(DataArguments(hub_dataset=str(tars), streaming=True, image_column="png", label_column="cls"))


def test_folders_of_shards_are_told_from_folders_of_images(image_folder, tmp_path):
    shards = shards_of(image_folder, tmp_path / "shards")
    with pytest.raises(InputError, match=f"it holds shards, not images; give it as --hub_dataset {shards}"):
        read_images(DataArguments(data_dir=str(shards)))
    with pytest.raises(InputError, match=r"--streaming true has no effect .* it goes with shards"):
        DataArguments(data_dir=str(shards), streaming=True)
    shard = next(shards.rglob("*.parquet"))
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(InputError, match=f"^{shard} cannot be read, copy it again"):
        load_shard_images([shard])
