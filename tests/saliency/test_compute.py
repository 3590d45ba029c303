"""Properties of every saliency method: batches, precision, side effects, refusals."""

import copy

import numpy as np
import pytest
import torch
from saliency_models import TARGETS, images, resnet_classifier, sharp_model, vit_classifier
from torch import nn
from torch.nn import functional as F
from transformers import ResNetConfig
from transformers.modeling_outputs import BackboneOutput, ImageClassifierOutput

from kgl.saliency.activations import spatial_layers
from kgl.saliency.compute import compute_saliency
from kgl.saliency.methods import METHODS


@pytest.mark.parametrize("method", [method for method in METHODS if method != "cam"])
@pytest.mark.parametrize("make", [resnet_classifier, vit_classifier])
def test_methods_on_transformers_models(method, make):
    maps = compute_saliency(make(), images(), TARGETS, method)
    assert not maps.requires_grad
    assert maps.min() >= 0 and maps.max() > 0  # Grad-CAM of one image may be empty


@pytest.mark.parametrize("method", METHODS)
def test_model_is_left_unchanged(method):
    model = sharp_model().train()
    model.backbone.eval()  # a mixture of modes is kept
    model.saliency_head.requires_grad_(False)
    before = copy.deepcopy(model.state_dict())

    def state():
        return (
            [module.training for module in model.modules()],
            [len(module._forward_hooks) for module in model.modules()],
            [(parameter.requires_grad, parameter.grad is None) for parameter in model.parameters()],
        )

    expected, with_gradients = state(), torch.is_grad_enabled()
    with torch.no_grad():  # must not disturb the backward passes
        compute_saliency(model, images(), TARGETS, method)
    compute_saliency(model, images(), TARGETS, method)
    with pytest.raises((RuntimeError, ValueError)):
        compute_saliency(model, torch.zeros(3, 5, 32, 64), TARGETS, method)
    with pytest.raises((RuntimeError, ValueError)):
        compute_saliency(resnet_classifier(), torch.zeros(3, 5, 32, 64), TARGETS, "layercam", ["resnet.encoder"])
    assert state() == expected and torch.is_grad_enabled() == with_gradients
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("method", METHODS)
def test_maps_do_not_depend_on_the_batch(method):
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
def test_default_target_is_the_predicted_class(method):
    model = sharp_model()
    predicted = model(images()).logits.argmax(dim=1)
    by_default = compute_saliency(model, images(), method=method)
    if method not in ("smoothgrad", "integrated_gradients"):  # these predict a class for each changed image
        torch.testing.assert_close(by_default, compute_saliency(model, images(), predicted, method))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(
    "targets",
    [
        [0, 1, 2],
        (0, 1, 2),
        np.array([0, 1, 2]),
        TARGETS[:, None],
        TARGETS.double(),
        TARGETS.int(),
        np.eye(3)[:, 1:] @ [1, 2],
        np.array([0, 1, 2], dtype=np.uint16),
    ],
    ids=["list", "tuple", "numpy", "column", "float", "int32", "float_numpy", "uint16"],
)
def test_forms_of_targets(method, targets):
    model = sharp_model()
    expected = compute_saliency(model, images(), TARGETS, method)
    torch.testing.assert_close(compute_saliency(model, images(), targets, method), expected, rtol=0, atol=0)


@pytest.mark.parametrize("method", METHODS)
def test_one_target_is_for_all_images(method):
    model = sharp_model()
    expected = compute_saliency(model, images(), torch.ones(3, dtype=torch.long), method)
    for one in (1, 1.0, np.int64(1), torch.tensor(1)):
        torch.testing.assert_close(compute_saliency(model, images(), one, method), expected, rtol=0, atol=0)


@pytest.mark.parametrize("make", [resnet_classifier, vit_classifier])
def test_default_layer_is_found_once_and_cuts_the_graph(make):
    model, tracked = make(), []
    first = compute_saliency(model, images(), TARGETS)
    embedding = next(
        module for name, module in model.named_modules() if name.endswith("embeddings") or "embedder" in name
    )
    embedding.register_forward_hook(lambda module, inputs, output: tracked.append(output.requires_grad))
    torch.testing.assert_close(compute_saliency(model, images(), TARGETS), first)
    assert tracked == [False]  # one forward pass, and no graph below the default layer


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("make", [resnet_classifier, sharp_model])
def test_inside_inference_mode(make, method):
    model = make()
    expected = compute_saliency(model, images(), TARGETS, method)
    with torch.inference_mode():
        found = compute_saliency(model, images() * 1, TARGETS * 1, method)
    torch.testing.assert_close(found, expected)


class EquivariantBackbone(nn.Module):
    """A backbone of a 1 x 1 convolution and average pooling, whose maps flip with the image."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 1).double()

    def forward(self, pixel_values, output_hidden_states=False):
        return BackboneOutput(feature_maps=(F.avg_pool2d(self.conv(pixel_values).relu(), 8),))


@pytest.mark.parametrize("method", [method for method in METHODS if method != "smoothgrad"])  # its noise does not flip
@pytest.mark.parametrize("dims", [(-1,), (-2,), (-1, -2)])
def test_maps_flip_with_the_image(method, dims):
    torch.manual_seed(0)
    model = sharp_model()
    model.backbone = EquivariantBackbone()
    maps = compute_saliency(model, images(), TARGETS, method)
    flipped = compute_saliency(model, images().flip(dims), TARGETS, method)
    torch.testing.assert_close(flipped, maps.flip(dims))


def test_spatial_layers():
    names = spatial_layers(resnet_classifier(), images())
    assert names[-1] == "resnet.encoder" or names[-1].startswith("resnet")
    assert "resnet.encoder.stages.0" in names and "classifier" not in names


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "magic"}, "'magic': choose one of cam, gradcam"),
        ({"method": "fullgrad", "layers": ["resnet"]}, "layers are for the CAM methods"),
        ({"layers": "resnet"}, "give a list of module names"),
        ({"targets": torch.tensor([0, 1, 3])}, r"0\.\.2, got \[0, 1, 3\]"),
        ({"targets": torch.tensor([0, -1, 2])}, r"0\.\.2, got \[0, -1, 2\]"),
        (
            {"targets": torch.tensor([0, 1])},
            r"targets of shape \(2,\) for 3 images: give one class index for all or one",
        ),
        ({"targets": [1]}, r"targets of shape \(1,\) for 3 images"),
        ({"targets": np.zeros((1, 3))}, r"targets of shape \(1, 3\) for 3 images"),
        ({"targets": torch.tensor([0.0, 1.5, 2.0])}, r"whole numbers, got \[0\.0, 1\.5, 2\.0\]"),
        ({"targets": 3}, r"0\.\.2, got 3"),
        ({"targets": "scratch"}, r"whole numbers, got 'scratch'"),
        ({"targets": [None, 0, 1]}, r"whole numbers, got \[None, 0, 1\]"),
        ({"layers": ["resnet.top"]}, r"no layer resnet\.top; .*spatial maps: .*resnet\.encoder\.stages\.1"),
        ({"layers": ["resnet.pooler"]}, "'resnet.pooler' returns shape .* not a spatial map"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        compute_saliency(resnet_classifier(), images(), **arguments)


def test_model_without_spatial_maps_is_refused():
    class Flat(nn.Module):
        config = ResNetConfig(num_labels=3)

        def forward(self, pixel_values, output_hidden_states=False):
            flat = pixel_values.mean(dim=(2, 3))
            return ImageClassifierOutput(logits=flat, hidden_states=(flat,))

    with pytest.raises(ValueError, match="Flat has no hidden state that is a spatial map"):
        compute_saliency(Flat(), images(), TARGETS)
