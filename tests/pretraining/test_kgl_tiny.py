"""The generated textures and anomalies, a few steps of the pretraining, and the backbone that is shipped."""

import ast
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoConfig, ResNetBackbone

import kgl
from kgl.pretraining.anomalies import KINDS, draw_shape, fill
from kgl.pretraining.kgl_tiny import BACKBONE, STD, PretrainingModel, Recipe, TrainingImages, pretrain, save
from kgl.pretraining.textures import FAMILIES, draw_texture, texture_classes
from kgl.training.arguments import KGL_TINY, ModelArguments
from kgl.training.model_init import build_model, locate_backbone, make_image_processor, resolve_out_features


ROOT = Path(kgl.__file__).parent
MAX_BYTES = 3_000_000
SMALL = Recipe(classes=16, images_per_class=1, shapes_per_kind=1, drawn_size=64, size=32, steps=4, batch_size=4)


@pytest.mark.parametrize("texture", texture_classes(len(FAMILIES), 0), ids=lambda texture: texture.family)
def test_textures_are_reproducible_and_standardised(texture):
    first, twin, other = (draw_texture(texture, 48, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert np.array_equal(first, twin) and not np.array_equal(first, other)
    assert first.shape == (48, 48) and first.dtype == np.float32
    assert abs(first.mean()) < 0.1 and 0.8 < first.std() < 1.1


@pytest.mark.parametrize("kind", KINDS)
def test_shapes_are_reproducible_and_cover_a_part(kind):
    for seed in range(5):
        shape, twin = (draw_shape(kind, 64, np.random.default_rng(seed)) for _ in range(2))
        assert np.array_equal(shape, twin)
        assert shape.min() >= 0 and shape.max() == 1 and 0 < (shape > 0.4).mean() < 0.5


def test_fill_changes_only_what_the_shapes_cover():
    generator = torch.Generator().manual_seed(0)
    images, others = torch.randn(2, 32, 1, 8, 8, generator=generator)
    shapes = torch.zeros(32, 1, 8, 8)
    shapes[:, :, 2:6, 2:6] = 1
    kinds = torch.arange(32) % len(KINDS)
    filled = fill(images, shapes, kinds, others, generator)
    assert torch.equal(filled[shapes == 0], images[shapes == 0])
    assert ((filled - images).abs().amax(dim=(1, 2, 3)) > 0.1).all()


def test_a_few_steps_lower_the_loss_and_repeat(tmp_path):
    (backbone, history), (twin, _) = pretrain(SMALL), pretrain(SMALL)
    for name, weight in backbone.state_dict().items():
        assert torch.equal(weight, twin.state_dict()[name]), name
    assert [one["step"] for one in history] == [1, 2, 3, 4] and not backbone.training
    save(backbone, SMALL, history, 1.0, tmp_path)
    loaded = ResNetBackbone.from_pretrained(tmp_path)
    assert all(torch.equal(weight, loaded.state_dict()[name]) for name, weight in backbone.state_dict().items())


def test_targets_mark_the_anomalies_of_each_image():
    batch = TrainingImages(SMALL).batch()
    assert batch.pixel_values.shape == (4, 3, 32, 32) and batch.kinds.shape == (4, 32, 32)
    assert 0 < batch.kinds.max() <= len(KINDS)
    losses = PretrainingModel(SMALL.classes).losses(batch)
    assert set(losses) == {"texture", "anomaly", "distance"} and all(loss.isfinite() for loss in losses.values())


def test_pretraining_knows_nothing_of_the_demos_surfaces():
    for path in (ROOT / "pretraining").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            modules += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            assert not any(name.startswith("kgl.data") for name in modules), path.name


def test_shipped_backbone_is_small_and_loads_without_a_network(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = Path(locate_backbone(KGL_TINY))
    assert sum(path.stat().st_size for path in folder.iterdir()) <= MAX_BYTES
    assert AutoConfig.from_pretrained(folder).hidden_sizes == BACKBONE.hidden_sizes
    given = ModelArguments(backbone=KGL_TINY, image_height=32, image_width=32)
    assert resolve_out_features(given) == ["stage1", "stage2", "stage3"]
    model = build_model(ModelArguments(backbone=KGL_TINY, out_features=["stage1", "stage2"]), ["good", "bad"], "good")
    weights = ResNetBackbone.from_pretrained(folder).state_dict()
    loaded = model.backbone.state_dict()
    assert all(torch.equal(weight, weights[name]) for name, weight in loaded.items()) and len(loaded) > 20
    assert make_image_processor(given).image_std == (STD,) * 3


def test_other_backbones_are_loaded_from_where_they_are_named():
    assert [locate_backbone(name) for name in ("microsoft/resnet-18", "./kgl-tiny")] == [
        "microsoft/resnet-18", "./kgl-tiny",
    ]  # fmt: skip
