"""A stage that is fine-tuned apart and joined to heads on frozen features."""

import copy

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file
from tiny import TINY_BACKBONES, four_stages, save_backbone, stages_model, tiny_model

from kgl.configuration_kgl import KGLConfig
from kgl.errors import InputError
from kgl.modeling_kgl import KGLForImageClassification
from kgl.training.arguments import ModelArguments
from kgl.training.model_init import resolve_freeze_stages
from kgl.training.tuned_stage import check_tunable, join_tuned_stage, tuned_model_args


def tuned_model(model: KGLForImageClassification) -> KGLForImageClassification:
    """The paper's classifier on stage 3, with the frozen stages of a model with the head `stages`."""
    config = model.config
    backbone = TINY_BACKBONES["resnet"].to_dict()
    torch.manual_seed(7)
    tuned = KGLForImageClassification(KGLConfig(backbone_config=backbone, id2label=config.id2label)).eval()
    tuned.backbone.embedder = model.backbone.embedder
    for index in (0, 1):
        tuned.backbone.encoder.stages[index] = model.backbone.encoder.stages[index]
    return tuned


def test_probabilities_of_both_are_averaged():
    """The temperature is that of the fitted heads; the heat map stays theirs."""
    model, pixel_values = stages_model(temperature=2.5), torch.randn(3, 3, 64, 96)
    tuned = tuned_model(model)
    before = copy.deepcopy(model.state_dict())
    joined = join_tuned_stage(model, tuned)
    assert joined.config.tuned_stage and joined.config.temperature == 1.0 and not model.config.tuned_stage
    with torch.no_grad():
        output, alone, other = (one(pixel_values) for one in (joined, model, tuned))
    mean = (alone.logits.softmax(dim=1) + other.logits.softmax(dim=1)) / 2
    torch.testing.assert_close(output.logits.softmax(dim=1), mean)
    torch.testing.assert_close(output.logits.exp(), mean)  # the logits are log-probabilities
    assert torch.equal(output.saliency, alone.saliency)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    joined.config.temperature = 2.0
    torch.testing.assert_close(joined(pixel_values).logits, mean.log() / 2)


def test_joined_classifier_is_saved_and_loaded(tmp_path):
    model, pixel_values = stages_model(), torch.randn(1, 3, 64, 64)
    joined = join_tuned_stage(model, tuned_model(model))
    joined.save_pretrained(tmp_path)
    loaded = KGLForImageClassification.from_pretrained(tmp_path)
    assert torch.equal(loaded(pixel_values).logits, joined(pixel_values).logits)


def test_copy_has_the_pretrained_weights(tmp_path):
    model = KGLForImageClassification.from_backbone(
        str(save_backbone(tmp_path)), out_features=["stage2", "stage3"], head="stages", tuned_stage=True
    )
    pretrained, prefix = load_file(tmp_path / "model.safetensors"), "encoder.stages.2."
    copied = model.tuned.stage.state_dict()
    assert all(torch.equal(value, pretrained[f"{prefix}{name}"]) for name, value in copied.items())
    assert copied.keys() == {name.removeprefix(prefix) for name in pretrained if name.startswith(prefix)}


@pytest.mark.parametrize(
    "backbone", [four_stages(out_features=["stage2", "stage4"]), four_stages(out_features=["stage4"])]
)
def test_stage_that_is_no_output_is_refused(backbone):
    config = KGLConfig(backbone_config=backbone.to_dict(), head="stages", saliency_stages=1)
    with pytest.raises(InputError, match=r"--fine_tune true: .* first two outputs follow each other, not a resnet"):
        check_tunable(KGLForImageClassification(config))


def test_other_backbones_are_refused():
    with pytest.raises(InputError, match=r"needs a ResNet .* not a swin .*\. Give --head avg_max"):
        check_tunable(tiny_model("swin", head="stages", saliency_stages=1))
    with pytest.raises(StrictDataclassError, match="tuned_stage=True goes with head='stages'"):
        tiny_model(tuned_stage=True)


def test_stages_below_the_tuned_one_are_frozen():
    model_args = ModelArguments(backbone="some/net", fine_tune=True, out_features=["stage2", "stage3", "stage4"])
    tuned = tuned_model_args(model_args)
    assert (tuned.head, tuned.out_features) == ("avg_max", ["stage3"])
    assert resolve_freeze_stages(tiny_model(), model_args) == 2
    with pytest.raises(InputError, match="--freeze_stages 1: with --head stages all 2 below the tuned one are frozen"):
        resolve_freeze_stages(tiny_model(), ModelArguments(backbone="some/net", fine_tune=True, freeze_stages=1))
