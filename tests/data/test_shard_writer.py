"""Shards that are written, and read again by kgl and by datasets alone."""

import json
import os
from pathlib import Path

import pytest
from datasets import load_dataset
from PIL import Image
from shards import shards_of, small_shards
from tiny import save_mask, save_noise

from kgl.cli.data import main
from kgl.data.arguments import DataArguments
from kgl.data.images import image_bytes, without_decoding
from kgl.data.loading import read_defect_dataset, read_images
from kgl.data.shard_writer import write_shards
from kgl.errors import InputError


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Images in the source's own splits, with masks, a near-duplicate and odd files."""
    small_shards(monkeypatch, shard_bytes=2_000)
    images = tmp_path / "images"
    for split, numbers in (("train", range(7)), ("test", range(7, 10))):
        for label in ("good", "scratch"):
            for number in numbers:
                save_noise(images / split / label / f"{number}.png", number, len(label))
    Image.open(images / "train/good/0.png").save(images / "train/good/copy.bmp")
    for index in range(3):
        save_mask(images / "ground_truth" / "scratch" / f"{index}.png", index > 0)
    return images


def columns(images) -> dict[str, list]:
    rows = without_decoding(images)[:]
    for name in ("image", "mask"):
        rows[name] = [one and image_bytes(one) for one in rows[name]]
    return rows


@pytest.mark.parametrize("streaming", [False, True])
def test_round_trip(folder, tmp_path, streaming):
    shards = shards_of(folder, tmp_path / "shards")
    assert sorted(path.name for path in (shards / "data").iterdir())[0] == "test-00000-of-00002.parquet"
    args = {"train_on_masks": True, "validation_share": 0.25}
    expected = read_defect_dataset(DataArguments(data_dir=str(folder), **args))
    found = read_defect_dataset(DataArguments(hub_dataset=str(shards), streaming=streaming, **args))
    assert found.class_names == expected.class_names and found.defect_free_label == "good"
    assert list(found.splits) == ["train", "validation", "test"]
    for split, images in expected.splits.items():
        assert columns(found.splits[split]) == columns(images), split
        assert found.splits[split][0]["image"].tobytes() == images[0]["image"].tobytes()
    if streaming:
        stored = without_decoding(found.splits["train"])["image"][:]
        assert all(one["bytes"] is None and one["path"].startswith("shard://") for one in stored)


def test_streamed_shards_are_not_inspected_again(folder, tmp_path, monkeypatch):
    shards = shards_of(folder, tmp_path / "shards")
    monkeypatch.setattr("kgl.data.loading.inspect_images", None)
    loaded = read_defect_dataset(DataArguments(hub_dataset=str(shards), streaming=True))
    assert any("as `kgl data` found them" in note for note in loaded.notes)
    pair = {row["group"] for split in loaded.splits.values() for row in split if row["file_name"].endswith(
        ("good/0.png", "copy.bmp")) and "train" in row["file_name"]}  # fmt: skip
    assert len(pair) == 1
    with pytest.raises(TypeError):
        read_images(DataArguments(hub_dataset=str(shards), streaming=True))


def test_datasets_reads_the_shards(folder, tmp_path):
    shards = shards_of(folder, tmp_path / "shards")
    loaded = load_dataset("parquet", data_dir=str(shards), cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in loaded.items()} == {"train": 15, "test": 6}
    assert loaded["train"].features["label"].names == ["good", "scratch"]
    assert loaded["train"][0]["image"].size == (24, 24)
    stream = load_dataset("parquet", data_dir=str(shards), split="train", streaming=True)
    assert [row["file_name"] for row in stream] == loaded["train"]["file_name"][:]


def test_command_writes_shards_and_says_what(folder, tmp_path, capsys):
    main([str(folder), "--to-shards", str(tmp_path / "shards"), "--output", str(tmp_path / "summary.json")])
    printed = capsys.readouterr().out
    assert "Written, train: 15 images, 3 masks, 14 groups, 6 shards" in printed, printed
    assert f"--hub_dataset {tmp_path / 'shards'}" in printed
    assert json.loads((tmp_path / "summary.json").read_text())["source_splits"]["train"]["images"] == 15


def test_refusals(folder, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    for target in ("full", "full/thesis.txt"):
        with pytest.raises(InputError, match=r"holds files|not a folder"):
            shards_of(folder, tmp_path / target)
    (folder / "train/good/broken.png").write_bytes(b"no image")
    with pytest.raises(SystemExit, match="2"):
        main([str(folder), "--to_shards", str(tmp_path / "shards")])
    assert "give --on_bad_image skip" in capsys.readouterr().err
    assert not (tmp_path / "shards").exists()
    main([str(folder), "--to_shards", str(tmp_path / "shards"), "--on_bad_image", "skip"])
    assert "train: 15 images" in capsys.readouterr().out


def test_failed_writing_leaves_nothing(folder, tmp_path, monkeypatch):
    (tmp_path / "shards").mkdir()
    loaded = read_images(DataArguments(data_dir=str(folder)))
    os.remove(folder / "test/good/8.png")
    with pytest.raises(InputError, match="cannot be written"):
        write_shards(loaded, tmp_path / "shards")
    assert [path.name for path in tmp_path.iterdir() if "shards" in path.name] == ["shards"]
    assert not list((tmp_path / "shards").iterdir())
