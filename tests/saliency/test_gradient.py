"""FullGrad and the methods on pixel gradients against their papers' formulas and captum."""

import pytest
import torch
from saliency_models import TARGETS, images, resnet_classifier, sharp_model
from torch import nn
from torch.nn import functional as F

from kgl.saliency.compute import compute_saliency
from kgl.saliency.fullgrad import full_gradients
from kgl.saliency.gradient import integrated_gradients


@pytest.mark.parametrize("make", [resnet_classifier, sharp_model])
def test_full_gradients_sum_to_score(make):
    """Proposition 1 of Srinivas and Fleuret 2019: the input term plus the bias terms is the score."""
    model, terms = make(), []
    full_gradients(model, images(), TARGETS, lambda g, factor: terms.append((g * factor).flatten(1).sum(dim=1)))
    score = model(images()).logits.gather(1, TARGETS[:, None])[:, 0]
    torch.testing.assert_close(sum(terms), score)
    assert not torch.allclose(terms[-1], score, rtol=0.1)  # the biases matter here


def test_fullgrad_follows_paper():
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


def test_inputgrad_is_autograd_of_logit():
    model, pixels = resnet_classifier(), images().requires_grad_()
    (gradient,) = torch.autograd.grad(model(pixels).logits.gather(1, TARGETS[:, None]).sum(), pixels)
    torch.testing.assert_close(
        compute_saliency(model, images(), TARGETS, "inputgrad"), gradient.abs().max(dim=1).values
    )


def test_smoothgrad_is_reproducible():
    model = resnet_classifier()
    maps = compute_saliency(model, images(), TARGETS, "smoothgrad")
    torch.testing.assert_close(compute_saliency(model, images(), TARGETS, "smoothgrad"), maps, rtol=0, atol=0)
    alone = compute_saliency(model, images()[1:2], TARGETS[1:2], "smoothgrad")
    torch.testing.assert_close(alone[0], maps[1])


def test_integrated_gradients_sum_to_difference_of_scores():
    model = resnet_classifier()
    total = integrated_gradients(model, images(), TARGETS, steps=400).flatten(1).sum(dim=1)
    scores = model(torch.cat([images(), torch.zeros(1, 3, 32, 64, dtype=torch.float64)])).logits
    difference = scores[:3].gather(1, TARGETS[:, None])[:, 0] - scores[3, TARGETS]
    torch.testing.assert_close(total, difference, rtol=1e-2, atol=1e-3)


class Logits(nn.Module):
    """A model that returns its logits as a tensor, as captum expects."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, pixel_values):
        return self.model(pixel_values).logits


def test_agreement_with_captum():
    attr = pytest.importorskip("captum.attr")
    model = resnet_classifier()
    wrapped, layer = Logits(model), model.resnet.encoder.stages[0]
    saliency = attr.Saliency(wrapped).attribute(images().requires_grad_(), target=TARGETS)
    torch.testing.assert_close(compute_saliency(model, images(), TARGETS, "inputgrad"), saliency.amax(dim=1))
    grad_cam = attr.LayerGradCam(wrapped, layer).attribute(images(), target=TARGETS, relu_attributions=True)
    ours = compute_saliency(model, images(), TARGETS, "gradcam", layers=["resnet.encoder.stages.0"])
    torch.testing.assert_close(ours, grad_cam[:, 0])
    integrated = attr.IntegratedGradients(wrapped).attribute(
        images(), target=TARGETS, n_steps=32, method="riemann_middle"
    )
    torch.testing.assert_close(integrated_gradients(model, images(), TARGETS, steps=32), integrated)
