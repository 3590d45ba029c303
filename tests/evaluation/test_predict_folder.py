"""Prediction of image folders: the table, the overlays, unusable images, and resuming."""

import csv
import json
import os
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import make_images, tiny_model
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

import kgl.evaluation.predict_folder as module
from kgl.cli.predict import main
from kgl.data.schema import defect_dataset
from kgl.errors import InputError
from kgl.evaluation.predict_folder import FolderPredictions, draw_overlay, overlay_path, predict_folder
from kgl.evaluation.prediction_table import PredictionTable
from kgl.evaluation.training_range import set_training_range
from kgl.modeling_kgl import KGLForImageClassification
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


def test_table_equals_the_pipeline(tmp_path, saved, images):
    result = predict_folder([Path("line")], saved, tmp_path / "out", batch_size=4, box_threshold=0.4)
    rows = rows_of(tmp_path / "out")
    names = sorted(path.relative_to(images).as_posix() for path in images.rglob("*.png"))
    assert [row["file_name"] for row in rows] == names and len(rows) == 18
    defective = sum(row["defective"] == "True" for row in rows)
    assert result == FolderPredictions(18, defective, 18 - defective, [])
    pipe = DefectDetectionPipeline(tiny_model(), image_processor=PROCESSOR, box_threshold=0.4)
    for row in rows:
        prediction = pipe(str(images / row["file_name"]))
        assert row["predicted_label"] == prediction["label"] and row["defective"] == str(prediction["defective"])
        assert float(row["score"]) == pytest.approx(prediction["score"], abs=1e-5)
        assert float(row["defect_score"]) == pytest.approx(prediction["defect_score"], abs=1e-5)
        for label, value in prediction["scores"].items():
            assert float(row[f"probability_{label}"]) == pytest.approx(value, abs=1e-5)
        boxes = json.loads(row["boxes"])
        assert [box | {"score": None} for box in boxes] == [box | {"score": None} for box in prediction["boxes"]]
        assert Image.open(tmp_path / "out" / "overlays" / f"{row['file_name']}.jpg").size == (48, 40)


def test_overlay_shows_heat_and_boxes(tmp_path):
    heat = np.zeros((40, 60), dtype=np.uint8)
    heat[10:30, 20:50] = 255
    box = {"xmin": 20, "ymin": 10, "xmax": 50, "ymax": 30, "score": 1.0}
    grey = Image.new("RGB", (60, 40), (100, 100, 100))
    heat[0:8, 0:16] = 100  # below the threshold
    prediction = {"heat_map": Image.fromarray(heat), "boxes": [box], "decision": "defective"}
    module._write_overlay(tmp_path / "deep" / "overlay.jpg", grey, prediction, 0.4, 0.05)
    drawn = np.asarray(Image.open(tmp_path / "deep" / "overlay.jpg")).astype(int)
    assert np.abs(drawn[2:6, 2:10] - 100).max() <= 3  # the image where nothing is hot
    assert np.abs(drawn[18:22, 30:40] - (0.25 * 100 + 0.75 * np.array([252, 255, 164]))).max() <= 8
    green = drawn[:, :, 1] - drawn[:, :, 0]  # the frame: pixels 20..49 by 10..29
    assert green[10, 25:45].min() > 60 and green[29, 25:45].min() > 60
    assert green[15:25, 20].min() > 60 and green[15:25, 49].min() > 60
    for decision, boxed in ((None, True), ("look again", True), ("good", False)):  # an image called good has no box
        module._write_overlay(tmp_path / "overlay.jpg", grey, prediction | {"decision": decision}, 0.4, 0.05)
        again = np.asarray(Image.open(tmp_path / "overlay.jpg")).astype(int)
        assert ((again[:, :, 1] - again[:, :, 0])[10, 25:45].min() > 60) == boxed


def test_frame_of_a_box_leaves_room_in_a_strip(tmp_path):
    prediction = {
        "heat_map": Image.new("L", (4000, 40)), "decision": "defective",
        "boxes": [{"xmin": 100, "ymin": 10, "xmax": 140, "ymax": 30, "score": 1.0}],
    }  # fmt: skip
    module._write_overlay(tmp_path / "overlay.jpg", Image.new("RGB", (4000, 40), (99, 99, 99)), prediction, 0.4, 0.05)
    drawn = np.asarray(Image.open(tmp_path / "overlay.jpg")).astype(int)
    green = drawn[:, :, 1] - drawn[:, :, 0]
    assert green[10, 120] > 60 and np.abs(green[14:26, 120]).max() < 30


def test_threshold_is_the_models_by_default(tmp_path, images):
    for name, config in (
        ("low", {"saliency_threshold": {"threshold": 0.0}}),
        ("high", {"saliency_threshold": {"threshold": 1.0}}),
        ("primary", {"saliency_threshold": {"threshold": 0.0}, "has_heat_map": False}),
    ):
        tiny_model(**config).save_pretrained(tmp_path / name)
        PROCESSOR.save_pretrained(tmp_path / name)
        predict_folder([images / "scratch" / "0.png"], str(tmp_path / name), tmp_path / f"out_{name}")
        (row,) = rows_of(tmp_path / f"out_{name}")
        assert len(json.loads(row["boxes"])) == (1 if name == "low" else 0)
    with pytest.raises(InputError, match=r"box_threshold is 0\.0 there and 0\.5 here"):
        predict_folder([images / "scratch" / "0.png"], str(tmp_path / "low"), tmp_path / "out_low", box_threshold=0.5)


def test_overlays_keep_the_colours_of_a_photograph():
    photo = Image.new("RGB", (48, 40), (0, 200, 0))
    prediction = {"heat_map": Image.new("L", (48, 40)), "decision": "good", "boxes": []}
    overlay = np.asarray(draw_overlay(photo, prediction, 0.5, 0.05), dtype=int)
    assert np.abs(overlay - [0, 200, 0]).max() < 8


def test_overlays_have_no_comment_of_the_image(tmp_path, saved):
    (tmp_path / "line").mkdir()
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48), dtype=np.uint8))
    image.save(tmp_path / "line" / "a.gif", comment=b"x" * 70_000)  # more than a JPEG can hold
    image.convert("RGB").save(tmp_path / "line" / "b.jpg", comment=b"a line")
    counts = predict_folder([tmp_path / "line"], saved, tmp_path / "out")
    assert counts.images == 2 and not counts.unusable
    for name in ("a.gif.jpg", "b.jpg"):
        assert "comment" not in Image.open(tmp_path / "out" / "overlays" / name).info


def test_files_of_the_same_name_have_separate_overlays(tmp_path, saved, images):
    (tmp_path / "work").mkdir()
    os.chdir(tmp_path / "work")
    given = [Path("../line/good/0.png"), Path("../line/scratch"), Path("../line/good/0.png")]
    predict_folder(given, saved, Path("out"))
    files = [row["file_name"] for row in rows_of(Path("out"))]
    assert files == ["good/0.png", *(f"scratch/{index}.png" for index in range(6))]
    written = {path.relative_to("out/overlays").as_posix() for path in Path("out/overlays").rglob("*.*")}
    assert written == {f"{name}.jpg" for name in files}


def test_file_names_need_not_be_utf8(tmp_path, saved):
    (tmp_path / "line").mkdir()
    for name in ("a, b.png", os.fsdecode(b"\xff\\.png"), "\u00e9.png", r"\xff\.png"):
        Image.new("L", (48, 40), 90).save(tmp_path / "line" / name)
    tables = []
    for _ in range(2):
        assert predict_folder([tmp_path / "line"], saved, tmp_path / "out").images == 4
        tables.append((tmp_path / "out" / "predictions.csv").read_bytes())
    assert tables[0] == tables[1]
    names = ["a, b.png", "\u00e9.png", r"\xff\\.png", r"\\xff\\.png"]
    assert sorted(row["file_name"] for row in rows_of(tmp_path / "out")) == sorted(names)
    overlays = {path.name for path in (tmp_path / "out" / "overlays").iterdir()}
    assert overlays == {f"{name}.jpg" for name in names}
    Image.new("L", (48, 40), 250).save(tmp_path / "line" / os.fsdecode(b"\xff\\.png"))
    assert predict_folder([tmp_path / "line"], saved, tmp_path / "out").changed == [r"\xff\\.png"]
    assert len(rows_of(tmp_path / "out")) == 4


def command(*arguments: object) -> None:
    main([str(one) for one in arguments])


def test_limit_of_pixels_is_a_setting(tmp_path, saved, images, monkeypatch, capsys):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 500)  # 48 x 40 is more than twice of it
    arguments = ["line", "--model", saved, "--output", "out", "--max_image_megapixels"]
    with pytest.raises(SystemExit, match="2"):
        command(*arguments, "0")
    assert "--max_image_megapixels 0: it must be at least 1" in capsys.readouterr().err
    command(*arguments, "1")
    assert len(rows_of(tmp_path / "out")) == 18


def test_unusable_images_are_skipped_and_named(tmp_path, saved, images, monkeypatch, capsys):
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
        command("line", "line/scratch/notes.txt", "--model", saved, "--output", "out")
    printed = capsys.readouterr()
    assert printed.out.startswith("13 images: ") and "6 unusable. Table: " in printed.out
    with (tmp_path / "out" / "unusable.csv").open() as table:
        reasons = {row["file_name"]: row["reason"] for row in csv.DictReader(table)}
    for name, why in (
        ("good/3.png", ""), ("good/4.png", "not an image"), ("good/5.png", "No such file"),
        ("good/6.png", "more than 8 bits per channel"), ("good/7.png", "megapixels, more than the limit"),
        ("scratch/notes.txt", "not an image"),
    ):  # fmt: skip
        assert why in reasons[str(images / name)]
    assert printed.err.count("\n  ") == 5 and printed.err.startswith(f"  {images / 'good' / '3.png'}: ")
    assert "  and 1 more, all in out/unusable.csv\n" in printed.err
    assert len(rows_of(tmp_path / "out")) == 18 - 5
    assert len(list((tmp_path / "out" / "overlays").rglob("*.jpg"))) == 18 - 5

    (images / "good" / "3.png").write_bytes(whole)  # repaired: the next run predicts it and no other again
    for name in ("good/4.png", "good/5.png", "good/6.png", "good/7.png", "scratch/notes.txt"):
        (images / name).unlink()
    (images / "scratch" / "notes.txt").symlink_to("0.png")
    command("line", "line/scratch/notes.txt", "--model", saved, "--output", "out")
    files = [row["file_name"] for row in rows_of(tmp_path / "out")]
    assert files[-2:] == ["good/3.png", "scratch/notes.txt"] and len(files) == len(set(files)) == 15


def test_killed_run_resumes(tmp_path, saved, images, monkeypatch):
    predict_folder([images], saved, tmp_path / "whole", batch_size=2)
    append = PredictionTable.append
    names = []

    def killed(table, name, *rest):
        assert len(rows_of(tmp_path / "out")) == len(names)  # rows are on disk at once
        assert overlay_path(tmp_path / "out" / "overlays", name).exists()
        if len(names) == 7:
            raise KeyboardInterrupt
        names.append(name)
        append(table, name, *rest)

    monkeypatch.setattr(PredictionTable, "append", killed)
    running = threading.active_count()
    with pytest.raises(KeyboardInterrupt):
        predict_folder([images], saved, tmp_path / "out", batch_size=2)
    assert threading.active_count() == running  # none that still writes overlays
    assert len(rows_of(tmp_path / "out")) == 7
    with (tmp_path / "out" / "predictions.csv").open("a") as file:
        file.write("good/5.png,scr")  # a torn row
    names.clear()
    monkeypatch.setattr(PredictionTable, "append", lambda *values: (names.append(values[1]), append(*values)))
    predict_folder([images], saved, tmp_path / "out", batch_size=2)
    assert len(names) == 18 - 7
    whole, resumed = ((tmp_path / name / "predictions.csv").read_bytes() for name in ("whole", "out"))
    assert whole == resumed
    names.clear()
    predict_folder([images], saved, tmp_path / "out", batch_size=2)
    assert names == [] and (tmp_path / "out" / "predictions.csv").read_bytes() == whole


def test_used_folder_is_refused(tmp_path, saved, images):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "predictions.csv").write_text("my own")
    with pytest.raises(InputError, match=r"--output .*mine: the folder holds other files"):
        predict_folder([images], saved, tmp_path / "mine")
    assert (tmp_path / "mine" / "predictions.csv").read_text() == "my own"
    predict_folder([images / "scratch"], saved, tmp_path / "out")
    with pytest.raises(InputError, match=r"--output .*paths is .*scratch.* there and .*good"):
        predict_folder([images / "good"], saved, tmp_path / "out")
    with pytest.raises(InputError, match=r"box_threshold is 0\.5 there and 0\.6 here"):
        predict_folder([images / "scratch"], saved, tmp_path / "out", box_threshold=0.6)
    tiny_model(seed=1).save_pretrained(saved)
    with pytest.raises(InputError, match="holds a run with other settings: the model is another one"):
        predict_folder([images / "scratch"], saved, tmp_path / "out")
    assert len(rows_of(tmp_path / "out")) == 6


def test_own_overlays_are_not_predicted(saved, images):
    for _ in range(2):
        predict_folder([Path("line")], saved, Path("line/good/out"))
    assert len(rows_of(Path("line/good/out"))) == 18


def test_bad_input_is_one_sentence_and_exit_code_2(tmp_path, saved, images, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    for arguments, sentence in (
        (["nowhere"], "nowhere: there is no such file or folder"),
        (["line", "empty"], "empty: there is no image in it"),
        (["line", "--batch_size", "0"], "--batch_size 0: it must be at least 1"),
        (["line", "--box_threshold", "1.5"], "--box_threshold 1.5: it must lie in 0..1"),
        (
            ["line", "--model", "nonesuch"],
            "--model nonesuch: there is no such folder, and it cannot be loaded from the Hub",
        ),
        (["line", "--output", "line/good/0.png"], "--output line/good/0.png: it cannot be used as a folder"),
    ):
        with pytest.raises(SystemExit, match="2"):
            command("--model", saved, "--output", "out", *arguments)
        assert f"kgl predict: error: {sentence}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_model_without_a_defect_free_class(tmp_path, images):
    tiny_model(defect_free_label=None).save_pretrained(tmp_path / "model")
    PROCESSOR.save_pretrained(tmp_path / "model")
    result = predict_folder([images / "scratch" / "0.png"], str(tmp_path / "model"), tmp_path / "out")
    assert result == FolderPredictions(1, 0, 0, [])
    (row,) = rows_of(tmp_path / "out")
    assert row["file_name"] == "0.png" and row["defect_score"] == row["defective"] == ""


@pytest.mark.parametrize("name", ["a" * 251 + ".png", "\u5212" * 83 + ".png", "a" * 251 + ".jpg"])
def test_longest_file_names(name, tmp_path, saved):
    (tmp_path / "line").mkdir()
    Image.new("L", (48, 40), 90).save(tmp_path / "line" / name)
    for _ in range(2):
        assert predict_folder([tmp_path / "line"], saved, tmp_path / "out").images == 1
    (overlay,) = (tmp_path / "out" / "overlays").iterdir()
    assert overlay == overlay_path(tmp_path / "out" / "overlays", name) and overlay.suffix == ".jpg"
    assert overlay_path(tmp_path, name) != overlay_path(tmp_path, f"{name[:-4]}.bmp")


def test_overlays_are_named_after_their_images():
    names = ["a.jpg", "a.JPEG", "a.png", "a.bmp", "a.png.jpg", "b.2024.jpg", "deep/a.jpg"]
    paths = [overlay_path(Path(), name).as_posix() for name in names]
    assert paths == ["a.jpg", "a.JPEG", "a.png.jpg", "a.bmp.jpg", "a.png.jpg.jpg", "b.2024.jpg", "deep/a.jpg"]


def test_changed_files_are_predicted_again(tmp_path, saved, images, capsys):
    command("line", "--model", saved, "--output", "out")
    before = rows_of(tmp_path / "out")
    stat = (images / "good" / "3.png").stat()
    assert before[5]["file_name"] == "good/3.png" and before[5]["file_size"] == str(stat.st_size)
    Image.new("L", (48, 40), 250).save(images / "good" / "3.png")
    (images / "scratch" / "2.png").write_text("no image")
    (images / "scratch" / "4.png").unlink()  # its row stays
    with (tmp_path / "out" / "predictions.csv").open("a") as file:
        file.write("good/5.png,scr")  # a torn row
    capsys.readouterr()
    with pytest.raises(SystemExit, match="1"):
        command("line", "--model", saved, "--output", "out")
    printed = capsys.readouterr().out
    assert "since its row was written: good/3.png, scratch/2.png\n17 images: " in printed
    after = rows_of(tmp_path / "out")
    assert after[:-1] == [row for row in before if row["file_name"] not in ("good/3.png", "scratch/2.png")]
    assert after[-1]["file_name"] == "good/3.png" and after[-1]["score"] != before[5]["score"]
    assert not (tmp_path / "out" / "predictions.csv.unfinished").exists()
    (images / "scratch" / "2.png").unlink()
    capsys.readouterr()
    command("line", "--model", saved, "--output", "out")
    assert capsys.readouterr().out.startswith("17 images: ")


def test_table_of_other_columns_is_refused_and_kept(tmp_path, saved, images):
    predict_folder([images], saved, tmp_path / "out")
    table = tmp_path / "out" / "predictions.csv"
    table.write_text(table.read_text().replace(",", ";"))  # as a spreadsheet program may save it
    kept = table.read_text()
    with pytest.raises(InputError, match=r"predictions\.csv has other columns .*Choose another --output"):
        predict_folder([images], saved, tmp_path / "out")
    assert table.read_text() == kept


def save_with_range(folder: Path, images: Path) -> str:
    """A model that knows what the images look like, each of its own group."""
    model, paths = tiny_model(), sorted(images.rglob("*.png"))
    train = defect_dataset(
        images=[str(path) for path in paths], labels=[path.parent.name for path in paths], names=["good", "scratch"],
        file_names=[path.relative_to(images).as_posix() for path in paths],
    )  # fmt: skip
    set_training_range(model, train, PROCESSOR, 4)
    model.save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)
    return str(folder)


def test_unlike_images_have_a_column_and_a_warning(tmp_path, images, capsys):
    model = save_with_range(tmp_path / "model", images)
    command("line", "--model", model, "--output", "out")
    assert {row["unlike_training"] for row in rows_of(tmp_path / "out")} == {""}
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 1 and printed.err == ""  # nothing to say
    for path in images.rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(path)) // 3).save(path)
    command("line", "--model", model, "--output", "dark")
    rows = rows_of(tmp_path / "dark")
    assert all(row["unlike_training"].startswith("darker; ") for row in rows)
    pipe = DefectDetectionPipeline(KGLForImageClassification.from_pretrained(model).eval(), image_processor=PROCESSOR)
    for row in rows[:3]:
        assert row["unlike_training"].split("; ") == pipe(str(images / row["file_name"]))["unlike_training"]
    assert capsys.readouterr().err.startswith(
        "Warning: 18 of 18 images (100 %) look unlike the training images: darker 18, "
    )
    command("line", "--model", model, "--output", "dark")  # continued: the rows that were there count too
    assert "Warning: 18 of 18 images" in capsys.readouterr().err


def test_few_unlike_images_are_counted_without_a_warning(tmp_path, images, capsys):
    model = save_with_range(tmp_path / "model", images)
    Image.new("L", (48, 40), 250).save(images / "good" / "3.png")
    command("line", "--model", model, "--output", "out")
    printed = capsys.readouterr()
    assert "1 of 18 images (6 %) look unlike the training images: " in printed.out and printed.err == ""
    assert " % would by chance." in printed.out


def test_model_that_does_not_know_its_training_images_says_nothing(tmp_path, saved, images, capsys):
    Image.new("L", (48, 40), 250).save(images / "good" / "3.png")
    command("line", "--model", saved, "--output", "out")
    assert {row["unlike_training"] for row in rows_of(tmp_path / "out")} == {""}
    assert "unlike" not in capsys.readouterr().out
