"""A run with the backbone that comes with kgl: the folder it writes is like any other's."""

import json

import torch
from safetensors.torch import load_file
from tiny import make_images

from kgl.cli.train import parse
from kgl.modeling_kgl import KGLForImageClassification
from kgl.train import run
from kgl.training.model_init import locate_backbone


def test_run_with_the_backbone_that_comes_with_kgl(tmp_path, monkeypatch, few_draws):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    images, out = make_images(tmp_path / "images"), tmp_path / "out"
    arguments = [
        str(images), "--backbone", "kgl-tiny", "--image_height", "32", "--image_width", "32", "--num_folds", "2",
        "--validation_share", "0", "--use_cpu", "true", "--output_dir", str(out),
    ]  # fmt: skip
    metrics = run(parse(arguments))
    model = metrics["settings"]["model"]
    assert (model["backbone"], model["out_features"]) == ("kgl-tiny", ["stage1", "stage2", "stage3"])
    assert (model["head"], model["fine_tune"]) == ("stages", False)
    card = (out / "final" / "README.md").read_text()
    assert "The pretrained backbone (kgl-tiny): apache-2.0" in card and "base_model" not in card
    folder = locate_backbone("kgl-tiny")
    for name in ("config.json", "preprocessor_config.json", "README.md"):
        assert str(folder) not in (out / "final" / name).read_text()
    shipped = load_file(f"{folder}/model.safetensors")
    trained = KGLForImageClassification.from_pretrained(out / "final")
    assert all(torch.equal(weight, shipped[name]) for name, weight in trained.backbone.state_dict().items())
    assert json.loads((out / "final" / "config.json").read_text())["backbone_config"]["hidden_sizes"] == [32, 64, 128]
