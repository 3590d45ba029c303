"""Closed-form maps against autograd."""

import pytest
import torch
from tiny import TINY_BACKBONES, tiny_model

from kgl.saliency import compute_saliency, layer_cam, to_uint8


def layer_cam_by_autograd(model, pixel_values, targets):
    """Equation 3 and 4 of Jiang et al. 2021, by a backward pass."""
    output = model(pixel_values)
    logits = output.logits.gather(1, targets[:, None]).sum()
    (gradient,) = torch.autograd.grad(logits, output.feature_map)
    return torch.relu((torch.relu(gradient) * output.feature_map).sum(dim=1))


@pytest.mark.parametrize("backbone", TINY_BACKBONES)
def test_layer_cam_is_the_autograd_layer_cam(backbone):
    model = tiny_model(backbone).double()
    with torch.no_grad():  # weights large enough that every term of the gradient matters
        model.classifier.weight.normal_()
        model.saliency_head.weight.normal_()
    pixel_values = torch.randn(5, 3, 32, 64, dtype=torch.float64)
    targets = torch.tensor([0, 1, 2, 1, 0])
    expected = layer_cam_by_autograd(model, pixel_values, targets)
    maps = compute_saliency(model, pixel_values, targets)
    assert expected.max() > 0.1
    torch.testing.assert_close(maps, expected)


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


def test_layer_cam_has_gradients():
    model = tiny_model().double()
    features = torch.rand(2, 16, 3, 4, dtype=torch.float64, requires_grad=True)
    maps = layer_cam(model, features, model.saliency_head(features), torch.tensor([1, 2]))
    maps.sum().backward()
    assert features.grad.abs().sum() > 0 and model.classifier.weight.grad.abs().sum() > 0


def test_saliency_turns_with_the_image():
    model = tiny_model().double()
    features = torch.rand(2, 16, 3, 4, dtype=torch.float64)
    targets = torch.tensor([1, 2])
    maps = layer_cam(model, features, model.saliency_head(features), targets)
    flipped = features.flip(-1)
    torch.testing.assert_close(layer_cam(model, flipped, model.saliency_head(flipped), targets), maps.flip(-1))


def test_the_predicted_class_is_the_default_target():
    model, pixel_values = tiny_model(), torch.randn(4, 3, 32, 32)
    predicted = model(pixel_values).logits.argmax(dim=1)
    assert torch.equal(compute_saliency(model, pixel_values), compute_saliency(model, pixel_values, predicted))


def test_targets_out_of_range_are_refused():
    with pytest.raises(ValueError, match=r"0\.\.2, got \[0, 3\]"):
        compute_saliency(tiny_model(), torch.randn(2, 3, 32, 32), torch.tensor([0, 3]))


def test_to_uint8_scales_each_map_by_its_own_peak():
    maps = torch.tensor([[[0.0, 1.0], [2.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert to_uint8(maps).tolist() == [[[0, 64], [128, 255]], [[0, 0], [0, 0]]]
