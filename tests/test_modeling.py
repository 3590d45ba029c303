"""The model: formula, inputs, backbones, decision, saving and loading."""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from tiny import TINY_BACKBONES, shared, stages_model, tiny_model
from torch.nn import functional as F
from transformers import (
    AutoModelForImageClassification,
    BertConfig,
    ResNetConfig,
    ResNetForImageClassification,
    TextNetConfig,
)

from kgl.configuration_kgl import KGLConfig
from kgl.evaluation.metrics import defect_scores
from kgl.modeling_kgl import KGLForImageClassification, class_probabilities


def two_stages(backbone: str) -> dict:
    return TINY_BACKBONES[backbone].to_dict() | {"out_features": ["stage1", "stage2"], "out_indices": [1, 2]}


def test_logits_and_loss_follow_formula():
    model = tiny_model()
    pixel_values = torch.randn(2, 3, 32, 48)
    labels = torch.tensor([2, 0])
    output = model(pixel_values, labels=labels)
    features = model.backbone(pixel_values).feature_maps[0]
    saliency = F.conv2d(features, model.saliency_head.weight, model.saliency_head.bias)
    maps = torch.cat([features, saliency], dim=1)
    pooled = torch.cat([F.adaptive_avg_pool2d(maps, 1), F.adaptive_max_pool2d(maps, 1)], dim=1).flatten(1)
    logits = pooled @ model.classifier.weight.T + model.classifier.bias
    torch.testing.assert_close(output.logits, logits)
    torch.testing.assert_close(output.saliency, saliency)
    torch.testing.assert_close(output.loss, F.cross_entropy(logits, labels))
    assert output.hidden_states is None


@pytest.mark.parametrize("backbone", TINY_BACKBONES)
@pytest.mark.parametrize("size", [(32, 32), (64, 32), (40, 72)])
def test_backbones_take_any_size_with_one_or_two_stages(backbone, size):
    pixel_values = torch.randn(2, 3, *size)
    one = tiny_model(backbone)
    output = one(pixel_values, output_hidden_states=True)
    assert output.logits.shape == (2, 3)
    assert output.saliency.shape == (2, 1, *output.feature_maps[0].shape[-2:]) and len(output.feature_maps) == 1
    assert len(output.hidden_states) > 1

    config = KGLConfig(backbone_config=two_stages(backbone), fusion_size=5, num_labels=3)
    two = KGLForImageClassification(config).eval()
    finest = two.backbone(pixel_values).feature_maps[0].shape[-2:]
    assert [one.shape for one in two(pixel_values).feature_maps] == [(2, 5, *finest)]


@pytest.mark.parametrize("backbone", TINY_BACKBONES)
def test_every_parameter_has_a_gradient_of_the_guided_loss(backbone):
    model = tiny_model(backbone).train()
    output = model(torch.randn(4, 3, 32, 32), labels=torch.tensor([0, 1, 2, 1]))
    (output.loss + output.saliency.mean()).backward()
    # transformers builds these and does not use them.
    idle = {"backbone.swin.layernorm.weight", "backbone.swin.layernorm.bias", "backbone.embeddings.mask_token"}
    assert {name for name, parameter in model.named_parameters() if parameter.grad is None} <= idle


def test_grey_images_are_repeated_over_channels():
    model, grey = tiny_model(), torch.randn(2, 1, 32, 32)
    assert torch.equal(model(grey).logits, model(grey.repeat(1, 3, 1, 1)).logits)


def test_return_dict_false_returns_tuple():
    loss, logits, *_ = tiny_model()(torch.randn(1, 3, 32, 32), labels=torch.tensor([0]), return_dict=False)
    assert loss.shape == () and logits.shape == (1, 3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"problem_type": "regression"}, "problem_type='regression' is not supported: .*one label per image"),
        ({"defect_free_label": "fine"}, "'fine' is not one of the labels"),
        ({"fusion_size": 0}, "at least 1"),
        ({"head": "mean"}, "head='mean': choose avg_max or stages"),
        ({"cell_size": 0}, "cell_size=0: it must be at least 1"),
        ({"saliency_stages": 0}, "saliency_stages=0: it must be at least 1"),
        ({"top_cells": 0.0}, r"top_cells=0.0: it must lie above 0"),
        ({"training_range": {"brightness": [0, 1]}}, r"training_range=.*: it needs `images`, `groups`"),
        ({"backbone_config": {"model_type": "nonesuch"}}, "model_type"),
    ],
)
def test_bad_config_is_refused(wrong, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        KGLConfig(**{"id2label": {0: "good", 1: "bad"}, **wrong})


def test_label2id_follows_id2label():
    config = KGLConfig(id2label={0: "good", 1: "bad"}, label2id={"bad": 0, "good": 1}, defect_free_label="bad")
    assert config.label2id == {"good": 0, "bad": 1} and config.defect_free_id == 1
    assert KGLConfig(id2label={0: "a", 1: "b", 2: "c"}).label2id == {"a": 0, "b": 1, "c": 2}
    assert KGLConfig(num_labels=3).num_labels == 3 and KGLConfig().defect_free_id is None


def test_saved_multi_label_config_is_refused(tmp_path):
    KGLConfig(num_labels=3).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(saved | {"problem_type": "multi_label_classification"}))
    with pytest.raises(StrictDataclassError, match="problem_type='multi_label_classification' is not supported"):
        KGLConfig.from_pretrained(tmp_path)


def test_defect_score_is_that_of_the_evaluation():
    """The formula for tensors in `decide` and the one for arrays in the evaluation are the same."""
    logits = torch.cat([torch.randn(50, 3) * 4, torch.tensor([[30.0, 0.0, -60.0], [90.0, 0.0, 0.0]])])
    for good in ("good", "pit"):
        model = tiny_model(defect_free_label=good)
        score, defective = model.decide(logits)
        probabilities = class_probabilities(logits).numpy()
        expected = defect_scores(probabilities, model.config.defect_free_id)
        np.testing.assert_array_equal(score.numpy(), expected)
        np.testing.assert_array_equal(defective.numpy(), expected >= 0.5)
        np.testing.assert_allclose(expected, 1 - probabilities[:, model.config.defect_free_id], atol=1e-12)
    score, _ = tiny_model().decide(logits)
    assert score[-2].item() == pytest.approx(math.exp(-30), rel=5e-3, abs=0)
    assert score[-1] > 0  # never a hard label


def test_backbones_without_spatial_maps_or_num_channels():
    flat = TINY_BACKBONES["dinov2"].to_dict() | {"reshape_hidden_states": False}
    with pytest.raises(ValueError, match=r"dinov2 backbone returns .* set its reshape_hidden_states"):
        KGLForImageClassification(KGLConfig(backbone_config=flat))(torch.zeros(1, 3, 32, 32))
    silent = TextNetConfig(out_features=["stage4"]).to_dict()
    model = KGLForImageClassification(KGLConfig(backbone_config=silent)).eval()
    assert model(torch.zeros(1, 1, 64, 64)).logits.shape == (1, 2)


def test_checkpoint_without_backbone_weights_is_refused(pretrained_resnet):
    from safetensors.torch import load_file, save_file

    weights = Path(pretrained_resnet[1]) / "model.safetensors"
    save_file({name.replace("resnet.", "other."): value for name, value in load_file(weights).items()}, weights)
    with pytest.raises(ValueError, match="lacks weights of the backbone"):
        KGLForImageClassification.from_backbone(pretrained_resnet[1])


def test_model_that_is_not_a_backbone_is_refused(tmp_path):
    with pytest.raises(ValueError, match="'bert' model cannot be the backbone"):
        KGLForImageClassification(KGLConfig(backbone_config=BertConfig().to_dict()))
    BertConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds a 'bert' model, which cannot be the backbone"):
        KGLForImageClassification.from_backbone(str(tmp_path))


@pytest.fixture
def pretrained_resnet(tmp_path):
    torch.manual_seed(1)
    config = ResNetConfig(layer_type="basic", embedding_size=8, depths=[1, 1, 1, 1], hidden_sizes=[8, 12, 16, 20])
    resnet = ResNetForImageClassification(config).eval()
    resnet.save_pretrained(tmp_path / "resnet")
    return resnet, str(tmp_path / "resnet")


def test_from_backbone_keeps_weights_and_drops_unused_stages(pretrained_resnet):
    resnet, folder = pretrained_resnet
    model = KGLForImageClassification.from_backbone(folder, out_features=["stage2"], num_labels=2).eval()
    pixel_values = torch.randn(1, 3, 64, 64)
    hidden_states = resnet(pixel_values, output_hidden_states=True).hidden_states
    torch.testing.assert_close(model(pixel_values).feature_maps, (hidden_states[2],))
    assert len(model.backbone.encoder.stages) == 2
    assert model.config.num_labels == 2 and model.config.backbone_config.num_labels == 2
    with pytest.raises(ValueError, match=r"this backbone has no stage \['stage9'\]; it has \['stem', 'stage1'"):
        KGLForImageClassification.from_backbone(folder, out_features=["stage9"])


@pytest.mark.parametrize("backbone", ["convnextv2", "swin", "dinov2"])
def test_from_backbone_with_fewer_stages_keeps_features(backbone, tmp_path):
    full = tiny_model(backbone).backbone
    full.save_pretrained(tmp_path)
    model = KGLForImageClassification.from_backbone(str(tmp_path), out_features=["stage2"]).eval()
    pixel_values = torch.randn(1, 3, 32, 64)
    hidden_states = full(pixel_values, output_hidden_states=True).hidden_states
    assert model(pixel_values).feature_maps[0].isfinite().all()
    kept = model.backbone(pixel_values, output_hidden_states=True).hidden_states
    torch.testing.assert_close(kept[1], hidden_states[1])
    torch.testing.assert_close(kept[2], hidden_states[2])


def test_shared_resnet_18():
    folder = shared("models", "resnet-18")
    model = KGLForImageClassification.from_backbone(str(folder), out_features=["stage2", "stage3"])
    assert model(torch.randn(1, 1, 64, 96)).saliency.shape == (1, 1, 8, 12)


WITHOUT_KGL = """
import json, sys
sys.modules["kgl"] = None  # importing it fails from here on
import torch
from transformers import AutoImageProcessor, AutoModelForImageClassification, pipeline

folder = sys.argv[1]
model = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
torch.set_num_threads(1)
logits = model(torch.load(folder + "/pixels.pt")).logits
classifier = pipeline("image-classification", model=folder, trust_remote_code=True)
print(json.dumps({"logits": logits.tolist(), "pipeline": classifier(folder + "/image.png")}))
"""


def test_saved_model_loads_without_kgl(tmp_path, auto_image_processor):
    from PIL import Image
    from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

    from kgl.data.images import to_pixel_values

    model = tiny_model()
    model.save_pretrained(tmp_path)
    image_processor = ViTImageProcessorPil(size={"height": 48, "width": 32})
    image_processor.save_pretrained(tmp_path)
    pixel_values = torch.randn(2, 3, 40, 56)
    torch.save(pixel_values, tmp_path / "pixels.pt")
    image = Image.effect_noise((50, 70), 80)
    image.save(tmp_path / "image.png")
    process = subprocess.run(
        [sys.executable, "-c", WITHOUT_KGL, str(tmp_path)], capture_output=True, text=True, cwd=tmp_path
    )
    assert process.returncode == 0, process.stderr
    outputs = json.loads(process.stdout)
    assert outputs["logits"] == model(pixel_values).logits.tolist()
    scores = model(to_pixel_values([image], image_processor)).logits.softmax(dim=1)[0]
    assert {one["label"]: one["score"] for one in outputs["pipeline"]} == pytest.approx(
        dict(zip(("good", "scratch", "pit"), scores.tolist(), strict=True))
    )


def test_hub_files_import_each_other_as_siblings():
    """transformers copies the files of relative imports that it finds by this pattern."""
    root = Path(__file__).parents[1]
    names = {"configuration_kgl", "heads_kgl", "modeling_kgl", "pipeline_kgl", "handler"}
    for name in names:
        source = (root / f"{name}.py").read_text()
        siblings = re.findall(r"^\s*from\s+\.(\S*)\s+import", source, flags=re.MULTILINE)
        assert set(siblings) <= names
        assert "import kgl" not in source and "from kgl" not in source.replace(">>> from kgl", "")


def test_timm_backbone(tmp_path):
    pytest.importorskip("timm", reason="timm is an optional extra, and needs torchvision")
    from transformers import TimmBackboneConfig

    backbone_config = TimmBackboneConfig(backbone="resnet10t", out_indices=[2, 3]).to_dict()
    model = KGLForImageClassification(KGLConfig(backbone_config=backbone_config, fusion_size=8)).eval()
    pixel_values = torch.randn(1, 3, 64, 96)
    assert model(pixel_values).saliency.shape == (1, 1, 8, 12)
    model.save_pretrained(tmp_path)
    again = KGLForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(again(pixel_values).logits, model(pixel_values).logits)


@pytest.mark.parametrize("make", [tiny_model, stages_model])
def test_models_of_older_versions_load_without_a_word(make, tmp_path, caplog, capfd):
    """Their files have no features of the training images."""
    make().save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    older = {name: one for name, one in weights.items() if name not in ("feature_center", "feature_scale")}
    assert len(older) == len(weights) - 2
    save_file(older, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("training_range", None)
    (tmp_path / "config.json").write_text(json.dumps(config))
    transformers.utils.logging.enable_propagation()
    try:
        model = KGLForImageClassification.from_pretrained(tmp_path)
    finally:
        transformers.utils.logging.disable_propagation()
    assert "feature_center" not in caplog.text + "".join(capfd.readouterr())
    assert model.config.training_range is None
    assert not model.feature_center.any() and (model.feature_scale == 1).all()
    pixel_values = torch.randn(2, 3, 48, 32)
    torch.testing.assert_close(model.eval()(pixel_values).logits, make()(pixel_values).logits)
    assert torch.isfinite(model.feature_distance(model(pixel_values).feature_maps)).all()


def test_features_of_training_images_survive_loading_by_remote_code(tmp_path):
    model = tiny_model()
    model.feature_center.normal_()
    model.feature_scale.uniform_(1, 2)
    model.save_pretrained(tmp_path)
    for loaded in (
        KGLForImageClassification.from_pretrained(tmp_path),
        AutoModelForImageClassification.from_pretrained(tmp_path, trust_remote_code=True),
    ):
        assert torch.equal(loaded.feature_center, model.feature_center)
        assert torch.equal(loaded.feature_scale, model.feature_scale)
