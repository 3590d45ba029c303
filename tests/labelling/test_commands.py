"""`kgl curve`, `kgl next` and `kgl audit` on generated surfaces, and what they refuse."""

import json
import re
import shutil
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from tiny import save_backbone

import kgl.labelling.curve
from kgl.cli.main import check_arguments, main
from kgl.cli.train import parse
from kgl.data.synthetic import generate_surface
from kgl.errors import InputError
from kgl.labelling.labelled_images import read_labelled_images
from kgl.labelling.next_images import find_smaller_distance
from kgl.labelling.runs import read_run
from kgl.train import run


CLASSES = ("good", "scratch", "pit", "stain")


def save_surfaces(folder, counts, seed):
    """Save surfaces, one folder per class."""
    for label, count in counts.items():
        (folder / label).mkdir(parents=True)
        for index in range(count):
            Image.fromarray(generate_surface(label, 64, seed + index).image).save(folder / label / f"{index}.png")
    return folder


@pytest.fixture(scope="module")
def surfaces(tmp_path_factory):
    """A folder with images of four classes, a tiny backbone, and a finished run on them."""
    folder = tmp_path_factory.mktemp("labelling")
    save_surfaces(folder / "images", {"good": 20, "scratch": 13, "pit": 13, "stain": 13}, 0)
    save_backbone(folder / "backbone")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("kgl.evaluation.results.BOOTSTRAP_DRAWS", 10)
        settings = ["--backbone", str(folder / "backbone"), "--image_height", "64", "--image_width", "64"]
        run(parse([str(folder / "images"), *settings, "--use_cpu", "true", "--output_dir", str(folder / "run")]))
    return folder


@pytest.fixture
def copied_run(surfaces, tmp_path):
    """A copy of the run's folder without its models."""
    copy = tmp_path / "run"
    copy.mkdir()
    for name in ("run.json", "state.json", "metrics.json"):
        shutil.copy(surfaces / "run" / name, copy)
    return copy


def set_model(run_folder, **settings):
    """Change settings of the model in a run's `run.json`."""
    stored = json.loads((run_folder / "run.json").read_text())
    stored["model"] |= settings
    (run_folder / "run.json").write_text(json.dumps(stored))


def refused(capsys, *arguments):
    """Return the sentence that a command ends with."""
    with pytest.raises(SystemExit) as stopped:
        main([str(one) for one in arguments])
    assert stopped.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    return said


def test_curve_of_a_run(surfaces, capsys, monkeypatch):
    command = ["curve", str(surfaces / "run"), "--repetitions", "3"]
    fit, calls = kgl.labelling.curve.fit_and_predict, []

    def stopped(*arguments):
        calls.append(arguments)
        if len(calls) == 5:
            raise KeyboardInterrupt
        return fit(*arguments)

    with monkeypatch.context() as patched:  # stopped in the middle, and resumed
        patched.setattr("kgl.labelling.curve.fit_and_predict", stopped)
        with pytest.raises(SystemExit):
            main(command)
    output = surfaces / "run_curve"
    assert len((output / "fits.jsonl").read_text().splitlines()) == 4 and (output / "cache").exists()
    with (output / "fits.jsonl").open("a") as file:
        file.write('{"repetition": 1, "per')  # killed while writing
    main(command)
    said = capsys.readouterr().out
    assert "From 8 to 16 images per class expect" in said and "AP" in said
    table = pd.read_csv(output / "curve.csv")
    assert table["per_class"].tolist() == [2, 4, 8] and table["good"].tolist() == [8, 13, 13]
    assert {"ap", "ap_low", "recall_at_false_alarm_rate", "false_alarm_rate_at_zero_missed_high"} <= set(table)
    assert table["ap"].between(0.2, 1).all() and Image.open(output / "curve.png").width > 600
    report = (surfaces / "run" / "report.html").read_text(encoding="utf-8")
    assert report.count("<h2>How many labels are needed</h2>") == 1 and "https://" not in report
    assert not (output / "cache").exists()
    monkeypatch.setattr("kgl.labelling.curve.compute_features", lambda *_: pytest.fail("computed again"))
    main(command)
    _, fits, rest = said.split("\n", 2)
    assert fits == "5 of 9 fits to do: 3 budgets of labels, 3 splits each." and capsys.readouterr().out == rest


def test_budgets_are_nested_and_leave_the_test_groups_out(copied_run, tmp_path, monkeypatch):
    fits = []
    monkeypatch.setattr(
        "kgl.labelling.curve.fit_and_predict",
        lambda *arguments: fits.append(arguments[4:6]) or np.full((len(arguments[5]), 4), 0.25),
    )
    assert read_labelled_images(copied_run, None).left_out is None
    set_model(copied_run, fine_tune=True)
    labelled = read_labelled_images(copied_run, None)
    (tmp_path / "cache").mkdir()
    kgl.labelling.curve.run_curve(labelled, tmp_path, 4, "regression")
    assert json.loads((copied_run / "curve.json").read_text())["left_out"] == "fine-tuned stage"
    assert len(fits) == 4 * 3
    for first, second in pairwise(fits):
        if len(first[0]) < len(second[0]):
            assert set(first[0]) < set(second[0]) and first[1].tolist() == second[1].tolist()
    assert all(not set(train) & set(test) for train, test in fits)
    held_out = [set(test) for _, test in fits[::3]]
    assert set.union(*held_out[:3]) == set(range(59))  # each fold in turn
    assert held_out[3] != held_out[0]  # of another shuffle


def test_next_images(surfaces, tmp_path, capsys):
    folder = tmp_path / "new"
    save_surfaces(folder, {"good": 8, "pit": 6}, 500)
    shutil.copy(folder / "pit" / "0.png", folder / "again.png")
    known = Image.open(surfaces / "images" / "scratch" / "3.png")
    known.resize((70, 70)).save(folder / "known.png")
    (folder / "broken.png").write_bytes(b"no image")
    output = tmp_path / "chosen"
    main(["next", str(surfaces / "run"), str(folder), "--count", "6", "--output", str(output)])
    said = capsys.readouterr()
    assert "14 images to choose among; left out: 1 near-duplicates of labelled images and 1 of each other" in said.out
    assert "of each other (within 16 of 256 bits)." in said.out  # as many as asked for
    assert "  and 1 more in next.csv\n6 images to label next: " in said.out
    assert "add them to the training images, and train again with another --output_dir" in said.out
    assert "1 unusable image left out:\n  broken.png: not an image" in said.err
    assert pd.read_csv(output / "unusable.csv")["file_name"].tolist() == ["broken.png"]
    table = pd.read_csv(output / "next.csv")
    assert table["rank"].tolist() == [1, 2, 3, 4, 5, 6] and table["file"].is_unique
    assert not set(table["file"]) & {"known.png", "broken.png"}
    assert len(set(table["file"]) & {"again.png", "pit/0.png"}) <= 1
    assert table["uncertainty"].ge(0).all() and table["why"].str.contains("more unusual than").all()
    assert Image.open(output / "next.png").width > 600


def test_next_by_uncertainty_is_sorted_by_it(surfaces, tmp_path):
    folder = save_surfaces(tmp_path / "new", {"good": 5, "pit": 5}, 900)
    main(["next", str(surfaces / "run"), str(folder), "--by", "uncertainty", "--output", str(tmp_path / "out")])
    table = pd.read_csv(tmp_path / "out" / "next.csv")
    assert len(table) == 10 and table["uncertainty"].is_monotonic_decreasing


def test_next_without_a_threshold_says_so(surfaces, tmp_path):
    copied, folder = tmp_path / "run", save_surfaces(tmp_path / "new", {"good": 2}, 800)
    shutil.copytree(surfaces / "run", copied)
    for chosen in (True, False):
        if not chosen:
            config = json.loads((copied / "final" / "config.json").read_text())
            (copied / "final" / "config.json").write_text(json.dumps(config | {"operating_point": None}))
        main(["next", str(copied), str(folder), "--output", str(tmp_path / f"out{chosen}")])
        reasons = pd.read_csv(tmp_path / f"out{chosen}" / "next.csv")["why"]
        assert reasons.str.contains("no threshold was chosen").all() == (not chosen)
        assert reasons.str.contains(", threshold 0.", regex=False).all() == chosen


def test_next_with_another_count_is_refused_before_images_are_read(surfaces, tmp_path, capsys, monkeypatch):
    folder, output = save_surfaces(tmp_path / "new", {"good": 3}, 700), tmp_path / "out"
    main(["next", str(surfaces / "run"), str(folder), "--count", "2", "--output", str(output)])
    assert "--duplicate_distance" not in capsys.readouterr().out  # nothing was left out
    monkeypatch.setattr("kgl.labelling.next_images.inspect_images", lambda *_: pytest.fail("images were read"))
    said = refused(capsys, "next", surfaces / "run", folder, "--count", "3", "--output", output)
    assert f"--output {output} holds a run with other settings: count is 2 there and 3 here. Give another" in said
    said = refused(capsys, "next", surfaces / "run", folder, "--output", surfaces / "images")
    assert "the folder holds other files" in said


def test_next_images_for_a_run_from_scratch(finished_run, tmp_path):
    save_surfaces(tmp_path / "new", {"good": 3, "pit": 4}, 40)
    output = str(tmp_path / "out")
    main(["next", str(finished_run[1]), str(tmp_path / "new"), "--count", "3", "--output", output])
    assert len(pd.read_csv(tmp_path / "out" / "next.csv")) == 3


def test_audit_finds_a_flipped_label(surfaces, tmp_path, capsys):
    images = tmp_path / "images"
    shutil.copytree(surfaces / "images", images)
    shutil.copy(images / "scratch" / "1.png", images / "good" / "flipped.png")
    Image.open(images / "pit" / "2.png").resize((72, 72)).save(images / "stain" / "resized.png")
    output = tmp_path / "audit"
    main(["audit", str(images), "--backbone", str(surfaces / "backbone"), "--output", str(output)])
    assert "in doubt" in capsys.readouterr().out
    table = pd.read_csv(output / "audit.csv")
    first = table.iloc[:2].set_index("file")
    assert set(first.index) == {"good/flipped.png", "scratch/1.png"} and (first["trust"] == 0).all()
    assert first.loc["good/flipped.png", "suggested_label"] == "scratch"
    assert "near-duplicates are" in table.set_index("file").loc["stain/resized.png", "reason"]
    assert table["trust"].is_monotonic_increasing
    page = (output / "audit.html").read_text(encoding="utf-8")
    shown = min(len(table), 60)
    assert page.count('<section class="case">') == shown and page.count("data:image/jpeg") == 5 * shown
    assert "http" not in page and str(tmp_path) not in page and not (output / "cache").exists()


def test_audit_of_a_run_says_how_to_go_on(surfaces, tmp_path, capsys):
    main(["audit", str(surfaces / "run"), "--output", str(tmp_path / "audit")])
    assert len(pd.read_csv(tmp_path / "audit" / "audit.csv")) > 0
    assert "Correct what is wrong and train again with another --output_dir" in capsys.readouterr().out


def test_output_of_another_command_or_user_is_refused(surfaces, tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("keep")
    said = refused(capsys, "curve", surfaces / "run", "--output", tmp_path / "mine")
    assert "the folder holds other files" in said and [*(tmp_path / "mine").iterdir()] == [tmp_path / "mine/notes.txt"]
    said = refused(capsys, "audit", surfaces / "run", "--output", surfaces / "run")
    assert "holds the files of another command" in said


def test_runs_that_cannot_be_used(surfaces, copied_run, tmp_path, capsys):
    new = save_surfaces(tmp_path / "new", {"good": 1}, 0)
    assert "there is no such folder" in refused(capsys, "next", tmp_path / "missing", new)
    said = refused(capsys, "next", new, new)
    assert "this is no run of kgl train, run.json is missing; give the --output_dir of one" in said
    said = refused(capsys, "next", new, copied_run)
    assert f"{copied_run} is a run and {new} is none; give the run first: `kgl next {copied_run} {new}`." in said
    final = surfaces / "run" / "final"
    for command in (["next", final, new], ["curve", final], ["audit", final]):
        said = refused(capsys, *command)
        assert f"this is one classifier of a run; give the folder of the run, {surfaces / 'run'}." in said
    (copied_run / "metrics.json").unlink()
    for command in (["curve"], ["audit"]):
        assert "metrics.json is missing; give its kgl train command again" in refused(capsys, *command, copied_run)
    assert "metrics.json is missing; give its kgl train command again" in refused(capsys, "next", copied_run, new)


def test_run_of_another_version(copied_run, capsys):
    stored = json.loads((copied_run / "run.json").read_text())
    stored["model"]["pooling"] = "attention"
    (copied_run / "run.json").write_text(json.dumps(stored))
    assert "another version of kgl" in refused(capsys, "audit", copied_run)
    (copied_run / "run.json").write_text(json.dumps({"predictions": {}}))
    assert "another command than kgl train" in refused(capsys, "audit", copied_run)


def test_run_whose_images_changed(surfaces, copied_run, tmp_path, capsys):
    images = shutil.copytree(surfaces / "images", tmp_path / "images")
    stored = json.loads((copied_run / "run.json").read_text())
    stored["data"]["data_dir"] = str(images)
    (copied_run / "run.json").write_text(json.dumps(stored))
    assert read_labelled_images(copied_run, None).labels.shape == (59,)
    (images / "pit" / "0.png").rename(images / "stain" / "moved.png")
    said = refused(capsys, "curve", copied_run)
    assert "images or labels have changed since the run" in said and "train again into another --output_dir" in said
    shutil.rmtree(images)
    assert "cannot be read again" in refused(capsys, "curve", copied_run)


def test_run_from_scratch_needs_a_backbone(surfaces, copied_run, capsys):
    model = {"backbone": None, "backbone_config": "{}", "head": "avg_max", "fine_tune": True, "out_features": None}
    set_model(copied_run, **model)
    assert read_run(copied_run).model_args.backbone is None
    for command in ("curve", "audit"):
        assert "name a pretrained backbone with --backbone" in refused(capsys, command, copied_run)
    labelled = read_labelled_images(copied_run, None, str(surfaces / "backbone"))
    assert labelled.model_args.head == "stages" and labelled.model_args.size == (64, 64)
    assert labelled.left_out == "trained backbone"


def test_folders_without_anything_to_label(surfaces, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    run_folder = surfaces / "run"
    assert "there is no image in it" in refused(capsys, "next", run_folder, tmp_path / "empty")
    assert "there is no such folder of unlabelled" in refused(capsys, "next", run_folder, tmp_path / "missing")
    assert "was trained on; give one of unlabelled images" in refused(capsys, "next", run_folder, surfaces / "images")
    said = refused(capsys, "next", run_folder, surfaces / "images" / "pit")
    assert "nothing to label in it: of 13 images, 0 are unusable and 13 near-duplicates" in said


def test_images_that_are_too_few(surfaces, tmp_path, capsys):
    backbone = ["--backbone", surfaces / "backbone"]
    one = save_surfaces(tmp_path / "one", {"good": 5}, 0)
    assert "only one class" in refused(capsys, "curve", one, *backbone)
    few = save_surfaces(tmp_path / "few", {"good": 6, "pit": 2}, 0)
    assert "too few independent images of pit (2)" in refused(capsys, "curve", few, *backbone)
    said = refused(capsys, "curve", few, *backbone, "--num_folds", "2", "--output", tmp_path / "out")
    assert "Too few images of pit: the smallest budget takes 2" in said


def test_settings_of_images_beside_a_run_are_refused(surfaces, capsys):
    assert "Settings of images go with IMAGES" in refused(capsys, "curve", surfaces / "run", "--num_folds", "4")
    assert "--image_height goes with IMAGES" in refused(capsys, "audit", surfaces / "run", "--image_height", "64")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["curve", "images", "--repetitions", "1"], "--repetitions 1: it must be at least 2"),
        (["audit", "images", "--shown", "0"], "--shown 0: it must be at least 1"),
        (["next", "run", "new", "--count", "0"], "--count 0: it must be at least 1"),
        (["next", "run", "new", "--by", "luck"], "--by: invalid choice: 'luck'"),
        (["next", "run"], "UNLABELED_DIR must be given"),
        (["next", "run", "new", "old"], "Give one run and one folder"),
        (["curve"], "RUN|IMAGES must be given"),
    ],
)
def test_arguments_that_cannot_be_used(arguments, message):
    with pytest.raises(InputError) as refusal:
        check_arguments(arguments)
    assert message in str(refusal.value)


def test_default_output_stands_beside_the_run(surfaces):
    labelled = read_labelled_images(surfaces / "run", None)
    assert labelled.output_dir("audit") == surfaces / "run_audit"
    assert Path(check_arguments(["curve", "images"])[2].data_dir) == Path("images")


def test_missing_images_are_named_before_the_backbone_is_looked_for(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for command in ("curve", "audit"):
        with pytest.raises(SystemExit, match="2"):
            main([command, str(tmp_path / "nothere")])
        assert "there is no such folder" in capsys.readouterr().err


def test_folders_that_are_neither_run_nor_images(surfaces, copied_run, tmp_path, capsys):
    runs = tmp_path / "runs"
    shutil.copytree(copied_run, runs / "few")
    (runs / "few_audit").mkdir()
    (runs / "few_audit" / "run.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    wanted = "give the folder of a finished run, or images as for kgl train"
    for command in ("curve", "audit"):
        assert f"{runs} holds runs of kgl; give one of them, such as {runs / 'few'}." in refused(capsys, command, runs)
        assert f"no run and no image in it; {wanted}." in refused(capsys, command, tmp_path / "empty")
        assert f"no such folder; {wanted}." in refused(capsys, command, runs / "nope")
    assert f"give one of them, such as {runs / 'few'}." in refused(capsys, "next", runs, surfaces / "images")


def test_next_with_too_few_images_names_a_distance_that_keeps_more(surfaces, tmp_path, capsys):
    folder = save_surfaces(tmp_path / "new", {"good": 2, "pit": 2}, 600)
    for index in range(2):
        image = Image.open(folder / "pit" / f"{index}.png")
        image.rotate(2).save(folder / "pit" / f"rotated{index}.png")
    command = ["next", str(surfaces / "run"), str(folder), "--count", "6", "--output"]
    main([*command, str(tmp_path / "few"), "--duplicate_distance", "100"])
    said = capsys.readouterr().out
    found = re.search(r"\(within 100 of 256 bits; --duplicate_distance (\d+) with another --output keeps 6\)", said)
    assert found and re.search(r"\d images? to label next, of the 6 asked for: ", said)
    main([*command, str(tmp_path / "more"), "--duplicate_distance", found[1]])
    said = capsys.readouterr().out
    assert "6 images to choose among" in said and "asked for" not in said
    shutil.copy(folder / "pit" / "0.png", folder / "copy.png")
    command[4] = "9"
    main([*command, str(tmp_path / "zero"), "--duplicate_distance", "0"])
    assert "and 1 of each other (within 0 of 256 bits)." in capsys.readouterr().out


def test_smaller_distance_is_the_largest_that_is_enough():
    labelled = np.zeros((1, 4), dtype=np.uint64)
    hashes = np.zeros((4, 4), dtype=np.uint64)
    hashes[:, 0] = [0, 0b111, 0b11111, 2**20 - 1]  # 0, 3, 5 and 20 bits from the labelled one
    assert find_smaller_distance(labelled, hashes, 16, 2) == (2, 2)  # the second and third are joined
    assert find_smaller_distance(labelled, hashes[:1], 16, 2) is None
    hashes[2, 0] = 0b111110000000
    assert find_smaller_distance(labelled, hashes, 16, 2) == (4, 2)
    assert find_smaller_distance(labelled, hashes, 16, 9) == (2, 3)
