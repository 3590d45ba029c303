"""Prediction of images in shards."""

import csv
from pathlib import Path

import pytest
from PIL import Image
from shards import shards_of, small_shards, tars_of
from tiny import make_images, tiny_model
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

import kgl.knowledge.sharded_map
from kgl.cli.predict import main
from kgl.data.images import without_decoding
from kgl.data.readers.shards import load_shard_images
from kgl.errors import InputError
from kgl.evaluation.predict_folder import predict_folder
from kgl.evaluation.predict_shards import find_shards, predict_shards


class OneOfTwo:
    """What sharded_map asks of the state of one of two processes."""

    num_processes = 2

    def __init__(self, process_index: int) -> None:
        self.process_index = process_index


@pytest.fixture
def saved(tmp_path) -> str:
    tiny_model(id2label={0: "good", 1: "scratch"}).save_pretrained(tmp_path / "model")
    ViTImageProcessorPil(size={"height": 40, "width": 48}).save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def shards(tmp_path, monkeypatch) -> Path:
    """Three shards of 18 images, and the images beside them."""
    small_shards(monkeypatch, shard_bytes=11_000)
    folder = shards_of(make_images(tmp_path / "images"), tmp_path / "shards")
    assert len(list((folder / "data").iterdir())) == 3
    return folder


def rows_of(output: Path) -> list[dict[str, str]]:
    with (output / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return [
            {name: value for name, value in row.items() if name not in ("file_size", "file_modified")}
            for row in csv.DictReader(file)
        ]


def test_rows_equal_those_of_the_files(tmp_path, saved, shards):
    counts = predict_shards(find_shards([shards]), saved, tmp_path / "out", batch_size=5)
    expected = predict_folder([tmp_path / "images"], saved, tmp_path / "files")
    rows = {row["file_name"]: row for row in rows_of(tmp_path / "out")}
    assert counts == expected and len(rows) == 18
    assert rows == {row["file_name"]: row for row in rows_of(tmp_path / "files")}


def test_three_shards_over_two_processes_lose_and_repeat_no_image(shards, monkeypatch):
    monkeypatch.setattr(kgl.knowledge.sharded_map, "_MIN_SHARD", 4)
    images = without_decoding(load_shard_images(find_shards([shards])))
    names, numbers = [], []
    for process in (0, 1):
        for number, rows in kgl.knowledge.sharded_map._own_shards(images, OneOfTwo(process)):
            names += rows["file_name"]
            numbers.append(number)
    assert sorted(names) == sorted(images["file_name"][:]) and len(names) == 18
    assert sorted(numbers) == list(range(5))


def test_finished_pass_computes_nothing(tmp_path, saved, shards, monkeypatch):
    first = predict_shards(find_shards([shards]), saved, tmp_path / "out")
    written = (tmp_path / "out" / "predictions.csv").read_bytes()
    monkeypatch.setattr("kgl.evaluation.predict_shards._predict", lambda *args: pytest.fail("it computes"))
    assert predict_shards(find_shards([shards]), saved, tmp_path / "out") == first
    assert (tmp_path / "out" / "predictions.csv").read_bytes() == written
    with pytest.raises(InputError, match="box_threshold is"):
        predict_shards(find_shards([shards]), saved, tmp_path / "out", box_threshold=0.9)


def test_webdataset_shards_and_damaged_images(tmp_path, saved, capsys):
    images = make_images(tmp_path / "images")
    (images / "good" / "3.png").write_bytes(b"damaged")
    Image.new("I;16", (48, 40)).save(images / "good" / "4.png")
    tars_of(images, tmp_path / "tars")
    with pytest.raises(SystemExit, match="1"):
        main([str(tmp_path / "tars"), "--model", saved, "--output", str(tmp_path / "out")])
    printed = capsys.readouterr()
    assert printed.out.startswith("16 images: ") and "2 unusable" in printed.out
    assert "good_3.png: not an image" in printed.err and "bits per channel" in printed.err
    names = [row["file_name"] for row in rows_of(tmp_path / "out")]
    assert names[0] == "train-00000.tar/0-good_0.png" and len(set(names)) == 16


def test_refusals(tmp_path, saved, shards):
    (tmp_path / "images" / "backup.tar").write_bytes(b"")
    assert find_shards([tmp_path / "images"]) == []
    with pytest.raises(InputError, match="predict images and shards apart"):
        find_shards([shards, tmp_path / "images"])
    with pytest.raises(SystemExit, match="2"):
        main([str(shards), "--model", saved, "--output", str(tmp_path / "out"), "--watch", "1"])
    shards_of(tmp_path / "images", tmp_path / "again")
    with pytest.raises(InputError, match=r"several images called good/0\.png"):
        predict_shards(find_shards([shards, tmp_path / "again"]), saved, tmp_path / "out")
