"""The command that lays methods side by side."""

import sys

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_model
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.cli.parser import parse_settings
from kgl.cli.saliency import GridArguments, main, run
from kgl.data.arguments import DataArguments
from kgl.errors import InputError
from kgl.saliency.methods import METHODS


def test_a_grid_of_every_method(tmp_path, image_folder, monkeypatch, capsys):
    tiny_model(id2label={0: "good", 1: "scratch"}).save_pretrained(tmp_path / "model")
    ViTImageProcessorPil(size={"height": 40, "width": 48}).save_pretrained(tmp_path / "model")
    command = ["kgl-saliency-grid", "--model", str(tmp_path / "model"), "--data_dir", str(image_folder),
               "--output", str(tmp_path / "grid.png"), "--count", "50", "--methods", *METHODS]  # fmt: skip
    drawn = run(*parse_settings("kgl-saliency-grid", (GridArguments, DataArguments), command[1:]))
    assert drawn["label"] == [1, 1]
    (tmp_path / "grid.png").unlink()
    monkeypatch.setattr(sys, "argv", command)
    main()
    assert "2 images under 9 methods" in capsys.readouterr().out  # one of three folds; the good ones have no map
    pixels = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB")).astype(int)
    assert pixels.shape[1] > 9 * 150
    assert (pixels.max(axis=2) - pixels.min(axis=2) > 60).mean() > 0.03  # colours: the maps and their bar
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "grid.png: it exists already" in capsys.readouterr().err


def test_bad_settings_are_named():
    with pytest.raises(InputError, match="--methods lrp: choose among cam, gradcam"):
        GridArguments(model="m", output="o.png", methods=["cam", "lrp"])
    with pytest.raises(InputError, match=r"--output grid\.jpg: its name must end in \.png"):
        GridArguments(model="m", output="grid.jpg")
    with pytest.raises(InputError, match=r"--output nowhere/o\.png: there is no such folder"):
        GridArguments(model="m", output="nowhere/o.png")
    with pytest.raises(InputError, match="--count 0"):
        GridArguments(model="m", output="o.png", count=0)
