"""`kgl threshold` on a real tiny run: every file that has the operating point, and refusals."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny import make_images, save_backbone

from kgl.cli.main import main
from kgl.configuration_kgl import KGLConfig
from kgl.evaluation.calibration import choose_operating_point
from kgl.evaluation.curve_report import add_to_report
from kgl.evaluation.metrics import wilson_interval
from kgl.hub.push import files_to_push
from kgl.labelling.curve import summarize_curve


BAND = ["--wanted_recall", "0.5", "--look_again_recall", "1"]
TEXT_FILES = ("predictions.csv", "validation.csv", "state.json", "run.json", "primary/config.json",
              "final/config.json", "final/README.md")  # fmt: skip


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> tuple[list[str], Path]:
    """The command of a finished run, and its folder."""
    folder = tmp_path_factory.mktemp("threshold")
    images = make_images(folder / "images", 36, 24, faint=True)
    command = [
        "train", str(images), "--backbone", str(save_backbone(folder / "backbone")), "--image_height", "48",
        "--image_width", "48", "--validation_share", "0.4", "--use_cpu", "true", "--output_dir", str(folder / "run"),
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("kgl.evaluation.results.BOOTSTRAP_DRAWS", 10)
        main(command)
    return command, folder / "run"


@pytest.fixture
def run(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained[1], tmp_path / "run"))


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def read_json(path: Path) -> dict:
    return json.loads(path.read_text())


def report_without_charts(run: Path) -> str:
    """The text of the report and its photographs; charts have random ids."""
    return re.sub(r"data:image/svg\+xml;base64,[A-Za-z0-9+/=]+", "", (run / "report.html").read_text())


def test_validation_scores_are_those_that_chose_the_threshold(run):
    rows = read_rows(run / "validation.csv")
    assert list(rows[0]) == ["file_name", "label", "group", "primary_defect_score", "final_defect_score"]
    defective = np.array([row["label"] == "scratch" for row in rows])
    assert len(rows) == read_json(run / "metrics.json")["images"]["validation"]
    for model in ("primary", "final"):
        scores = np.array([float(row[f"{model}_defect_score"]) for row in rows])
        point = choose_operating_point(scores, defective)
        assert KGLConfig.from_pretrained(run / model).operating_point == point  # exactly
    assert "defect_scores" not in (run / "metrics.json").read_text()


def expected_rates(run: Path, model: str, threshold: float) -> dict[str, float | list[float]]:
    """Rates on the test images at a threshold, from the table of predictions."""
    rows = read_rows(run / "predictions.csv")
    called = np.array([float(row[f"{model}_defect_score"]) >= threshold for row in rows])
    defective = np.array([row["label"] == "scratch" for row in rows])
    found, alarms = called[defective], called[~defective]
    return {
        "recall": found.mean(), "recall_interval": wilson_interval(found),
        "false_alarm_rate": alarms.mean(), "false_alarm_rate_interval": wilson_interval(alarms),
    }  # fmt: skip


def test_every_file_has_the_new_point(run, capsys):
    before = {name: (run / name).read_bytes() for name in TEXT_FILES}
    metrics = read_json(run / "metrics.json")
    main(["threshold", str(run), *BAND])
    after = read_json(run / "metrics.json")
    state, printed = read_json(run / "state.json")["steps"], capsys.readouterr().out
    for model in ("primary", "final"):
        config = read_json(run / model / "config.json")
        point = config["operating_point"]
        assert 0 < point["look_again_threshold"] < point["threshold"] < 1
        assert config | {"operating_point": None} == json.loads(before[f"{model}/config.json"]) | {
            "operating_point": None
        }
        assert after["validation"][model] == metrics["validation"][model] | {"operating_point": point}
        assert state[model]["validation"]["operating_point"] == point
        results = after["results"][model]
        for suffix, threshold in (
            ("at_operating_point", point["threshold"]), ("with_look_again", point["look_again_threshold"]),
        ):  # fmt: skip
            for name, value in expected_rates(run, model, threshold).items():
                rate, _, interval = name.partition("_interval")
                key = f"{rate}_{suffix}{'_interval' if name.endswith('_interval') else interval}"
                assert results[key] == pytest.approx(value)
        unchanged = {name: value for name, value in metrics["results"][model].items() if "operating" not in name}
        assert unchanged.items() <= results.items()
        for row in read_rows(run / "predictions.csv"):
            score = float(row[f"{model}_defect_score"])
            assert row[f"{model}_defective"] == str(score >= point["threshold"])
            lower = "look again" if score >= point["look_again_threshold"] else "good"
            assert row[f"{model}_decision"] == ("defective" if score >= point["threshold"] else lower)
    assert after["settings"]["operating"] | {"heat_false_alarms": None} == {
        "wanted_recall": 0.5, "miss_cost": None, "look_again_recall": 1.0, "heat_false_alarms": None,
    }  # fmt: skip
    page, card = (run / "report.html").read_text(), (run / "final" / "README.md").read_text()
    for text, form in ((page, "%.3g"), (card, "%.4f")):
        assert form % point["threshold"] in text and form % point["look_again_threshold"] in text
    assert "<th>look again</th>" in page and "the answer is *look again*" in card
    for name in ("validation.csv", "run.json"):
        assert (run / name).read_bytes() == before[name]
    table = [[cell.strip() for cell in line.split("|")[1:-1]] for line in printed.splitlines() if "|" in line]
    assert [row[0] for row in table if row[1] == "-"] == [
        "look again from", *(f"{split}: {what}" for what in
        ("defects found or looked at again", "good images not passed")
        for split in ("validation", "test")),
    ]  # fmt: skip
    old, new = (one["validation"]["final"]["operating_point"]["threshold"] for one in (metrics, after))
    assert table[2] == ["threshold on P(defect)", f"{old:.4g}", f"{new:.4g}"]
    assert "Files exported elsewhere" in printed
    assert not list(run.rglob("*.unfinished"))


def test_report_keeps_its_sections_at_another_threshold(run):
    """Expectation and galleries follow the threshold; the curve and the groups stay."""
    table = pd.read_csv(run / "predictions.csv", dtype=str)
    table["group"] = [f"lot {index % 2}" for index in range(len(table))]
    table.to_csv(run / "predictions.csv", index=False, lineterminator="\n")
    metrics = dict.fromkeys(("ap", "recall_at_false_alarm_rate", "false_alarm_rate_at_zero_missed"), 0.5)
    fits = pd.DataFrame({"repetition": [0, 0, 1, 1], "per_class": [2, 4, 2, 4], "good": 8, "images": 9} | metrics)
    add_to_report(summarize_curve(fits, "scratch", "final", 3), run)
    pages = []
    for settings in ([], BAND):
        main(["threshold", str(run), *settings])
        pages.append(report_without_charts(run))
        decisions = [row["final_decision"] for row in read_rows(run / "predictions.csv") if row["label"] == "scratch"]
        missed, again = decisions.count("good"), decisions.count("look again")
        (sentence,) = re.findall(r"Of 100 defective parts, .*", pages[-1])
        counted = [missed, again] if settings else [missed]
        assert re.findall(rf"; (\d+) of {len(decisions)} test images", sentence) == [*map(str, counted)]
        assert pages[-1].count("How many labels are needed") == 1
        assert pages[-1].count("<h2>Training images</h2>") == 1
        groups = re.findall(r"<tr><td>(lot \d)</td><td>(\d+)</td>", pages[-1])
        assert dict(groups) == {f"lot {rest}": str(len(table[rest::2])) for rest in (0, 1)}
        assert [row["group"] for row in read_rows(run / "predictions.csv")] == table["group"].to_list()
        counts = read_json(run / "metrics.json")["results"]["final"]["decisions_at_operating_point"]["defective"]
        assert counts["called_good"] == missed and counts.get("look_again", 0) == again
    assert pages[0].count('data-kind="look again"') == 0 < pages[1].count('data-kind="look again"')


def test_report_of_a_run_that_did_not_measure_its_training_images(run):
    (run / "training_images.json").unlink()
    main(["threshold", str(run), *BAND])
    assert "<h2>Training images</h2>" not in (run / "report.html").read_text()


def test_first_rule_gives_the_first_files_again(trained, run, capsys):
    """There and back: report, galleries and all are those that training wrote."""
    before = {name: (run / name).read_bytes() for name in TEXT_FILES}
    metrics, page = read_json(run / "metrics.json"), report_without_charts(run)
    main(["threshold", str(run), *BAND])
    assert {name for name in TEXT_FILES if (run / name).read_bytes() == before[name]} == {"validation.csv", "run.json"}
    assert report_without_charts(run) != page
    main(["threshold", str(run)])
    assert {name: (run / name).read_bytes() for name in TEXT_FILES} == before
    assert read_json(run / "metrics.json") == metrics and report_without_charts(run) == page
    assert all(
        (run / name).read_bytes() == (trained[1] / name).read_bytes() for name in ("gallery.json", "priors.json")
    )


def test_training_again_keeps_the_point(trained, capsys, monkeypatch):
    command, out = trained
    kept = Path(shutil.copytree(out, out.with_name("kept")))
    main(["threshold", str(out), "--miss_cost", "0.5"])
    point = KGLConfig.from_pretrained(out / "final").operating_point
    assert "costing 0.5 false alarms" in point["chosen"]
    files = {name: (out / name).read_bytes() for name in (*TEXT_FILES, "metrics.json")}
    capsys.readouterr()
    main(command)
    assert "finished before" in capsys.readouterr().out
    assert {name: (out / name).read_bytes() for name in files} == files
    (out / "metrics.json").unlink()  # evaluated again, with the new point and without training
    monkeypatch.setattr("kgl.evaluation.results.BOOTSTRAP_DRAWS", 10)
    main(command)
    again = read_json(out / "metrics.json")
    assert again["validation"]["final"]["operating_point"] == point
    assert KGLConfig.from_pretrained(out / "final").operating_point == point
    shutil.rmtree(out)
    kept.rename(out)


def test_what_is_pushed_has_the_new_point(run):
    main(["threshold", str(run), *BAND])
    point = KGLConfig.from_pretrained(run / "final").operating_point
    files = files_to_push(run)
    assert read_json(files["config.json"])["operating_point"] == point
    assert read_json(files["metrics.json"])["validation"]["final"]["operating_point"] == point
    assert "validation.csv" not in files and "gallery.json" not in files


def test_graphs_in_the_run_have_the_new_point(run, capsys):
    onnx = pytest.importorskip("onnx", reason="needs the extra [export]")
    main(["export", str(run / "final")])
    graph = onnx.load(run / "final" / "model.onnx")
    onnx.helper.set_model_props(graph, {"labels": "[]"})
    onnx.save(graph, run / "final" / "other.onnx")
    kept = (run / "final" / "other.onnx").read_bytes()
    main(["threshold", str(run), *BAND])
    printed = capsys.readouterr().out
    point = read_json(run / "final" / "config.json")["operating_point"]
    entries = {one.key: one.value for one in onnx.load(run / "final" / "model.onnx").metadata_props}
    assert json.loads(entries["operating_point"]) == point
    assert float(entries["threshold"]) == point["threshold"]
    assert f"{run / 'final' / 'model.onnx'} has the new threshold." in printed
    assert f"{run / 'final' / 'other.onnx'} is no export of this run" in printed
    assert (run / "final" / "other.onnx").read_bytes() == kept


def refused(capsys, *arguments: object) -> str:
    capsys.readouterr()
    with pytest.raises(SystemExit, match="2"):
        main(["threshold", *map(str, arguments)])
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--wanted_recall", "1.5"], "--wanted_recall 1.5: it must lie above 0 and up to 1"),
        (["--wanted_recall", "1", "--miss_cost", "20"], "--wanted_recall and --miss_cost each choose the threshold"),
        (["--miss_cost", "nan"], "--miss_cost nan: it must be a number above 0"),
        (["--look_again_recall", "1.01"], "--look_again_recall 1.01: it must lie above 0 and up to 1"),
        (["--look_again_recall", "1"], "--look_again_recall 1.0: it must lie above --wanted_recall, which is 1.0"),
        (["another"], "Give one run's folder, not runs/nonesuch and another"),
        ([], "runs/nonesuch: there is no such folder; give the --output_dir of a run"),
    ],
)
def test_bad_settings_are_one_sentence(arguments, sentence, capsys):
    assert f"kgl threshold: error: {sentence}" in refused(capsys, "runs/nonesuch", *arguments)


def test_folders_that_are_no_finished_run_are_refused_and_left_alone(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert "no run of kgl train, run.json is missing; give the --output_dir of one" in refused(
        capsys, tmp_path / "empty"
    )
    assert list((tmp_path / "empty").iterdir()) == []
    assert f"give the folder of the run, {run}" in refused(capsys, run / "final")
    files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    for name, sentence in (
        ("gallery.json", "gallery.json is missing, which runs of earlier versions do not have; train it again"),
        ("validation.csv", "validation.csv is missing, which runs of earlier versions do not have; train it again"),
        ("metrics.json", "no finished run of kgl train, metrics.json is missing; give its kgl train command"),
    ):
        content = json.loads((run / "gallery.json").read_text()) if name == "gallery.json" else None
        if content:
            (run / name).write_text(json.dumps(content["cases"]))
            assert "thumbnails in gallery.json is missing, which runs of earlier versions" in refused(capsys, run)
        (run / name).unlink()
        assert sentence in refused(capsys, run)
        files.pop(run / name)
    state = read_json(run / "state.json")
    state["steps"].pop("report")
    (run / "metrics.json").write_text("{}")
    (run / "state.json").write_text(json.dumps(state))
    assert "no finished run of kgl train, its report is missing" in refused(capsys, run)
    for path in (run / "metrics.json", run / "state.json"):
        files.pop(path, None)
    assert all(path.read_bytes() == content for path, content in files.items())


def test_runs_without_two_kinds_of_validation_images_are_refused(run, capsys):
    metrics, rows = read_json(run / "metrics.json"), (run / "validation.csv").read_text()
    (run / "validation.csv").write_text(rows.replace(",good,", ",scratch,"))
    assert "all its validation images are defective, and a threshold needs both kinds" in refused(capsys, run)
    metrics["validation"] = {"primary": None, "final": None}
    (run / "metrics.json").write_text(json.dumps(metrics))
    said = refused(capsys, run)
    assert "--output_dir, with --validation_share above 0 and two independent images of each class" in said
    for model in ("primary", "final"):
        config = read_json(run / model / "config.json") | {"defect_free_label": None, "operating_point": None}
        (run / model / "config.json").write_text(json.dumps(config))
    said = refused(capsys, run)
    assert "none of its classes is named as free of defects" in said
    assert "train again with --defect_free_label and another --output_dir" in said


def test_runs_of_another_version_are_refused_and_left_alone(run, capsys):
    def edit(name: str, change: Callable[[dict], object]) -> str:
        content, before = read_json(run / name), (run / name).read_text()
        change(content)
        (run / name).write_text(json.dumps(content))
        files = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        said = refused(capsys, run, "--wanted_recall", "0.9")
        assert all(path.read_bytes() == stored for path, stored in files.items())
        (run / name).write_text(before)
        return said

    assert "made by another version of kgl; train again" in edit("run.json", lambda one: one["model"].update(new=1))
    for change in ({"head": "new"}, {"operating_point": {"limits": [0.2, 0.4]}}):
        said = edit("primary/config.json", lambda one, change=change: one.update(change))
        assert "primary/config.json was changed, or written by another version of kgl; train again" in said
        assert said.count("\n") == 1
    assert "metrics.json was changed, or written by another" in edit("metrics.json", lambda one: one.pop("results"))
    (run / "metrics.json").write_text("{")
    assert "metrics.json is damaged" in refused(capsys, run)


def test_train_takes_the_band_too(trained, tmp_path, capsys, few_draws):
    command = [*trained[0][:-1], str(tmp_path / "run")]
    main([*command, *BAND])
    printed = capsys.readouterr().out
    point = KGLConfig.from_pretrained(tmp_path / "run" / "final").operating_point
    assert point["look_again_threshold"] < point["threshold"] and point["look_again_recall"] == 1
    assert "With the images to look at again it finds " in printed
    main(["threshold", str(trained[1]), *BAND])
    assert KGLConfig.from_pretrained(trained[1] / "final").operating_point == point
    main(["threshold", str(trained[1])])
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--look_again_recall", "0.9"])
    assert "--look_again_recall 0.9: it must lie above --wanted_recall" in capsys.readouterr().err
