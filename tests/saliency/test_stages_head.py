"""Saliency methods on the head `stages`, whose classifier pools several maps."""

import pytest
import torch
from saliency_models import TARGETS, images
from tiny import stages_model

from kgl.saliency.cam import layer_cam
from kgl.saliency.compute import compute_saliency
from kgl.saliency.maps import fuse
from kgl.saliency.methods import CAM_METHODS, METHODS


def gradients(model, maps):
    """Return the gradient of the targets' logits with respect to each map."""
    maps = tuple(one.detach().requires_grad_() for one in maps)
    logits, _ = model.classify(maps)
    return torch.autograd.grad(logits.gather(1, TARGETS[:, None]).sum(), maps)


def test_class_maps_are_those_of_each_stage_fused():
    model = stages_model().double()
    output = model(images(64, 64))
    maps = [one.detach() for one in output.feature_maps]
    pairs = list(zip(maps, gradients(model, maps), strict=True))
    layercam = fuse([(gradient.clamp(min=0) * one).sum(dim=1).clamp(min=0) for one, gradient in pairs])
    assert layercam.max() == 1 and layercam.shape == (3, 8, 8)
    torch.testing.assert_close(compute_saliency(model, images(64, 64), TARGETS, "layercam"), layercam)
    torch.testing.assert_close(layer_cam(model, output.feature_maps, output.saliency, TARGETS), layercam)
    hirescam = fuse([(gradient * one).sum(dim=1).clamp(min=0) for one, gradient in pairs])
    torch.testing.assert_close(compute_saliency(model, images(64, 64), TARGETS, "hirescam"), hirescam)
    means = [gradient.mean(dim=(2, 3), keepdim=True) for _, gradient in pairs]
    gradcam = fuse([(mean * one).sum(dim=1).clamp(min=0) for mean, (one, _) in zip(means, pairs, strict=True)])
    torch.testing.assert_close(compute_saliency(model, images(64, 64), TARGETS, "gradcam"), gradcam)


@pytest.mark.parametrize("tuned_stage", [False, True])
def test_cam_uses_the_weights_of_the_averages(tuned_stage):
    model = stages_model(tuned_stage=tuned_stage).double()
    maps = model(images(64, 64)).feature_maps
    weight = model.classifier.weight[TARGETS]
    starts = (0, 24, 56)  # average and maximum of 12, 16 and 20 channels
    averages = [weight[:, start : start + one.shape[1]] for start, one in zip(starts, maps, strict=True)]
    if tuned_stage:  # its 16 channels and H are pooled by a classifier of their own
        features = model.tuned.stage(maps[0])
        maps = (*maps, torch.cat([features, model.tuned.saliency_head(features)], dim=1))
        averages.append(model.tuned.classifier.weight[TARGETS, :17])
    expected = fuse(
        [torch.einsum("bc,bchw->bhw", mean, one).clamp(min=0) for mean, one in zip(averages, maps, strict=True)]
    )
    torch.testing.assert_close(compute_saliency(model, images(64, 64), TARGETS, "cam"), expected)


@pytest.mark.parametrize("tuned_stage", [False, True])
@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_map(method, tuned_stage):
    model = stages_model(tuned_stage=tuned_stage).double()
    maps = compute_saliency(model, images(64, 64), TARGETS, method)
    assert maps.shape == ((3, 8, 8) if method in CAM_METHODS else (3, 64, 64))
    assert maps.isfinite().all() and (maps >= 0).all() and (maps.amax(dim=(1, 2)) > 0).all()
    other = compute_saliency(model, images(64, 64), (TARGETS + 1) % 3, method)
    assert not torch.allclose(maps, other)


def test_class_map_in_mixed_precision_and_without_gradients():
    model, pixel_values = stages_model(), images(64, 64).float()
    expected = compute_saliency(model, pixel_values, TARGETS)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        output = model(pixel_values)
        mixed = layer_cam(model, output.feature_maps, output.saliency, TARGETS)
    # Rounding changes which stored cell is the nearest to a few of the cells.
    assert mixed.dtype == torch.float32 and (mixed - expected).abs().median() < 0.01
    assert ((mixed - expected).abs() > 0.1).double().mean() < 0.05
    assert all(parameter.grad is None for parameter in model.parameters())
