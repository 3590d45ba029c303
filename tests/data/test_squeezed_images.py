"""The warning on images that are squeezed."""

import pytest
from tiny import save_noise

from kgl.cli.main import main
from kgl.data.arguments import DataArguments
from kgl.data.loading import read_images
from kgl.data.summary import print_loaded_dataset, squeeze_warning


@pytest.fixture
def strips(tmp_path):
    """Two classes of images that are 4 times as wide as high."""
    for label in ("good", "scratch"):
        for index in range(3):
            save_noise(tmp_path / "images" / label / f"{index}.png", index + 10 * len(label), size=(96, 24))
    return tmp_path / "images"


def test_warning_names_the_ratio_and_the_settings(strips, capsys):
    loaded = read_images(DataArguments(data_dir=str(strips)))
    warning = squeeze_warning(loaded, (160, 160))
    assert "4.0 times as wide as high (median)" in warning and "resized to 160 x 160" in warning
    assert "--image_width 320 --image_height 80 keeps their shape" in warning
    assert "times as wide" in squeeze_warning(loaded, (96, 160))
    assert squeeze_warning(loaded, (64, 160)) is None
    print_loaded_dataset(loaded, (160, 160))
    assert warning in capsys.readouterr().out
    print_loaded_dataset(loaded, (80, 320))
    assert "times as wide" not in capsys.readouterr().out


def test_tall_images_are_warned_of_too(tmp_path, image_folder):
    assert squeeze_warning(read_images(DataArguments(data_dir=str(image_folder))), (160, 160)) is None  # 48 x 40
    for label in ("good", "scratch"):
        save_noise(tmp_path / "tall" / label / "0.png", len(label), size=(24, 60))
    warning = squeeze_warning(read_images(DataArguments(data_dir=str(tmp_path / "tall"))), (160, 160))
    assert "2.5 times as high as wide (median)" in warning and "--image_width 96 --image_height 256" in warning


def test_kgl_data_warns(strips, capsys):
    main(["data", str(strips)])
    assert "4.0 times as wide as high" in capsys.readouterr().out
