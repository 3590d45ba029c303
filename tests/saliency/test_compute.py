"""Every method against an independent reference, and that a call leaves no trace."""

import copy

import numpy as np
import pytest
import torch
from tiny import TINY_BACKBONES, tiny_model
from torch import nn
from torch.nn import functional as F
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    SwinConfig,
    SwinForImageClassification,
    ViTConfig,
    ViTForImageClassification,
)

from kgl.saliency.activations import spatial_layers
from kgl.saliency.cam import layer_cam
from kgl.saliency.compute import compute_saliency
from kgl.saliency.fullgrad import full_gradients
from kgl.saliency.gradient import integrated_gradients
from kgl.saliency.maps import fuse, to_grid, to_uint8
from kgl.saliency.methods import METHODS


TARGETS = torch.tensor([0, 1, 2])


def images(height: int = 32, width: int = 64) -> torch.Tensor:
    return torch.randn(3, 3, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def sharp_model(backbone: str = "resnet"):
    """Our model in float64, its head's weights large enough that every term of a gradient matters."""
    model = tiny_model(backbone).double()
    with torch.no_grad():
        model.classifier.weight.normal_()
        model.saliency_head.weight.normal_()
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):  # biases for FullGrad to find
                module.bias.normal_(std=0.3)
                module.running_mean.normal_(std=0.3)
    return model


def resnet_classifier():
    torch.manual_seed(0)
    config = ResNetConfig(layer_type="basic", embedding_size=8, depths=[1, 1], hidden_sizes=[8, 12], num_labels=3)
    return ResNetForImageClassification(config).double().eval()


def vit_classifier():
    torch.manual_seed(0)
    config = ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=(32, 64),
        patch_size=8, num_labels=3, initializer_range=0.5,
    )  # fmt: skip
    return ViTForImageClassification(config).double().eval()


def swin_classifier():
    torch.manual_seed(0)
    config = SwinConfig(
        image_size=64, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4, num_labels=3
    )
    return SwinForImageClassification(config).double().eval()


# References: each from its paper's formula for one activation `a (C, h, w)` and gradient `g` of the same shape.
def reference_gradcam(a, g):
    return sum((g[c].sum() / g[c].numel()) * a[c] for c in range(len(a))).clamp(min=0)


def reference_gradcam_pp(a, g):
    total = torch.zeros_like(a[0])
    for c in range(len(a)):
        weight = 0.0
        for i in range(a.shape[1]):
            for j in range(a.shape[2]):
                denominator = 2 * g[c, i, j] ** 2 + a[c].sum() * g[c, i, j] ** 3
                alpha = g[c, i, j] ** 2 / denominator if denominator != 0 else 0.0
                weight = weight + alpha * max(g[c, i, j].item(), 0.0)
        total = total + weight * a[c]
    return total.clamp(min=0)


def reference_hirescam(a, g):
    return sum(g[c] * a[c] for c in range(len(a))).clamp(min=0)


def reference_layercam(a, g):
    return sum(g[c].clamp(min=0) * a[c] for c in range(len(a))).clamp(min=0)


REFERENCES = {
    "gradcam": reference_gradcam,
    "gradcam++": reference_gradcam_pp,
    "hirescam": reference_hirescam,
    "layercam": reference_layercam,
}


@pytest.mark.parametrize("method", REFERENCES)
@pytest.mark.parametrize("backbone", TINY_BACKBONES)
def test_cam_methods_on_our_model(method, backbone):
    model = sharp_model(backbone)
    output = model(images())
    score = output.logits.gather(1, TARGETS[:, None]).sum()
    (gradient,) = torch.autograd.grad(score, output.feature_map)
    expected = torch.stack([REFERENCES[method](a, g) for a, g in zip(output.feature_map, gradient, strict=True)])
    assert expected.max() > 1e-3
    torch.testing.assert_close(compute_saliency(model, images(), TARGETS, method), expected)


@pytest.mark.parametrize("method", REFERENCES)
def test_cam_methods_at_a_named_layer(method):
    model, kept = resnet_classifier(), {}
    layer = model.resnet.encoder.stages[0]
    handle = layer.register_forward_hook(lambda module, inputs, output: kept.update(a=output))
    logits = model(images()).logits
    handle.remove()
    (gradient,) = torch.autograd.grad(logits.gather(1, TARGETS[:, None]).sum(), kept["a"])
    expected = torch.stack([REFERENCES[method](a, g) for a, g in zip(kept["a"], gradient, strict=True)])
    maps = compute_saliency(model, images(), TARGETS, method, layers=["resnet.encoder.stages.0"])
    torch.testing.assert_close(maps, expected)


def test_cam_is_the_classifier_s_weights():
    model = resnet_classifier()
    features = model.resnet(images()).last_hidden_state
    weights = model.classifier[1].weight[TARGETS]
    expected = torch.einsum("bc,bchw->bhw", weights, features).clamp(min=0)
    torch.testing.assert_close(compute_saliency(model, images(), TARGETS, "cam"), expected)


def test_cam_of_our_head_has_the_weights_of_the_averages():
    model = sharp_model()
    output = model(images())
    weight = model.classifier.weight[TARGETS]
    pooled = torch.cat([output.feature_map, output.saliency], dim=1)
    expected = torch.einsum("bc,bchw->bhw", weight[:, :17], pooled).clamp(min=0)
    torch.testing.assert_close(compute_saliency(model, images(), TARGETS, "cam"), expected)


def test_cam_needs_averaged_features():
    with pytest.raises(ValueError, match="CAM needs a layer that is averaged"):
        compute_saliency(vit_classifier(), images(), TARGETS, "cam")


def test_transformers_are_seen_at_the_deepest_cells_that_matter():
    """Behind the last attention of a ViT only the class token is read, so its map is the block before."""
    model = vit_classifier()
    by_default = compute_saliency(model, images(), TARGETS, "gradcam")
    assert by_default.shape == (3, 4, 8) and by_default.max() > 0
    named = compute_saliency(model, images(), TARGETS, "gradcam", layers=["vit.layers.0"])
    torch.testing.assert_close(by_default, named)
    square = images(64, 64)
    assert compute_saliency(swin_classifier(), square, TARGETS).shape == (3, 8, 8)


@pytest.mark.parametrize("method", [method for method in METHODS if method != "cam"])
@pytest.mark.parametrize("make", [resnet_classifier, vit_classifier])
def test_every_method_on_models_of_transformers(method, make):
    maps = compute_saliency(make(), images(), TARGETS, method)
    assert not maps.requires_grad
    assert maps.min() >= 0 and maps.max() > 0  # an image's own Grad-CAM may be empty


def test_several_layers_are_fused_at_the_finest():
    model, names = resnet_classifier(), ["resnet.encoder.stages.0", "resnet.encoder.stages.1"]
    fused = compute_saliency(model, images(), TARGETS, layers=names)
    each = [compute_saliency(model, images(), TARGETS, layers=[name]) for name in names]
    fine, coarse = (one / one.amax(dim=(1, 2), keepdim=True) for one in each)
    enlarged = F.interpolate(coarse[:, None], size=fine.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(fused, torch.maximum(fine, enlarged))


def test_fuse_by_hand():
    maps = [torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[5.0]]]), torch.zeros(1, 1, 1)]
    assert fuse(maps).tolist() == [[[1.0, 1.0]]]
    assert fuse(maps[:1])[0] is not None and fuse(maps[:1]).tolist() == [[[2.0, 0.0]]]


@pytest.mark.parametrize("make", [resnet_classifier, sharp_model])
def test_full_gradients_add_up_to_the_score(make):
    """Proposition 1 of Srinivas and Fleuret 2019: input term plus bias terms is the score."""
    model, terms = make(), []
    full_gradients(model, images(), TARGETS, lambda g, factor: terms.append((g * factor).flatten(1).sum(dim=1)))
    score = model(images()).logits.gather(1, TARGETS[:, None])[:, 0]
    torch.testing.assert_close(sum(terms), score)
    assert not torch.allclose(terms[-1], score, rtol=0.1)  # the biases do matter here


def test_full_grad_is_the_paper_s_map():
    """The published post-processing, term by term and channel by channel."""
    model, terms = resnet_classifier(), []
    full_gradients(model, images(), TARGETS, lambda gradient, factor: terms.append(gradient * factor))
    expected = torch.zeros(3, 32, 64, dtype=torch.float64)
    for term in terms:
        if term.dim() == 4:
            magnitude = term.abs()
            low, high = (magnitude.flatten(1).aminmax(dim=1)[i].view(-1, 1, 1, 1) for i in (0, 1))
            scaled = (magnitude - low) / (high - low + 1e-6)
            expected += F.interpolate(scaled, size=(32, 64), mode="bilinear", align_corners=True).sum(dim=1)
    torch.testing.assert_close(compute_saliency(model, images(), TARGETS, "fullgrad"), expected)


def test_input_gradients_by_autograd():
    model, pixels = resnet_classifier(), images().requires_grad_()
    (gradient,) = torch.autograd.grad(model(pixels).logits.gather(1, TARGETS[:, None]).sum(), pixels)
    torch.testing.assert_close(
        compute_saliency(model, images(), TARGETS, "inputgrad"), gradient.abs().max(dim=1).values
    )


def test_smooth_grad_averages_and_repeats_itself():
    model = resnet_classifier()
    maps = compute_saliency(model, images(), TARGETS, "smoothgrad")
    torch.testing.assert_close(compute_saliency(model, images(), TARGETS, "smoothgrad"), maps, rtol=0, atol=0)
    alone = compute_saliency(model, images()[1:2], TARGETS[1:2], "smoothgrad")
    torch.testing.assert_close(alone[0], maps[1])


def test_integrated_gradients_add_up_to_the_score_s_difference():
    model = resnet_classifier()
    total = integrated_gradients(model, images(), TARGETS, steps=400).flatten(1).sum(dim=1)
    scores = model(torch.cat([images(), torch.zeros(1, 3, 32, 64, dtype=torch.float64)])).logits
    difference = scores[:3].gather(1, TARGETS[:, None])[:, 0] - scores[3, TARGETS]
    torch.testing.assert_close(total, difference, rtol=1e-2, atol=1e-3)


class Logits(nn.Module):
    """What captum wants: a model that returns a tensor."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values).logits


def test_agreement_with_captum():
    attr = pytest.importorskip("captum.attr")
    model = resnet_classifier()
    wrapped, layer = Logits(model), model.resnet.encoder.stages[0]
    saliency = attr.Saliency(wrapped).attribute(images(), target=TARGETS)
    torch.testing.assert_close(compute_saliency(model, images(), TARGETS, "inputgrad"), saliency.amax(dim=1))
    grad_cam = attr.LayerGradCam(wrapped, layer).attribute(images(), target=TARGETS, relu_attributions=True)
    ours = compute_saliency(model, images(), TARGETS, "gradcam", layers=["resnet.encoder.stages.0"])
    torch.testing.assert_close(ours, grad_cam[:, 0])
    integrated = attr.IntegratedGradients(wrapped).attribute(
        images(), target=TARGETS, n_steps=32, method="riemann_middle"
    )
    torch.testing.assert_close(integrated_gradients(model, images(), TARGETS, steps=32), integrated)


@pytest.mark.parametrize("method", METHODS)
def test_no_trace_is_left(method):
    model = sharp_model().train()
    model.backbone.eval()  # a mixture of modes is kept as it is
    model.saliency_head.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())

    def facts():
        return (
            [module.training for module in model.modules()],
            [len(module._forward_hooks) for module in model.modules()],
            [(parameter.requires_grad, parameter.grad is None) for parameter in model.parameters()],
        )

    expected, with_gradients = facts(), torch.is_grad_enabled()
    with torch.no_grad():  # a caller's no_grad does not get in the way
        compute_saliency(model, images(), TARGETS, method)
    compute_saliency(model, images(), TARGETS, method)
    with pytest.raises((RuntimeError, ValueError)):
        compute_saliency(model, torch.zeros(3, 5, 32, 64), TARGETS, method)
    with pytest.raises((RuntimeError, ValueError)):
        compute_saliency(resnet_classifier(), torch.zeros(3, 5, 32, 64), TARGETS, "layercam", ["resnet.encoder"])
    assert facts() == expected and torch.is_grad_enabled() == with_gradients
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("method", METHODS)
def test_a_batch_is_its_images_one_by_one(method):
    model = sharp_model()
    together = compute_saliency(model, images(), TARGETS, method)
    for index in range(3):
        alone = compute_saliency(model, images()[index : index + 1], TARGETS[index : index + 1], method)
        torch.testing.assert_close(alone[0], together[index])


@pytest.mark.parametrize("method", METHODS)
def test_half_precision(method):
    model = sharp_model().float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        maps = compute_saliency(model, images().float(), TARGETS, method)
    exact = compute_saliency(model, images().float(), TARGETS, method)
    assert maps.dtype == torch.float32 and maps.isfinite().all()
    assert torch.corrcoef(torch.stack([maps.flatten(), exact.flatten()]))[0, 1] > 0.8


@pytest.mark.parametrize("method", METHODS)
def test_the_predicted_class_is_the_default_target(method):
    model = sharp_model()
    predicted = model(images()).logits.argmax(dim=1)
    by_default = compute_saliency(model, images(), method=method)
    if method not in ("smoothgrad", "integrated_gradients"):  # these predict anew for each changed image
        torch.testing.assert_close(by_default, compute_saliency(model, images(), predicted, method))


class Turning(nn.Module):
    """A backbone that turns with the image: 1 x 1 and average pooling only."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 1).double()

    def forward(self, pixel_values, output_hidden_states=False):
        from transformers.modeling_outputs import BackboneOutput

        return BackboneOutput(feature_maps=(F.avg_pool2d(self.conv(pixel_values).relu(), 8),))


@pytest.mark.parametrize("method", [method for method in METHODS if method != "smoothgrad"])  # its noise does not turn
@pytest.mark.parametrize("dims", [(-1,), (-2,), (-1, -2)])
def test_maps_turn_with_the_image(method, dims):
    torch.manual_seed(0)
    model = sharp_model()
    model.backbone = Turning()
    maps = compute_saliency(model, images(), TARGETS, method)
    turned = compute_saliency(model, images().flip(dims), TARGETS, method)
    torch.testing.assert_close(turned, maps.flip(dims))


def test_layer_cam_where_h_peaks_in_a_cell_where_channels_peak():
    model = tiny_model()
    features = torch.zeros(1, 16, 2, 2)
    features[0, 0, 1, 1] = 2.0
    features[0, 1, 0, 0] = 1.0
    with torch.no_grad():
        model.saliency_head.weight.zero_()
        model.saliency_head.weight[0, 0] = 1.0
        model.saliency_head.weight[0, 1] = 0.5
        model.classifier.weight.zero_()
        model.classifier.weight[1, 17 + 0] = 3.0  # max of channel 0
        model.classifier.weight[1, 17 + 16] = 5.0  # max of H
    saliency = model.saliency_head(features)
    maps = layer_cam(model, features, saliency, torch.tensor([1]))
    # Channel 0 at its and H's common peak: (3 + 5 * 1) * 2; channel 1 is zero there and has no weight at its own peak.
    torch.testing.assert_close(maps, torch.tensor([[[0.0, 0.0], [0.0, 16.0]]]))


def test_layer_cam_can_be_trained_through():
    model = tiny_model().double()
    features = torch.rand(2, 16, 3, 4, dtype=torch.float64, requires_grad=True)
    maps = layer_cam(model, features, model.saliency_head(features), torch.tensor([1, 2]))
    maps.sum().backward()
    assert features.grad.abs().sum() > 0 and model.classifier.weight.grad.abs().sum() > 0


def test_layers_with_maps():
    names = spatial_layers(resnet_classifier(), images())
    assert names[-1] == "resnet.encoder" or names[-1].startswith("resnet")
    assert "resnet.encoder.stages.0" in names and "classifier" not in names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "magic"}, "'magic': choose one of cam, gradcam"),
        ({"method": "fullgrad", "layers": ["resnet"]}, "layers are for the CAM methods"),
        ({"targets": torch.tensor([0, 1, 3])}, r"0\.\.2, got \[0, 1, 3\]"),
        ({"targets": torch.tensor([0, -1, 2])}, r"0\.\.2, got \[0, -1, 2\]"),
        ({"layers": ["resnet.top"]}, r"no layer resnet\.top; the layers with maps are .*resnet\.encoder\.stages\.1"),
        ({"layers": ["resnet.pooler"]}, "'resnet.pooler' gives .* which is no map"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        compute_saliency(resnet_classifier(), images(), **arguments)


def test_a_model_without_maps_is_refused():
    class Flat(nn.Module):
        config = ResNetConfig(num_labels=3)

        def forward(self, pixel_values, output_hidden_states=False):
            from transformers.modeling_outputs import ImageClassifierOutput

            flat = pixel_values.mean(dim=(2, 3))
            return ImageClassifierOutput(logits=flat, hidden_states=(flat,))

    with pytest.raises(ValueError, match="Flat has no hidden state that is a map"):
        compute_saliency(Flat(), images(), TARGETS)


def test_to_uint8_scales_each_map_by_its_own_peak():
    maps = torch.tensor([[[0.0, 1.0], [2.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert to_uint8(maps).tolist() == [[[0, 64], [128, 255]], [[0, 0], [0, 0]]]
    with pytest.raises(ValueError, match=r"hold NaN or infinity: number 1 of the batch"):
        to_uint8(torch.stack([maps[0], maps[0] * np.nan]))


def test_maps_on_another_grid():
    fine = torch.arange(16.0).view(1, 4, 4)
    assert to_grid(fine, (2, 2)).tolist() == [[[2.5, 4.5], [10.5, 12.5]]]
    assert to_grid(fine, (4, 4)) is fine
    coarse = torch.tensor([[[0.0, 1.0]]])
    torch.testing.assert_close(to_grid(coarse, (2, 4)), torch.tensor([[[0, 0.25, 0.75, 1]] * 2]).view(1, 2, 4))


@pytest.mark.parametrize("pooling", ["attention", "topk", "saliency"])
@pytest.mark.parametrize("method", ["layercam", "gradcam", "hirescam"])
def test_other_heads_are_looked_through_backwards(pooling, method):
    model = tiny_model(pooling=pooling).double()
    by_layer = compute_saliency(model, images(), TARGETS, method, ["backbone.encoder.stages.2"])
    torch.testing.assert_close(compute_saliency(model, images(), TARGETS, method), by_layer)
    if method == "layercam":
        output = model(images())
        torch.testing.assert_close(layer_cam(model, output.feature_map, output.saliency, TARGETS), by_layer)
    with pytest.raises(ValueError, match="CAM needs a layer that is averaged"):
        compute_saliency(model, images(), TARGETS, "cam")
    with pytest.raises(ValueError, match="'backbone' gives a BackboneOutput, which is no map"):
        compute_saliency(model, images(), TARGETS, method, ["backbone"])
