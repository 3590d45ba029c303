"""Galleries of the report: kinds of decisions, and sorting and filtering in a browser."""

import base64
import io
import json
import re

import numpy as np
import pytest
from browser import chromium
from PIL import Image
from tiny import tiny_model

from kgl.data.schema import defect_dataset
from kgl.evaluation.galleries import kinds_of_cases, read_galleries, write_galleries
from kgl.evaluation.predictions import Predictions
from kgl.evaluation.report import write_report
from kgl.evaluation.results import evaluate_predictions


NAMES = ["good", "scratch", "pit"]
#          good: right, false alarm, look again; scratch: right, missed, look again, taken for a pit
LABELS = [0, 0, 0, 1, 1, 1, 1]
SCORES = [0.1, 0.9, 0.4, 0.8, 0.2, 0.45, 0.7]
KINDS = ["right", "false alarm", "look again", "right", "missed defect", "look again", "another class"]
FILES = ["part 10.png", "part 9.png", "part 8.png", "part 7.png", "part 6.png", "part 5.png", '"part" 4.png']
BAND = {"threshold": 0.5, "look_again_threshold": 0.3, "recall": 1.0, "false_alarm_rate": 0.0, "defective": 3,
        "good": 3, "chosen": "by hand", "look_again_chosen": "by hand", "look_again_recall": 1.0,
        "look_again_false_alarm_rate": 0.5, "marks_all_good": False}  # fmt: skip


def inputs():
    """The test images and predictions of both classifiers."""
    generator = np.random.default_rng(0)
    images = [Image.fromarray(generator.integers(0, 255, (32, 40), dtype=np.uint8)) for _ in LABELS]
    test = defect_dataset(
        images=[np.asarray(image) for image in images], labels=[NAMES[label] for label in LABELS], names=NAMES,
        file_names=FILES,
    )  # fmt: skip
    probabilities = np.column_stack([1 - np.array(SCORES), SCORES, np.zeros(7)]).astype(float)
    probabilities[6] = [0.3, 0.1, 0.6]
    heat = np.full((7, 4, 4), 0.05)
    heat[:, 1, 1] = [0.9, 0.1, 0.2, 0.3, 0.8, 0.5, 0.6]
    predicted = Predictions(probabilities, generator.random((7, 4, 4)), heat)
    return test, {"primary": predicted, "final": predicted}


def make_config(point=None, **others):
    return tiny_model(id2label=dict(enumerate(NAMES)), operating_point=point, **others).config


def test_images_are_of_the_kind_that_the_operating_point_decides(tmp_path):
    test, predictions = inputs()
    path, final = tmp_path / "gallery.json", predictions["final"].probabilities
    write_galleries(path, test, predictions, None, make_config(BAND))
    stored = path.read_bytes()
    galleries, small = read_galleries(path, np.array(LABELS), final, make_config(BAND))
    assert {case["file"]: case["kind"] for case in small.cases} == dict(zip(FILES, KINDS, strict=True))
    assert [case["file"] for case in small.cases] == [FILES[row] for row in np.argsort(-np.array(SCORES))]
    decided = {case["file"]: case["decision"] for case in small.cases}
    assert [decided[file] for file in FILES] == [
        "good", "defective", "look again", "defective", "good", "look again", "defective",
    ]  # fmt: skip
    assert small.cases[0]["heat"] == pytest.approx(0.1) and small.cases[0]["label"] == "good"
    assert [(one.title, len(one.cases), one.total) for one in galleries] == [
        ("Missed defects", 1, 1), ("False alarms", 1, 1), ("Found defects", 2, 2), ("Hardest images", 7, 7),
    ]  # fmt: skip
    assert [case["file"] for case in galleries[2].cases] == [FILES[3], FILES[6]]  # the surest first
    assert kinds_of_cases(small.cases) == ["missed defect", "false alarm", "another class", "look again", "right"]
    _, small = read_galleries(path, np.array(LABELS), final, make_config({"threshold": 0.95}))
    assert {case["kind"] for case in small.cases if case["label"] == "good"} == {"right"}
    assert {case["kind"] for case in small.cases if case["label"] != "good"} == {"missed defect"}
    assert path.read_bytes() == stored


def test_thumbnails_are_the_hardest_images_where_there_are_many(tmp_path, monkeypatch):
    monkeypatch.setattr("kgl.evaluation.galleries._MAX_THUMBNAILS", 3)
    monkeypatch.setattr("kgl.evaluation.galleries._GALLERY_SIZE", 1)
    test, predictions = inputs()
    write_galleries(tmp_path / "gallery.json", test, predictions, None, make_config(BAND))
    final = predictions["final"].probabilities
    _, small = read_galleries(tmp_path / "gallery.json", np.array(LABELS), final, make_config(BAND))
    # the three hardest, and the surest find
    assert [case["file"] for case in small.cases] == [FILES[1], FILES[3], FILES[6], FILES[4]] and small.total == 7
    assert "those above" in small.chosen


def test_found_defects_are_bounded_and_left_out_where_an_earlier_version_stored_none(tmp_path, monkeypatch):
    monkeypatch.setattr("kgl.evaluation.galleries._GALLERY_SIZE", 1)
    test, predictions = inputs()
    path, final = tmp_path / "gallery.json", predictions["final"].probabilities
    write_galleries(path, test, predictions, None, make_config(BAND))
    found = read_galleries(path, np.array(LABELS), final, make_config(BAND))[0][2]
    assert [case["file"] for case in found.cases] == [FILES[3]] and found.total == 2
    stored = json.loads(path.read_text())
    del stored["cases"]["3"]
    path.write_text(json.dumps(stored))
    galleries = read_galleries(path, np.array(LABELS), final, make_config(BAND))[0]
    assert [one.title for one in galleries] == ["Missed defects", "False alarms", "Hardest images"]


def test_missing_tiles_of_a_missed_defect_are_an_error(tmp_path):
    test, predictions = inputs()
    path, final = tmp_path / "gallery.json", predictions["final"].probabilities
    write_galleries(path, test, predictions, None, make_config(BAND))
    stored = json.loads(path.read_text())
    del stored["cases"][str(KINDS.index("missed defect"))]
    path.write_text(json.dumps(stored))
    with pytest.raises(KeyError):
        read_galleries(path, np.array(LABELS), final, make_config(BAND))


def test_found_defects_are_of_each_class(tmp_path):
    """Twelve sure scratches and twelve unsure pits: four of each."""
    labels = np.repeat([1, 2], 12)
    scores = np.concatenate([np.linspace(0.99, 0.9, 12), np.linspace(0.8, 0.6, 12)])
    final = np.column_stack([1 - scores, *(np.where(labels == label, scores, 0) for label in (1, 2))])
    test = defect_dataset(
        images=[np.zeros((8, 8), dtype=np.uint8)] * 24, labels=[NAMES[label] for label in labels], names=NAMES,
        file_names=[f"{index}.png" for index in range(24)],
    )  # fmt: skip
    predictions = dict.fromkeys(("primary", "final"), Predictions(final, *np.zeros((2, 24, 4, 4))))
    write_galleries(tmp_path / "gallery.json", test, predictions, None, make_config(BAND))
    found = read_galleries(tmp_path / "gallery.json", labels, final, make_config(BAND))[0][2]
    assert [case["file"] for case in found.cases] == [f"{index}.png" for index in (0, 1, 2, 3, 12, 13, 14, 15)]
    assert found.total == 24


def test_colours_of_a_photograph_are_kept(tmp_path):
    """A green image under a cold map is green in every tile and thumbnail."""
    green = np.zeros((32, 40, 3), dtype=np.uint8)
    green[..., 1] = 200
    test, predictions = inputs()
    test = defect_dataset(images=[green] * 7, labels=[NAMES[label] for label in LABELS], names=NAMES, file_names=FILES)
    cold = Predictions(predictions["final"].probabilities, *np.zeros((2, 7, 4, 4)))
    path = tmp_path / "gallery.json"
    write_galleries(path, test, dict.fromkeys(predictions, cold), None, make_config(BAND))
    galleries, small = read_galleries(path, np.array(LABELS), cold.probabilities, make_config(BAND))
    tiles = [tile["src"] for case in galleries[3].cases for tile in case["tiles"]] + [
        one["src"] for one in small.cases
    ]
    assert len(tiles) == 7 * 4 + 7
    for src in tiles:
        pixels = np.asarray(Image.open(io.BytesIO(base64.b64decode(src.partition(",")[2]))), dtype=int)
        assert np.abs(pixels - [0, 200, 0]).max() < 8
    assert Image.open(io.BytesIO(base64.b64decode(tiles[0].partition(",")[2]))).size == (320, 256)


def test_no_class_without_defects(tmp_path):
    test, predictions = inputs()
    config = make_config(defect_free_label=None)
    write_galleries(tmp_path / "gallery.json", test, predictions, None, config)
    final = predictions["final"].probabilities
    galleries, small = read_galleries(tmp_path / "gallery.json", np.array(LABELS), final, config)
    assert [one.title for one in galleries] == ["Recognised images", "Hardest images"]
    right = final.argmax(axis=1) == LABELS
    recognised = [FILES.index(case["file"]) for case in galleries[0].cases]
    assert recognised == [0, 3, 2] and galleries[0].total == right.sum() == 3  # .9, .8 and .6
    assert {case["file"] for case in small.cases if case["kind"] == "right"} == {
        name for name, is_right in zip(FILES, right, strict=True) if is_right
    }
    assert {case["kind"] for case in small.cases} == {"right", "another class"}


@pytest.fixture
def page(tmp_path):
    test, predictions = inputs()
    config = make_config(BAND)
    metrics = evaluate_predictions(predictions["final"], test, 0, (32, 32)) | {
        "recall_at_operating_point": 0.5, "false_alarm_rate_at_operating_point": 0.5, "recall_with_look_again": 0.5,
        "false_alarm_rate_with_look_again": 0.5, "seconds": 1,
    }  # fmt: skip
    report = {
        "results": {"primary": metrics, "final": metrics}, "differences": {}, "images": {"train": 9, "test": 7},
        "validation": {"primary": None, "final": None}, "issues": [], "versions": {}, "seconds": {},
        "settings": {
            "data": {"dataset": None, "data_dir": "parts", "data_file": None, "hub_dataset": None},
            "model": {"fine_tune": False},
        },
    }  # fmt: skip
    path = tmp_path / "report.html"
    write_report(path, report, test, predictions, {"primary": [], "final": []}, None, config, [""] * 7)
    return path


def test_page_without_a_script_shows_everything_and_no_dead_controls(page):
    text = page.read_text()
    assert text.count('<form class="controls" hidden>') == 3  # found, hardest and thumbnails; one image needs none
    assert text.count('<figure class="case"') == 11 and text.count('<figure class="thumbnail') == 7
    assert "Of 1000 good parts, expect about 333 to be called defective" in text
    assert not re.search(r"<script[^>]+src", text) and 'data-file="&#34;part&#34; 4.png"' in text


def choose(driver, gallery, control, text):
    """Choose an option by its text, as a reader does."""
    select = driver.find_elements("css selector", gallery)[-1].find_element("xpath", "preceding-sibling::form[1]")
    for option in select.find_elements("css selector", f"{control} option"):
        if option.text == text:
            option.click()
            return
    raise AssertionError(f"no option {text}")


@pytest.mark.parametrize("width", [360, 1200])
def test_reader_sorts_and_filters(page, width):
    with chromium(width, 900) as driver:
        window = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)
        driver.get(page.as_uri())

        def shown():
            items = driver.find_elements("css selector", ".thumbnails > figure")
            return [FILES.index(one.get_attribute("data-file")) for one in items if one.is_displayed()]

        listed = shown()
        assert listed == [1, 3, 6, 5, 2, 4, 0]
        for text, expected in (
            ("file name", [6, 5, 4, 3, 2, 1, 0]),  # numbers in names count as numbers
            ("P(defect), lowest first", listed[::-1]),
            ("highest cell of the heat map", [0, 4, 6, 5, 3, 2, 1]),
            ("true class", [1, 2, 0, 3, 6, 5, 4]),  # of one class as listed
            ("as listed", listed),
        ):
            choose(driver, ".thumbnails", ".sort", text)
            assert shown() == expected, text
        for text, expected in (
            ("mistakes", [1, 6, 4]), ("missed defects", [4]), ("to be looked at again", [5, 2]), ("all", listed),
        ):  # fmt: skip
            choose(driver, ".thumbnails", ".show", text)
            assert shown() == expected, text
            output = driver.find_elements("css selector", ".controls output")[-1]
            assert output.text == f"{len(expected)} of 7 shown"
        choose(driver, ".thumbnails", ".show", "missed defects")
        first = driver.find_elements("css selector", ".gallery:not(.thumbnails) > figure")
        assert all(one.is_displayed() for one in first)  # each gallery by itself
        labels = driver.execute_script("return [...document.querySelectorAll('select')].map(one => one.labels.length)")
        assert set(labels) == {1}
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        assert [line for line in driver.get_log("browser") if line["level"] in ("SEVERE", "WARNING")] == []
