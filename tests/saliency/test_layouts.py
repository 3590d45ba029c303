"""Channels-last backbones: maps do not depend on a chance agreement of widths and grid sizes."""

import pytest
import torch
from saliency_models import TARGETS, images
from torch import nn
from torch.nn import functional as F
from transformers import (
    ConvNextConfig,
    ConvNextForImageClassification,
    PreTrainedModel,
    PvtV2Config,
    PvtV2ForImageClassification,
    Swinv2Config,
    Swinv2ForImageClassification,
)

from kgl.saliency.compute import compute_saliency


def convnext_classifier() -> ConvNextForImageClassification:
    """A ConvNeXt of width 96, the number of columns at 384 px and within 20 % of those at 320 to 448 px."""
    torch.manual_seed(0)
    config = ConvNextConfig(
        num_stages=2, hidden_sizes=[96, 16], depths=[1, 1], num_labels=3, layer_scale_init_value=1.0,
        initializer_range=0.2,
    )  # fmt: skip
    model = ConvNextForImageClassification(config).eval()
    for module in model.modules():  # biases for FullGrad to find
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.normal_(module.bias, std=0.3)
    return model


def swinv2_classifier() -> Swinv2ForImageClassification:
    """A Swin V2, whose position biases are a module's 4-D output that does not depend on the image."""
    torch.manual_seed(0)
    config = Swinv2Config(
        image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4, num_labels=3,
        initializer_range=0.2,
    )  # fmt: skip
    return Swinv2ForImageClassification(config).eval()


def reference_fullgrad(model: PreTrainedModel, pixel_values: torch.Tensor, target: int) -> torch.Tensor:
    """FullGrad of one image channel by channel, the layout from the layer's type; for maps `(B, ., ., .)` only."""
    outputs, handles = [], []

    def keep(module, inputs, output):
        output.retain_grad()
        outputs.append((module, output))

    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            handles.append(module.register_forward_hook(keep))
    pixel_values = pixel_values.clone().requires_grad_()
    model(pixel_values).logits[0, target].backward()
    for handle in handles:
        handle.remove()
    terms = [pixel_values.grad[0] * pixel_values.detach()[0]]
    for module, output in outputs:
        if output.dim() == 4:
            gradient = output.grad[0].permute(2, 0, 1) if isinstance(module, nn.Linear) else output.grad[0]
            terms.append(gradient * module.bias.detach()[:, None, None])
    total = torch.zeros(pixel_values.shape[2:])
    for term in terms:
        magnitude = term.abs()
        low, high = magnitude.min(), magnitude.max()
        for channel in magnitude:
            scaled = ((channel - low) / (high - low + 1e-6))[None, None]
            total += F.interpolate(scaled, size=total.shape, mode="bilinear", align_corners=True)[0, 0]
    return total


@pytest.mark.parametrize("size", [320, 352, 384, 448])
def test_fullgrad_of_convnext(size):
    model = convnext_classifier()
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected = reference_fullgrad(model, pixels, 1)
    found = compute_saliency(model, pixels, 1, "fullgrad")[0]
    assert (found - expected).abs().max() < 1e-3 * expected.max()


@pytest.mark.parametrize("method", ["fullgrad", "layercam", "gradcam"])
def test_swinv2_maps_do_not_depend_on_the_batch(method):
    model, pixels = swinv2_classifier(), images(32, 32).float()
    together = compute_saliency(model, pixels, TARGETS, method)
    for index in range(3):
        alone = compute_saliency(model, pixels[index : index + 1], TARGETS[index], method)
        torch.testing.assert_close(alone[0], together[index], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("size", [320, 384])
@pytest.mark.parametrize("name", ["layernorm", "pwconv1", "act", "drop_path"])
def test_cam_at_layers_inside_convnext(name, size):
    """`layernorm`, `pwconv1` and `act` return `(B, h, w, C)`, `drop_path` returns `(B, C, h, w)`."""
    model, kept = convnext_classifier(), {}
    pixels = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    layer = f"convnext.encoder.stages.0.layers.0.{name}"
    handle = model.get_submodule(layer).register_forward_hook(lambda module, inputs, output: kept.update(a=output))
    logit = model(pixels).logits[0, 1]
    handle.remove()
    (gradient,) = torch.autograd.grad(logit, kept["a"])
    expected = (gradient * kept["a"]).sum(dim=1 if name == "drop_path" else 3).relu()
    found = compute_saliency(model, pixels, 1, "hirescam", [layer])
    assert found.shape == (1, size // 4, size // 4)
    torch.testing.assert_close(found, expected.detach(), rtol=1e-3, atol=1e-5)


def test_default_layer_that_only_a_whole_encoder_returns():
    torch.manual_seed(0)
    config = PvtV2Config(
        image_size=32, depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 8, 8], num_attention_heads=[1, 1, 1, 1], num_labels=3,
        initializer_range=0.2,
    )  # fmt: skip
    model = PvtV2ForImageClassification(config).eval()
    maps = compute_saliency(model, images(64, 64).float(), TARGETS, "gradcam")
    assert maps.shape == (3, 2, 2) and maps.max() > 0
