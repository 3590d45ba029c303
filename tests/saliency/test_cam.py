"""CAM methods against references written from their papers' formulas."""

import pytest
import torch
from saliency_models import TARGETS, images, resnet_classifier, sharp_model, swin_classifier, vit_classifier
from tiny import TINY_BACKBONES, tiny_model
from torch.nn import functional as F

from kgl.saliency.cam import layer_cam
from kgl.saliency.compute import compute_saliency


# References for one activation `a (C, h, w)` and gradient `g` of the same shape.
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
def test_cam_methods_on_kgl_model(method, backbone):
    model = sharp_model(backbone)
    output = model(images())
    score = output.logits.gather(1, TARGETS[:, None]).sum()
    (gradient,) = torch.autograd.grad(score, output.feature_maps)
    expected = torch.stack([REFERENCES[method](a, g) for a, g in zip(output.feature_maps[0], gradient, strict=True)])
    assert expected.max() > 1e-3
    torch.testing.assert_close(compute_saliency(model, images(), TARGETS, method), expected)


@pytest.mark.parametrize("method", REFERENCES)
def test_cam_methods_at_named_layer(method):
    model, kept = resnet_classifier(), {}
    layer = model.resnet.encoder.stages[0]
    handle = layer.register_forward_hook(lambda module, inputs, output: kept.update(a=output))
    logits = model(images()).logits
    handle.remove()
    (gradient,) = torch.autograd.grad(logits.gather(1, TARGETS[:, None]).sum(), kept["a"])
    expected = torch.stack([REFERENCES[method](a, g) for a, g in zip(kept["a"], gradient, strict=True)])
    maps = compute_saliency(model, images(), TARGETS, method, layers=["resnet.encoder.stages.0"])
    torch.testing.assert_close(maps, expected)


def test_cam_uses_classifier_weights():
    model = resnet_classifier()
    features = model.resnet(images()).last_hidden_state
    weights = model.classifier[1].weight[TARGETS]
    expected = torch.einsum("bc,bchw->bhw", weights, features).clamp(min=0)
    torch.testing.assert_close(compute_saliency(model, images(), TARGETS, "cam"), expected)


def test_cam_of_kgl_head_uses_weights_of_averages():
    model = sharp_model()
    output = model(images())
    weight = model.classifier.weight[TARGETS]
    pooled = torch.cat([*output.feature_maps, output.saliency], dim=1)
    expected = torch.einsum("bc,bchw->bhw", weight[:, :17], pooled).clamp(min=0)
    torch.testing.assert_close(compute_saliency(model, images(), TARGETS, "cam"), expected)


def test_cam_requires_averaged_features():
    with pytest.raises(ValueError, match="CAM needs a layer that is average-pooled"):
        compute_saliency(vit_classifier(), images(), TARGETS, "cam")


def test_default_layer_of_transformers():
    """Behind the last attention of a ViT only the class token counts, so the map is that of the block before."""
    model = vit_classifier()
    by_default = compute_saliency(model, images(), TARGETS, "gradcam")
    assert by_default.shape == (3, 4, 8) and by_default.max() > 0
    named = compute_saliency(model, images(), TARGETS, "gradcam", layers=["vit.layers.0"])
    torch.testing.assert_close(by_default, named)
    square = images(64, 64)
    assert compute_saliency(swin_classifier(), square, TARGETS).shape == (3, 8, 8)


def test_several_layers_are_fused_on_finest_grid():
    model, names = resnet_classifier(), ["resnet.encoder.stages.0", "resnet.encoder.stages.1"]
    fused = compute_saliency(model, images(), TARGETS, layers=names)
    each = [compute_saliency(model, images(), TARGETS, layers=[name]) for name in names]
    fine, coarse = (one / one.amax(dim=(1, 2), keepdim=True) for one in each)
    enlarged = F.interpolate(coarse[:, None], size=fine.shape[1:], mode="bilinear", align_corners=False)[:, 0]
    torch.testing.assert_close(fused, torch.maximum(fine, enlarged))


def test_layer_cam_where_h_and_a_channel_peak_in_the_same_cell():
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
    maps = layer_cam(model, (features,), saliency, torch.tensor([1]))
    # Channel 0 at its and H's common peak: (3 + 5 * 1) * 2; channel 1 is zero there and has no weight at its own peak.
    torch.testing.assert_close(maps, torch.tensor([[[0.0, 0.0], [0.0, 16.0]]]))


def test_layer_cam_is_differentiable():
    model = tiny_model().double()
    features = torch.rand(2, 16, 3, 4, dtype=torch.float64, requires_grad=True)
    maps = layer_cam(model, (features,), model.saliency_head(features), torch.tensor([1, 2]))
    maps.sum().backward()
    assert features.grad.abs().sum() > 0 and model.classifier.weight.grad.abs().sum() > 0


def test_layer_without_a_spatial_map_is_named():
    with pytest.raises(ValueError, match="'backbone' returns a BackboneOutput, which is not a spatial map"):
        compute_saliency(tiny_model().double(), images(), TARGETS, "gradcam", ["backbone"])
