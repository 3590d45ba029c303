"""The lines that a finished run prints."""

import pytest

from kgl.evaluation.run_outputs import print_results


@pytest.mark.parametrize(
    ("label", "validation", "sentence"),
    [
        (
            None,
            {"operating_point": None},
            "no class is named as free of defects. If one is, train again with --defect_free_",
        ),
        ("good", None, "there are no validation images. Train again with --validation_share above 0"),
        ("good", {"operating_point": None}, "the validation images are all good or all defective. Give more images"),
    ],
)
def test_missing_threshold_is_printed_with_its_remedy(label, validation, sentence, tmp_path, capsys):
    report = {
        "results": {"primary": {"ap": 0.5}, "final": {"ap": 0.6}},
        "images": {"test": 4},
        "validation": {"primary": validation, "final": validation},
        "settings": {"data": {"defect_free_label": label}},
    }
    print_results(report, tmp_path)
    said = capsys.readouterr().out
    assert "No threshold was chosen" in said and sentence in said and "another --output_dir" in said
