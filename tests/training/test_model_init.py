"""Defaults of the classifier that depend on its backbone, and what cannot be built."""

import pytest
from tiny import TINY_BACKBONES, tiny_model

from kgl.errors import InputError
from kgl.training.arguments import ModelArguments
from kgl.training.model_init import resolve_freeze_stages, resolve_out_features


def test_resnet_is_used_up_to_stage_3_by_default(tmp_path):
    for name in ("resnet", "convnextv2"):
        TINY_BACKBONES[name].save_pretrained(tmp_path / name)
    assert resolve_out_features(ModelArguments(backbone=str(tmp_path / "resnet"))) == ["stage3"]
    assert resolve_out_features(ModelArguments(backbone=str(tmp_path / "convnextv2"))) is None
    given = ModelArguments(backbone=str(tmp_path / "resnet"), out_features=["stage2"])
    assert resolve_out_features(given) == ["stage2"]
    assert resolve_out_features(ModelArguments(backbone_config={"model_type": "resnet"})) is None


def test_backbone_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match=r"--backbone .*nowhere: it cannot be read"):
        resolve_out_features(ModelArguments(backbone=str(tmp_path / "nowhere")))


def test_stages_of_pretrained_backbones_are_frozen_by_default():
    pretrained, from_scratch = ModelArguments(backbone="some/net"), ModelArguments(backbone_config={})
    assert resolve_freeze_stages(tiny_model("resnet"), pretrained) == 2
    assert resolve_freeze_stages(tiny_model("resnet"), from_scratch) == 0
    assert resolve_freeze_stages(tiny_model("swin"), pretrained) == 0
    assert resolve_freeze_stages(tiny_model("resnet"), ModelArguments(backbone="some/net", freeze_stages=1)) == 1
