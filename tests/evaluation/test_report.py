"""The HTML report of a run."""

import base64
import json
import re

import datasets
import numpy as np
import pytest
from browser import chromium, loaded_images
from datasets import ClassLabel
from PIL import Image
from tiny import tiny_model

from kgl.data.arguments import DataArguments
from kgl.data.loading import read_defect_dataset
from kgl.data.schema import defect_dataset
from kgl.data.synthetic import generate_surface
from kgl.evaluation.calibration import calibrate, recall_rule
from kgl.evaluation.charts import loss_chart
from kgl.evaluation.metrics import paired_bootstrap
from kgl.evaluation.predictions import Predictions
from kgl.evaluation.report import comparison_table, render_report, results_rows, write_report
from kgl.evaluation.results import evaluate_predictions
from kgl.evaluation.run_outputs import print_results


NAMES = ["good", "scratch", "pit"]
EVIL = '<img src=x onerror="console.error(1)">.png'
GROUPS = [("", "lot a", "lot <b>")[index % 5 % 3] for index in range(60)]


def encoded(pixels):
    return datasets.Image().encode_example(Image.fromarray(pixels))


def predictions(labels, generator, sharpness):
    logits = generator.normal(size=(len(labels), 3)) + sharpness * np.eye(3)[labels]
    exp = np.exp(logits)
    maps = generator.random((2, len(labels), 4, 4))
    return Predictions(exp / exp.sum(axis=1, keepdims=True), *maps)


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A report on generated surfaces, one of them with markup for a name; and its inputs."""
    generator = np.random.default_rng(0)
    labels = [index % 3 for index in range(60)]
    surfaces = [generate_surface(NAMES[label], 64, index) for index, label in enumerate(labels)]
    files = [EVIL, *(f"part {index}.png" for index in range(1, 60))]
    test = defect_dataset(
        images=[one.image for one in surfaces],
        labels=[NAMES[label] for label in labels],
        names=NAMES,
        masks=[one.mask.astype(np.uint8) * 255 for one in surfaces],
        file_names=files,
    )
    test_predictions = {"primary": predictions(labels, generator, 0.5), "final": predictions(labels, generator, 1.5)}
    test_predictions["final"].probabilities[0] = [0.02, 0.01, 0.97]  # EVIL is good and called a pit: a false alarm
    calibration = calibrate(test_predictions["final"].probabilities, np.array(labels), 0, wanted_recall=0.8)
    config = tiny_model(
        id2label=dict(enumerate(NAMES)),
        operating_point=calibration["operating_point"],
        temperature=calibration["temperature"],
        saliency_threshold={"threshold": 0.6543, "good_images": 20, "false_alarm_rate": 0.1, "chosen": "<b>by hand"},
    ).config
    rates = {"recall_at_operating_point": 0.8, "false_alarm_rate_at_operating_point": 0.25, "seconds": 12.0}
    *intervals, differences = paired_bootstrap(
        *(one.probabilities for one in test_predictions.values()), labels, 0, 50
    )
    report = {
        "results": {
            model: evaluate_predictions(test_predictions[model], test, 0, (64, 64)) | rates | around
            for model, around in zip(test_predictions, intervals, strict=True)
        },
        "differences": differences,
        "validation": {"primary": calibration, "final": calibration},
        "images": {"train": 100, "validation": 20, "test": 60},
        "issues": [{"kind": "near-duplicates", "files": ["a.png", EVIL], "note": "looks alike"}],
        "settings": {
            "data": {
                "dataset": "imagefolder",
                "data_dir": "tiles",
                "data_file": None,
                "hub_dataset": None,
                "defect_free_label": "good",
            },
            "model": {"fine_tune": True},
        },
        "versions": {"python": "3"},
        "seconds": {"primary": 1.0},
    }
    report = json.loads(json.dumps(report))
    steps = [
        {"step": step, "loss": 1 / step, "loss_cls": 1 / step, "loss_kg": 0.5, "kg_lambda": 0.5} for step in (1, 2, 3)
    ]
    path = tmp_path_factory.mktemp("report") / "report.html"
    write_report(
        path, report, test, test_predictions, {"primary": steps, "final": steps},
        lambda rows: np.ones((len(rows), 4, 4)), config, GROUPS,
    )  # fmt: skip
    return path, report, test_predictions, labels


def test_results_have_intervals_and_differences(page):
    _, report, _, _ = page
    rows = {row["title"]: row for row in results_rows(report)}
    primary, final = (report["results"][model] for model in ("primary", "final"))
    low, high = final["ap_interval"]
    assert rows["AP"]["final"] == f"{final['ap']:.3f} ({low:.3f} … {high:.3f})"
    assert rows["AP"]["difference"].startswith(f"{final['ap'] - primary['ap']:+.3f} (")
    title = "Training time in seconds"
    assert rows[title] == {"title": title, "primary": "12", "final": "12", "difference": ""}


def test_page_is_self_contained_and_escapes_names(page):
    text = page[0].read_text()
    assert "<h1>Defect classifier for tiles</h1>" in text
    assert "final: heat map H<" in text and "marks cells from 0.654 on" in text
    assert "Chosen on 20 good validation images: &lt;b&gt;by hand.\n10.0 % of them" in text
    assert "does not sort" not in text
    for section, sentence in (
        ("Results on the test images", "are by the most probable class; the decision uses the threshold."),
        ("Predicted classes, final", "The decision uses the threshold instead (P(defect) of at least"),
    ):
        assert sentence in text.partition(section)[2].partition("<h2>")[0]
    for title, decision in (("False alarms", "defective"), ("Missed defects", "good")):
        captions = re.findall(
            r"<figcaption><strong>.*true class: .*", text.partition(f"<h2>{title}")[2].partition("<h2>")[0]
        )
        said = f"Decision of final at its threshold: <strong>{decision}</strong>. Most probable class by primary: "
        assert captions and all(said in caption for caption in captions)
    assert "http" not in text.replace("http-equiv", "")
    assert EVIL not in text and "&lt;img src=x onerror" in text
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', text)
    assert sources and all(source.startswith("data:") for source in sources)


@pytest.mark.parametrize("width", [360, 1200])
def test_page_in_a_browser(page, width, tmp_path):
    path, report, test_predictions, labels = page
    point = report["validation"]["final"]["operating_point"]
    final = test_predictions["final"].probabilities
    with chromium(width, 900) as driver:
        # A headless window is at least 500 pixels wide.
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        driver.get(path.as_uri())
        count, shown = loaded_images(driver)
        assert count == shown > 30
        assert [line for line in driver.get_log("browser") if line["level"] in ("SEVERE", "WARNING")] == []
        wide, window = driver.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
        assert wide <= window == width  # only tables scroll sideways, in their own box
        cells = [int(one.text) for one in driver.find_elements("css selector", ".confusion .cell")]
        predicted = final.argmax(axis=1)
        assert cells == [int(((np.array(labels) == i) & (predicted == j)).sum()) for i in range(3) for j in range(3)]
        titles = [one.text for one in driver.find_elements("css selector", "h2")]
        assert {"Missed defects", "False alarms", "Found defects", "Hardest images", "Decision threshold"} <= set(
            titles
        )
        counts = driver.find_elements("css selector", ".decisions tbody td:not(:first-child)")
        decided = [int(one.text.split()[0]) for one in counts]
        called, defective = 1 - final[:, 0] >= point["threshold"], np.array(labels) > 0
        assert decided == [int((a & b).sum()) for a in (~defective, defective) for b in (~called, called)]
        groups = [one.text for one in driver.find_elements("css selector", ".groups tbody td:first-child")]
        assert sorted(groups) == ["lot <b>", "lot a"]
        first = driver.find_element("xpath", "//h2[.='False alarms']/following::figcaption[1]")
        assert EVIL in first.text and "true class: good" in first.text
        driver.save_screenshot(str(tmp_path / "page.png"))
        driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
        shown = "return [...document.querySelectorAll('details td')].map(cell => cell.checkVisibility())"
        assert set(driver.execute_script(shown)) == {True}  # folded sections are printed open
    assert np.asarray(Image.open(tmp_path / "page.png").convert("L")).std() > 10


def test_no_class_without_defects_no_decision(page, tmp_path, image_folder):
    """Labels alone: every class has its curve, and there are no misses."""
    loaded = read_defect_dataset(
        DataArguments(data_dir=str(image_folder), validation_share=0, defect_free_label="none")
    )
    test, generator = loaded.splits["test"], np.random.default_rng(0)
    test = test.cast_column("label", ClassLabel(names=["good", "a$_$ <b>"]))
    probabilities = generator.dirichlet([1, 1], len(test))
    maps = generator.random((2, len(test), 4, 4))
    test_predictions = dict.fromkeys(("primary", "final"), Predictions(probabilities, *maps))
    config = tiny_model(id2label={0: "good", 1: "a$_$ <b>"}, defect_free_label=None).config
    report = page[1] | {
        "results": {
            model: evaluate_predictions(of_model, test, None, (32, 32)) | {"seconds": 1}
            for model, of_model in test_predictions.items()
        },
        "differences": {}, "validation": {"primary": None, "final": None}, "issues": [],
    }  # fmt: skip
    write_report(
        tmp_path / "report.html", report, test, test_predictions, {"primary": [], "final": []},
        lambda rows: np.zeros((len(rows), 4, 4)), config, [""] * len(test),
    )  # fmt: skip
    text = (tmp_path / "report.html").read_text()
    assert "Missed defects" not in text and "No issues were found" in text
    assert "no class is known to be free of defects" in text
    assert "predicted a$_$ &lt;b&gt;" in text
    assert "the decision uses the threshold" not in text and "Decision of final at its threshold" not in text


def test_threshold_that_calls_all_good_images_defective_is_named(page, tmp_path, capsys):
    _, report, _, _ = page
    point = report["validation"]["final"]["operating_point"] | {
        "marks_all_good": True, "false_alarm_rate": 1.0,
    }  # fmt: skip
    print_results(report, tmp_path)
    assert "does not sort" not in capsys.readouterr().out
    validation = {"final": report["validation"]["final"] | {"operating_point": point}}
    print_results(report | {"validation": validation}, tmp_path)
    assert f"calls all {point['good']} good validation images defective" in capsys.readouterr().out


def test_worse_final_classifier_and_rough_threshold_are_named(page, tmp_path, capsys):
    _, report, test_predictions, labels = page
    point = report["validation"]["final"]["operating_point"] | {
        "defective": 6, "recall": 1.0, "false_alarm_rate": 0.5, "chosen": recall_rule(1.0),
    }  # fmt: skip
    calibration = report["validation"]["final"] | {"operating_point": point, "defect_ap": 0.6}
    worse = report | {
        "differences": {"defect_ap": {"difference": -0.1, "interval": [-0.2, -0.05]}},
        "validation": {"primary": calibration | {"defect_ap": 0.7}, "final": calibration},
        "settings": report["settings"] | {"model": {"fine_tune": False}},
    }
    (tmp_path / "gallery.json").write_bytes(page[0].with_name("gallery.json").read_bytes())
    rows = [("pit", 0.4)] + [("pit", 0.9)] * 5 + [("good", 0.5), ("good", 0.1)]
    lines = [f"{label},{score},{score}" for label, score in rows]
    (tmp_path / "validation.csv").write_text("\n".join(["label,primary_defect_score,final_defect_score", *lines]))
    config = tiny_model(id2label=dict(enumerate(NAMES)), operating_point=point).config
    probabilities = {model: one.probabilities for model, one in test_predictions.items()}
    render_report(tmp_path / "report.html", worse, np.array(labels), probabilities, {}, config, GROUPS)
    text = (tmp_path / "report.html").read_text()
    top = text[: text.index("Results on the test images")]
    print_results(worse, tmp_path)
    printed = capsys.readouterr().out
    for place, run in ((top, "RUN"), (printed, str(tmp_path))):
        assert "ranks the 60 test images worse than the primary one" in place
        assert "are of too few independent groups to tell (AP of final 0.600, of primary 0.700): keep final/" in place
        assert "rests on only 6 defective validation images" in place
        assert f"kgl threshold {run} --wanted_recall 0.83 --look_again_recall 1" in place
    assert printed.index("keep final/") < printed.index("Report:")
    assert "ranks the 60" not in page[0].read_text()


def test_head_without_a_threshold_says_how_one_is_got(page, tmp_path):
    _, report, test_predictions, labels = page
    (tmp_path / "gallery.json").write_bytes(page[0].with_name("gallery.json").read_bytes())
    config = tiny_model(id2label=dict(enumerate(NAMES))).config
    probabilities = {model: one.probabilities for model, one in test_predictions.items()}
    without = report | {"validation": {"primary": None, "final": None}}
    render_report(tmp_path / "report.html", without, np.array(labels), probabilities, {}, config, GROUPS)
    head = (tmp_path / "report.html").read_text().partition("Results on the test images</h2>")[0]
    assert "No threshold was chosen, so 0.5 is used: there are no validation images. Train again with" in head
    assert "test images, which were not used for training." in head and "nor for choosing" not in head
    assert "used neither for training nor for choosing the threshold." in page[0].read_text()


@pytest.mark.parametrize("width", [360, 1200])
def test_strips_and_any_script_in_a_browser(page, width, tmp_path):
    sizes = [(1600, 256), (400, 64), (256, 1600), (64, 400), (4000, 64), (300, 300)]
    generator = np.random.default_rng(0)
    names = ["good", "\u5212\u75d5"]  # a scratch
    test = defect_dataset(
        images=[encoded(generator.integers(0, 255, size[::-1], dtype=np.uint8)) for size in sizes],
        labels=[names[index % 2] for index in range(6)], names=names, masks=[None] * 6,
        file_names=[f"{across} x {down}.png" for across, down in sizes],
    )  # fmt: skip
    probabilities, maps = generator.dirichlet([1, 1], 6), generator.random((2, 6, 4, 4))
    both = dict.fromkeys(("primary", "final"), Predictions(probabilities, *maps))
    config = tiny_model(id2label=dict(enumerate(names)), defect_free_label=None).config
    metrics = evaluate_predictions(both["final"], test, None, (32, 32)) | {"seconds": 1}
    report = page[1] | {
        "results": dict.fromkeys(both, metrics), "differences": {}, "validation": {"primary": None, "final": None},
    }  # fmt: skip
    path = tmp_path / "report.html"
    write_report(
        path, report, test, both, {"primary": [], "final": []}, lambda rows: np.zeros((len(rows), 4, 4)), config,
        [""] * len(test),
    )  # fmt: skip
    (chart,) = re.findall(r'<img src="data:image/svg\+xml;base64,([^"]+)"', path.read_text())
    assert f"{names[1]} (AP" in base64.b64decode(chart).decode()  # text, which the reader's fonts show
    with chromium(width, 900) as driver:
        window = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)
        driver.get(path.as_uri())
        count, shown = loaded_images(driver)
        recognised = int((probabilities.argmax(axis=1) == np.arange(6) % 2).sum())
        assert count == shown == 1 + (6 + recognised) * 5 + 6
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        images = (
            "return [...document.querySelectorAll('.gallery img')].map(i => [i.alt, i.clientWidth, i.clientHeight])"
        )
        for alt, across, down in driver.execute_script(images):
            assert min(across, down) >= (30 if "4000 x" in alt else 42), alt
            assert max(across, down) >= (250 if "300 x 300" not in alt else 75), alt
        driver.set_window_size(width, 3000)
        driver.save_screenshot(str(tmp_path / "page.png"))


@pytest.mark.parametrize(("width", "least"), [(360, 160), (1200, 165)])
def test_tiles_are_large_enough_to_read(page, width, least):
    with chromium(width, 900) as driver:
        window = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)
        driver.get(page[0].as_uri())
        sizes = "return [...document.querySelectorAll('.tiles img')].map(i => [i.clientWidth, i.naturalWidth])"
        for across, stored in driver.execute_script(sizes):
            assert across >= least and stored == 320


def test_losses_of_a_fine_tuned_stage_are_drawn():
    chart = loss_chart({"tuned": [{"step": 1, "loss": 0.7}, {"step": 2, "loss": 0.4}, {"step": 2, "train_loss": 0.5}]})
    svg = base64.b64decode(chart.src.partition(",")[2]).decode()
    assert "fine-tuned stage: loss" in svg and "primary" not in svg


def test_comparison_table_has_one_row_per_metric():
    results = {"primary": {"ap": 0.5, "seconds": 10.4}, "final": {"ap": 0.625, "seconds": 21.0, "map_ap": 0.25}}
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in comparison_table(results).splitlines()]
    assert rows[0] == ["", "primary", "final"] and set(rows[1][0]) == {"-"}
    assert rows[2:] == [
        ["AP", "0.500", "0.625"], ["Class map, pixel AP", "", "0.250"], ["Training time in seconds", "10", "21"],
    ]  # fmt: skip
