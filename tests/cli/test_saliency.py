"""`kgl saliency`: saliency methods side by side."""

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_model
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.cli.saliency import SaliencyGridArguments, main
from kgl.errors import InputError
from kgl.saliency.methods import METHODS


def test_grid_of_every_method(tmp_path, image_folder, capsys):
    tiny_model(id2label={0: "good", 1: "scratch"}).save_pretrained(tmp_path / "model")
    ViTImageProcessorPil(size={"height": 40, "width": 48}).save_pretrained(tmp_path / "model")
    arguments = [str(image_folder), "--model", str(tmp_path / "model"), "--output", str(tmp_path / "grid.png"),
                 "--count", "50", "--methods", *METHODS]  # fmt: skip
    main(arguments)
    # The two scratches of the held-out fold; good images have no map.
    assert "2 images under 9 methods" in capsys.readouterr().out
    pixels = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB")).astype(int)
    assert pixels.shape[1] > 9 * 150
    assert (pixels.max(axis=2) - pixels.min(axis=2) > 60).mean() > 0.03  # colours: the maps and their bar
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    assert "grid.png: the file exists" in capsys.readouterr().err


def test_bad_settings_are_named():
    with pytest.raises(InputError, match="--methods lrp: choose among cam, gradcam"):
        SaliencyGridArguments(model="m", output="o.png", methods=["cam", "lrp"])
    with pytest.raises(InputError, match=r"--output grid\.jpg: its name must end in \.png"):
        SaliencyGridArguments(model="m", output="grid.jpg")
    with pytest.raises(InputError, match=r"--output nowhere/o\.png: there is no such folder"):
        SaliencyGridArguments(model="m", output="nowhere/o.png")
    with pytest.raises(InputError, match="--count 0"):
        SaliencyGridArguments(model="m", output="o.png", count=0)
