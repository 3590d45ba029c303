"""HTML of results: images inside, all text escaped."""

import base64
import io
import re
from types import SimpleNamespace

import numpy as np
from PIL import Image

from rendering import (
    card_html,
    colour_heat_map,
    confusion_html,
    heat_map_hint,
    operating_point_html,
    problem_html,
)


NAME = "<img src=x onerror=alert(1)>.png"


def make_prediction(defect_score: float | None = 0.5, label: str = "<b>pit") -> dict:
    return {
        "label": label, "score": 0.5, "scores": {"good": 0.5, label: 0.5}, "defect_score": defect_score,
        "heat_map": Image.new("L", (1000, 500), 128), "boxes": [{"xmin": 1, "ymin": 2, "xmax": 11, "ymax": 22}],
    }  # fmt: skip


def test_card_holds_images_and_escaped_text():
    image = Image.new("RGB", (1000, 500), (90, 90, 90))
    card = card_html(NAME, image, make_prediction(), 0.5, 0.5)
    assert 'data-decision="defective"' in card
    above = np.nextafter(0.5, 1)
    for look_again, word in ((None, "good"), (0.5, "look-again"), (above, "good")):
        assert f'data-decision="{word}"' in card_html(NAME, image, make_prediction(), above, 0.5, look_again)
    assert 'data-decision="defective"' in card_html(NAME, image, make_prediction(), 0.5, 0.5, 0.9)
    assert "<img src=x" not in card and "&lt;img src=x" in card and "<b>pit" not in card and "&lt;b&gt;pit" in card
    assert '<rect x="1" y="2" width="10" height="20"/>' in card
    sources = re.findall(r'src="data:image/\w+;base64,([^"]+)"', card)
    assert len(sources) == card.count("<img") == 2
    sizes = [Image.open(io.BytesIO(base64.b64decode(source))).size for source in sources]
    assert sizes == [(800, 400), (256, 128)]


def test_card_names_what_is_unlike_the_training_images():
    image = Image.new("RGB", (1000, 500))
    for answer, shown in ((["darker", "<other>"], True), ([], False), (None, False)):
        card = card_html("a.png", image, make_prediction() | {"unlike_training": answer}, 0.5, 0.5)
        assert ("Unlike the training images: <b>darker; &lt;other&gt;</b>" in card) == shown
    assert "Unlike" not in card_html("a.png", image, make_prediction(), 0.5, 0.5)  # the code of an older model


def test_card_without_defect_free_class_has_no_decision():
    card = card_html("a.png", Image.new("RGB", (1000, 500)), make_prediction(None), 0.5, 0.5)
    assert "decision" not in card and "data-score" not in card and "Most probable class" in card


def test_heat_map_is_clear_below_its_threshold():
    colours = np.asarray(colour_heat_map(Image.fromarray(np.array([[0, 50, 51, 255]], dtype=np.uint8)), 0.2))
    assert colours[0, :, 3].tolist() == [0, 0, 128, 255]
    assert colours[0, 2, :3].tolist() == [255, 225, 90] and colours[0, 3, :3].tolist() == [190, 0, 30]


def test_hint_names_the_threshold():
    assert "0.152 on" in heat_map_hint(SimpleNamespace(has_heat_map=True, heat_threshold=0.1518))
    assert heat_map_hint(SimpleNamespace(has_heat_map=False)) == "This model has no heat map."


def test_problem_is_escaped():
    assert problem_html(NAME, "<i>") == (
        '<p class="problem" role="alert"><b>&lt;img src=x onerror=alert(1)&gt;.png</b> &lt;i&gt;</p>'
    )


def test_operating_point():
    assert "0.5" in operating_point_html(None) and "0.250" in operating_point_html({"threshold": 0.25})
    point = {"threshold": 0.25, "chosen": "<why>", "recall": 0.5, "false_alarm_rate": 0.1, "defective": 4, "good": 10}
    text = operating_point_html(point)
    assert "&lt;why&gt;" in text and "4 defective, 10 good" in text
    assert "recall 50.0 %" in text and "false-alarm rate 10.0 %" in text and "look again" not in text
    assert "From 0.125 up to the threshold: look again." in operating_point_html(
        point | {"look_again_threshold": 0.125}
    )


def test_without_labelled_set():
    assert "Upload predictions.csv" in confusion_html(None, 0.5)
