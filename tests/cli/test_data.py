"""`kgl data`: the printed summary and the exit code."""

import json
import shutil

import pytest
from PIL import Image

from kgl.cli import data as command


def run(capsys, *arguments):
    code = 0
    try:
        command.main([str(one) for one in arguments])
    except SystemExit as end:
        code = end.code
    return code, capsys.readouterr().out


def test_issues_are_printed_and_written(image_folder, tmp_path, capsys):
    shutil.copy(image_folder / "good" / "0.png", image_folder / "scratch" / "same.png")
    Image.open(image_folder / "good" / "1.png").save(image_folder / "good" / "near.jpg", quality=95)
    Image.new("RGB", (60, 60)).save(image_folder / "good" / "black.png")
    (image_folder / "good" / "bad.png").write_bytes(b"no image")
    output = tmp_path / "summary.json"
    code, out = run(capsys, image_folder, "--defect_free_label", "good", "--output", output)
    assert code == 1
    for line in (
        "train: 21 images (14 good, 7 scratch), 19 groups, 0 masks",
        "Defect-free class: good (--defect_free_label)",
        "Near-duplicates: at most 16 of 256 bits apart",
        "Widths: 48 / 48 / 60 pixels",
        "Modes: 20 L, 1 RGB",
        "Issue, unusable: 1\n  good/bad.png (not an image)",
        "Issue, single grey value: 1\n  good/black.png (0)",
        "Issue, identical images: 1\n  good/0.png, scratch/same.png",
        "Issue, identical images with different labels: 1 (no classifier can be right on all of them; `kgl audit` "
        "shows them, correct or remove them)\n  good/0.png, scratch/same.png (good, scratch)",
        "Issue, near-duplicates: 1\n  good/1.png, good/near.jpg",
    ):
        assert line in out
    assert out.endswith(f"All issues and figures: {output}\n")
    summary = json.loads(output.read_text())
    assert summary["splits"].keys() == {"train", "validation", "test"}
    assert sum(split["images"] for split in summary["splits"].values()) == 21
    assert run(capsys, image_folder, "--output", output)[0] == 2


def test_few_issues_of_a_kind_are_printed(image_folder, capsys):
    for index in range(5):
        Image.new("RGB", (60, 60), (50 * index,) * 3).save(image_folder / "good" / f"plain{index}.png")
    lines = run(capsys, image_folder)[1].splitlines()
    first = lines.index("Issue, single grey value: 5")
    assert lines[first + 3].startswith("  good/plain2.png")
    assert lines[first + 4] == "  and 2 more (--listed 5, or --output FILE.json for all)"


def test_near_duplicates_with_different_labels_are_explained(image_folder, capsys):
    Image.open(image_folder / "good" / "1.png").save(image_folder / "scratch" / "near.jpg", quality=95)
    advice = "one label may be wrong, and then figures are too low; `kgl audit` shows them to correct"
    assert f"Issue, near-duplicates with different labels: 1 ({advice})\n  " in run(capsys, image_folder)[1]


def test_one_class_alone_is_exit_code_2(image_folder, capsys):
    shutil.rmtree(image_folder / "scratch")
    assert run(capsys, image_folder)[0] == 2
    assert "2 where there is nothing to summarize, such as one class alone" in " ".join(command.HELP.format().split())


def test_folder_that_cannot_be_split(image_folder, capsys):
    for index in range(1, 6):
        (image_folder / "scratch" / f"{index}.png").unlink()
    code, out = run(capsys, "--data_dir", image_folder)
    assert code == 1
    assert "Cannot be split: --num_folds 3: too few independent images of scratch (1)" in out
    assert "Issue, class with fewer than two images: 1\n  scratch" in out


@pytest.mark.parametrize("folder", ["nowhere", "."])
def test_folder_without_images(folder, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert run(capsys, "--data_dir", folder)[0] == 2
