"""Dataset summary."""

import json
import shutil

from PIL import Image

from kgl.data.arguments import DataArguments
from kgl.data.summary import _format_splits, format_summary, summarize_dataset


def test_summary_of_a_sound_dataset(image_folder):
    summary = json.loads(json.dumps(summarize_dataset(DataArguments(data_dir=str(image_folder)))))
    splits = summary.pop("splits")
    assert list(splits) == ["train", "validation", "test"]
    assert sum(split["images"] for split in splits.values()) == sum(split["groups"] for split in splits.values()) == 18
    assert {split["masks"] for split in splits.values()} == {None}
    assert summary == {
        "dataset": "imagefolder",
        "source": f"--data_dir {image_folder}",
        "defect_free_label": "good",
        "defect_free_origin": "recognised",
        "duplicate_distance": 16,
        "source_splits": {"train": {"images": 18, "classes": {"good": 12, "scratch": 6}, "groups": 18, "masks": 0}},
        "widths": [48, 48, 48],
        "heights": [40, 40, 40],
        "modes": {"L": 18},
        "issues": [],
        "notes": [],
    }


def test_summary_as_text():
    source = {"images": 18, "classes": {"good": 12, "scratch": 6}, "groups": 17, "masks": 3}
    train, test = ({"images": count, "classes": {"good": count}, "groups": 5, "masks": None} for count in (10, 8))
    summary = {
        "dataset": "imagefolder",
        "source": "--data_dir images",
        "defect_free_label": "good",
        "defect_free_origin": "recognised",
        "duplicate_distance": 16,
        "source_splits": {"train": source},
        "widths": [48, 50, 60],
        "heights": [40, 40, 41],
        "modes": {"L": 17, "RGB": 1},
        "issues": [],
        "splits": {"train": train, "test": test},
        "notes": ["A note."],
    }
    assert format_summary(summary, 10).splitlines() == [
        "imagefolder, --data_dir images",
        "As in the source:",
        "  train: 18 images (12 good, 6 scratch), 17 groups, 3 masks",
        "As used for training:",
        "  train: 10 images (10 good), 5 groups",
        "  test: 8 images (8 good), 5 groups",
        "A note.",
        "Defect-free class: good (recognised by its name; --defect_free_label changes it)",
        "Near-duplicates: at most 16 of 256 bits apart (--duplicate_distance)",
        "Widths: 48 / 50 / 60 pixels (min / median / max)",
        "Heights: 40 / 40 / 41 pixels (min / median / max)",
        "Modes: 17 L, 1 RGB",
        "No issues.",
    ]


def test_one_is_singular():
    split = {"images": 1, "classes": {"good": 1}, "groups": 1, "masks": 1}
    assert _format_splits("As in the source", {"train": split})[1] == "  train: 1 image (1 good), 1 group, 1 mask"


def test_issues_are_listed_by_kind_and_limited(image_folder):
    shutil.copy(image_folder / "good" / "0.png", image_folder / "scratch" / "same.png")
    for index in range(3):
        Image.new("RGB", (60, 60 + index)).save(image_folder / "good" / f"black{index}.png")
    summary = summarize_dataset(DataArguments(data_dir=str(image_folder), defect_free_label="none"))
    text = format_summary(summary, 2)
    assert (
        "Issue, single grey value: 3\n  good/black0.png (0)\n  good/black1.png (0)\n  and 1 more (--listed 3" in text
    )
    assert "correct or remove them)\n  good/0.png, scratch/same.png (good, scratch)" in text
    assert "Defect-free class: none (--defect_free_label)" in text
    assert summary["issues"][0] == {"kind": "single grey value", "files": ("good/black0.png",), "note": "0"}


def test_notes_are_in_the_summary(image_folder, tmp_path):
    for split in ("train", "test"):
        shutil.copytree(image_folder, tmp_path / "split" / split)
    shutil.copytree(image_folder / "good", tmp_path / "split" / "val" / "good")
    summary = summarize_dataset(DataArguments(data_dir=str(tmp_path / "split")))
    assert summary["notes"] == ["No operating point is chosen: the validation images are all good or all defective."]
    assert summary["notes"][0] in format_summary(summary, 10)


def test_a_dataset_that_cannot_be_split(image_folder):
    for index in range(1, 6):
        (image_folder / "scratch" / f"{index}.png").unlink()
    summary = summarize_dataset(DataArguments(data_dir=str(image_folder)))
    assert "splits" not in summary
    text = format_summary(summary, 10)
    assert "Cannot be split: --num_folds 3: too few independent images of scratch (1)" in text
    assert "Issue, class with fewer than two images: 1\n  scratch" in text
