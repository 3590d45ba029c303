"""Defaults of the classifier that depend on its backbone, and what cannot be built."""

import json

import pytest
from tiny import TINY_BACKBONES, tiny_model
from transformers import ResNetConfig

from kgl.errors import InputError
from kgl.training.arguments import ModelArguments
from kgl.training.model_init import load_classifier, resolve_freeze_stages, resolve_out_features


def test_stages_of_each_head_by_default(tmp_path):
    """Fine-tuned with the paper's head, a ResNet is used up to stage 3; the head of stages pools the last three."""
    for name in ("resnet", "convnextv2"):
        TINY_BACKBONES[name].save_pretrained(tmp_path / name)
    ResNetConfig(depths=[1] * 4, hidden_sizes=[8, 12, 16, 20]).save_pretrained(tmp_path / "four_stages")

    def resolved(name, **settings):
        return resolve_out_features(ModelArguments(backbone=str(tmp_path / name), **settings))

    paper = {"head": "avg_max", "fine_tune": True}
    assert resolved("resnet", **paper) == resolved("four_stages", **paper) == ["stage3"]
    assert resolved("convnextv2", **paper) is None
    assert resolved("four_stages") == ["stage2", "stage3", "stage4"]
    assert resolved("resnet") == ["stage1", "stage2", "stage3"]
    given = ModelArguments(backbone=str(tmp_path / "resnet"), out_features=["stage2"])
    assert resolve_out_features(given) == ["stage2"]
    assert resolve_out_features(ModelArguments(backbone_config={"model_type": "resnet"})) is None


def test_backbone_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match=r"--backbone .*nowhere: there is no such folder"):
        resolve_out_features(ModelArguments(backbone=str(tmp_path / "nowhere")))


@pytest.mark.parametrize("change", [{"head": "new"}, {"training_range": {"limits": 3}}, {"temperature": "high"}])
def test_classifier_of_another_version_is_named_in_one_sentence(tmp_path, change):
    tiny_model().save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(InputError, match="its config was changed, or is of another version of kgl: ") as refusal:
        load_classifier(str(tmp_path))
    assert "\n" not in str(refusal.value) and next(iter(change)) in str(refusal.value)


def test_stages_of_pretrained_backbones_are_frozen_by_default():
    pretrained, from_scratch = ModelArguments(backbone="some/net"), ModelArguments(backbone_config={})
    assert resolve_freeze_stages(tiny_model("resnet"), pretrained) == 2
    assert resolve_freeze_stages(tiny_model("resnet"), from_scratch) == 0
    assert resolve_freeze_stages(tiny_model("swin"), pretrained) == 0
    assert resolve_freeze_stages(tiny_model("resnet"), ModelArguments(backbone="some/net", freeze_stages=1)) == 1
