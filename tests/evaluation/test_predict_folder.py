"""The command that looks at a line's images: its table, its overlays, and what it does about bad ones."""

import csv
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import make_images, tiny_model
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.cli.predict import main
from kgl.errors import InputError
from kgl.evaluation import predict_folder as predict
from kgl.evaluation.predict_folder import run
from kgl.pipeline_kgl import DefectDetectionPipeline


PROCESSOR = ViTImageProcessorPil(size={"height": 40, "width": 48})


@pytest.fixture
def saved(tmp_path) -> str:
    tiny_model().save_pretrained(tmp_path / "model")
    PROCESSOR.save_pretrained(tmp_path / "model")
    return str(tmp_path / "model")


@pytest.fixture
def images(tmp_path, monkeypatch) -> Path:
    """18 images below `line`, and the working directory beside it."""
    monkeypatch.chdir(tmp_path)
    return make_images(tmp_path / "line")


def rows_of(output: Path) -> list[dict[str, str]]:
    with (output / "predictions.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_table_says_what_the_pipeline_says(tmp_path, saved, images):
    assert run([Path("line")], saved, tmp_path / "out", batch_size=4, box_threshold=0.4) == []
    rows = rows_of(tmp_path / "out")
    names = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))
    assert [row["file"] for row in rows] == names and len(rows) == 18
    pipe = DefectDetectionPipeline(tiny_model(), image_processor=PROCESSOR, box_threshold=0.4)
    for row in rows:
        said = pipe(str(images / row["file"]))
        assert row["label"] == said["label"] and row["defective"] == str(said["defective"])
        assert float(row["score"]) == pytest.approx(said["score"], abs=1e-5)
        assert float(row["defect_score"]) == pytest.approx(said["defect_score"], abs=1e-5)
        for label, value in said["scores"].items():
            assert float(row[f"probability: {label}"]) == pytest.approx(value, abs=1e-5)
        boxes = json.loads(row["boxes"])
        assert [box | {"score": None} for box in boxes] == [box | {"score": None} for box in said["boxes"]]
        assert Image.open(tmp_path / "out" / "overlays" / f"{row['file']}.jpg").size == (48, 40)


def test_an_overlay_shows_heat_and_boxes(tmp_path):
    heat = np.zeros((40, 60), dtype=np.uint8)
    heat[10:30, 20:50] = 255
    box = {"xmin": 20, "ymin": 10, "xmax": 50, "ymax": 30, "score": 1.0}
    grey = Image.new("RGB", (60, 40), (100, 100, 100))
    said = {"heat_map": Image.fromarray(heat), "boxes": [box], "defective": True}
    predict._draw(tmp_path / "deep" / "overlay.jpg", grey, said)
    drawn = np.asarray(Image.open(tmp_path / "deep" / "overlay.jpg")).astype(int)
    assert np.abs(drawn[2:6, 2:10] - 100).max() <= 3  # the image where nothing is hot
    assert np.abs(drawn[18:22, 30:40] - (0.25 * 100 + 0.75 * np.array([252, 255, 164]))).max() <= 8
    green = drawn[:, :, 1] - drawn[:, :, 0]  # the frame: pixels 20..49 by 10..29
    assert green[10, 25:45].min() > 60 and green[29, 25:45].min() > 60
    assert green[15:25, 20].min() > 60 and green[15:25, 49].min() > 60
    for defective, boxed in ((None, True), (False, False)):  # what is passed as good has no box
        predict._draw(tmp_path / "overlay.jpg", grey, said | {"defective": defective})
        again = np.asarray(Image.open(tmp_path / "overlay.jpg")).astype(int)
        assert ((again[:, :, 1] - again[:, :, 0])[10, 25:45].min() > 60) == boxed


def test_files_of_the_same_name_stay_apart_and_inside(tmp_path, saved, images):
    (tmp_path / "work").mkdir()
    os.chdir(tmp_path / "work")
    given = [Path("../line/good/0.png"), Path("../line/scratch"), Path("../line/good/0.png")]
    run(given, saved, Path("out"))
    files = [row["file"] for row in rows_of(Path("out"))]
    assert files == ["good/0.png", *(f"scratch/{index}.png" for index in range(6))]
    written = {path.relative_to("out/overlays").as_posix() for path in Path("out/overlays").rglob("*.*")}
    assert written == {f"{name}.jpg" for name in files}


def test_names_of_files_need_not_be_text(tmp_path, saved):
    (tmp_path / "line").mkdir()
    for name in ("a, b.png", os.fsdecode(b"\xff.png")):
        Image.new("L", (48, 40), 90).save(tmp_path / "line" / name)
    for _ in range(2):
        assert run([tmp_path / "line"], saved, tmp_path / "out") == []
    table = (tmp_path / "out" / "predictions.csv").read_bytes()
    assert table.count(b"\n") == 3 and b'"a, b.png"' in table and b"\n\xff.png," in table


def command(monkeypatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["kgl-predict", *map(str, arguments)])
    main()


def test_bad_images_are_passed_over_and_named(tmp_path, saved, images, monkeypatch, capsys):
    whole = (images / "good" / "3.png").read_bytes()
    (images / "good" / "3.png").write_bytes(whole[: len(whole) // 2])
    (images / "good" / "4.png").write_text("no image")
    (images / "good" / "5.png").unlink()
    (images / "good" / "5.png").symlink_to(images / "gone.png")
    Image.new("I;16", (48, 40)).save(images / "good" / "6.png")
    Image.new("L", (100, 100)).save(images / "good" / "7.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)  # a hundred by a hundred is a bomb
    (images / "scratch" / "notes.txt").write_text("given by name")
    with pytest.raises(SystemExit, match="1"):
        command(monkeypatch, "line", "line/scratch/notes.txt", "--model", saved, "--output", "out")
    told = capsys.readouterr()
    assert "6 could not be used:" in told.err and "predictions.csv" in told.out
    for name, why in (
        ("good/3.png", ""), ("good/4.png", "not an image"), ("good/5.png", "No such file"),
        ("good/6.png", "16 bits a channel"), ("good/7.png", "decompression bomb"),
        ("scratch/notes.txt", "not an image"),
    ):  # fmt: skip
        assert f"{images / name}: " in told.err and why in told.err
    assert len(rows_of(tmp_path / "out")) == 18 - 5
    assert len(list((tmp_path / "out" / "overlays").rglob("*.jpg"))) == 18 - 5

    (images / "good" / "3.png").write_bytes(whole)  # mended: the next run has it, and nothing else again
    for name in ("good/4.png", "good/5.png", "good/6.png", "good/7.png", "scratch/notes.txt"):
        (images / name).unlink()
    (images / "scratch" / "notes.txt").symlink_to("0.png")
    command(monkeypatch, "line", "line/scratch/notes.txt", "--model", saved, "--output", "out")
    files = [row["file"] for row in rows_of(tmp_path / "out")]
    assert files[-2:] == ["good/3.png", "scratch/notes.txt"] and len(files) == len(set(files)) == 15


def test_a_killed_run_goes_on(tmp_path, saved, images, monkeypatch):
    run([images], saved, tmp_path / "whole", batch_size=1)
    drawn = predict._draw
    calls = []

    def killed(path, *rest):
        assert len(rows_of(tmp_path / "out")) == len(calls)  # on disk already, whatever comes
        if len(calls) == 7:
            raise KeyboardInterrupt
        calls.append(path)
        drawn(path, *rest)

    monkeypatch.setattr(predict, "_draw", killed)
    with pytest.raises(KeyboardInterrupt):
        run([images], saved, tmp_path / "out", batch_size=1)
    assert len(rows_of(tmp_path / "out")) == 7
    with (tmp_path / "out" / "predictions.csv").open("a") as file:
        file.write("good/5.png,scr")  # a torn row
    calls.clear()
    monkeypatch.setattr(predict, "_draw", lambda path, *rest: (calls.append(path), drawn(path, *rest)))
    run([images], saved, tmp_path / "out", batch_size=1)
    assert len(calls) == 18 - 7
    whole, gone_on = ((tmp_path / name / "predictions.csv").read_bytes() for name in ("whole", "out"))
    assert whole == gone_on
    calls.clear()
    run([images], saved, tmp_path / "out", batch_size=1)
    assert calls == [] and (tmp_path / "out" / "predictions.csv").read_bytes() == whole


def test_a_used_folder_is_refused(tmp_path, saved, images):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "predictions.csv").write_text("my own")
    with pytest.raises(InputError, match=r"--output .*mine: it holds something else"):
        run([images], saved, tmp_path / "mine")
    assert (tmp_path / "mine" / "predictions.csv").read_text() == "my own"
    run([images / "scratch"], saved, tmp_path / "out")
    with pytest.raises(InputError, match=r"--output .*paths is .*scratch.* there and .*good"):
        run([images / "good"], saved, tmp_path / "out")
    with pytest.raises(InputError, match=r"box_threshold is 0\.5 there and 0\.6 here"):
        run([images / "scratch"], saved, tmp_path / "out", box_threshold=0.6)
    tiny_model(seed=1).save_pretrained(saved)
    with pytest.raises(InputError, match="holds a run with other settings: model is"):
        run([images / "scratch"], saved, tmp_path / "out")
    assert len(rows_of(tmp_path / "out")) == 6


def test_overlays_in_the_folder_looked_at_are_not_looked_at(saved, images):
    for _ in range(2):
        run([Path("line")], saved, Path("line/good/out"))
    assert len(rows_of(Path("line/good/out"))) == 18


def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, saved, images, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    for arguments, sentence in (
        (["nowhere"], "nowhere: there is no such file or folder"),
        (["line", "empty"], "empty: there is no image in it"),
        (["line", "--batch_size", "0"], "--batch_size 0: it must be at least 1"),
        (["line", "--box_threshold", "1.5"], "--box_threshold 1.5: it must lie in 0..1"),
        (["line", "--model", "nonesuch"], "--model nonesuch: there is no such folder, and the Hub"),
        (["line", "--output", "line/good/0.png"], "--output line/good/0.png: it cannot be used as a folder"),
    ):
        with pytest.raises(SystemExit, match="2"):
            command(monkeypatch, "--model", saved, "--output", "out", *arguments)
        assert f"kgl-predict: error: {sentence}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_model_without_a_defect_free_class(tmp_path, images):
    tiny_model(defect_free_label=None).save_pretrained(tmp_path / "model")
    PROCESSOR.save_pretrained(tmp_path / "model")
    run([images / "scratch" / "0.png"], str(tmp_path / "model"), tmp_path / "out")
    (row,) = rows_of(tmp_path / "out")
    assert row["file"] == "0.png" and row["defect_score"] == row["defective"] == ""
