"""Loss terms on tensors small enough to compute by hand."""

import math

import numpy as np
import pytest
import torch
from kornia.losses import focal_loss as kornia_focal_loss
from sklearn.utils.class_weight import compute_class_weight
from tiny import tiny_model

from kgl.errors import InputError
from kgl.knowledge.thresholds import otsu_threshold
from kgl.saliency.cam import layer_cam
from kgl.training.arguments import MAP_OBJECTIVES
from kgl.training.losses import (
    CellBalance,
    balanced_class_weight,
    combined_loss,
    consistency_loss,
    focal_loss,
    guidance_weight,
    pseudo_mask,
    saliency_loss,
)


@pytest.mark.parametrize(
    ("schedule", "weights"),
    [
        ("linear", [0.8, 0.6, 0.4, 0.0]),
        ("cosine", [0.8, 0.6828427, 0.4, 0.0]),
        ("constant", [0.8, 0.8, 0.8, 0.8]),
        ("delayed", [0.0, 0.0, 0.6, 0.0]),
    ],
)
def test_schedules(schedule, weights):
    assert [guidance_weight(schedule, t, start=0.8) for t in (0, 0.25, 0.5, 1)] == pytest.approx(weights)


def test_unknown_schedule_is_refused():
    with pytest.raises(ValueError, match=r"'cubic'.*linear"):
        guidance_weight("cubic", 0.5)


def test_forms():
    loss_kg, loss_cls = torch.tensor(2.0), torch.tensor(3.0)
    assert combined_loss("convex", 0.25, loss_kg, loss_cls) == 0.25 * 2 + 0.75 * 3
    assert combined_loss("additive", 1.5, loss_kg, loss_cls) == 1.5 * 2 + 3
    with pytest.raises(ValueError, match=r"'product'.*additive"):
        combined_loss("product", 0.5, loss_kg, loss_cls)


def test_ignore_band():
    prior = np.array([[0, 100, 120], [140, 200, 255]], dtype=np.uint8)
    threshold = otsu_threshold(prior)
    assert threshold == 140  # {0, 100, 120, 140} and {200, 255}: the middle of the gap is 170
    mask, known = pseudo_mask(prior, threshold, ignore_band=0.15)  # 38.25 to either side
    assert mask.tolist() == [[False, False, False], [False, True, True]]
    assert known.tolist() == [[True, True, True], [False, False, True]]
    assert pseudo_mask(prior, threshold)[1].all()
    for values in ([[0, 0], [0, 0]], [[255, 255], [255, 255]], [[0, 255], [0, 0]]):
        certain = np.array(values, dtype=np.uint8)
        mask, known = pseudo_mask(certain, otsu_threshold(certain), ignore_band=0.4)
        assert known.all() and mask.tolist() == (certain > 0).tolist()


def test_balance_gives_both_kinds_equal_weight():
    targets, all_cells = [np.array([[0, 0], [0, 1]]), np.zeros((2, 2))], [np.ones((2, 2))] * 2
    balance = CellBalance.of(targets, all_cells, [1.0, 1.0])
    assert (balance.negative, balance.positive) == pytest.approx((8 / 14, 4.0))
    assert 7 * balance.negative == pytest.approx(1 * balance.positive)
    assert CellBalance.of(targets[1:], all_cells[1:], [1.0]) == CellBalance(1.0, 1.0)
    assert CellBalance.of(targets, all_cells, [0.0, 1.0]) == CellBalance(1.0, 1.0)
    soft = CellBalance.of([np.array([[0.5, 0.0], [0.0, 0.9]])], [np.array([[1, 1], [1, 0]])], [1.0])
    assert (soft.negative, soft.positive) == pytest.approx((4 / 5, 4))
    assert CellBalance.of(targets[1:], [all_cells[1] * [[1, 0]]], [1.0]) == CellBalance(2.0, 2.0)
    assert CellBalance.of(targets, all_cells, [1.0, 1.0], 3.0) == CellBalance(1.0, 3.0)


@pytest.mark.parametrize("positive_weight", [None, 1.0])
@pytest.mark.parametrize("band", [0.0, 0.15, 0.4])
def test_ignored_cells_do_not_change_the_scale_of_the_loss(band, positive_weight):
    """Logits of 0 have a loss of ln 2, however many cells are ignored."""
    priors = np.random.default_rng(0).integers(0, 256, (5, 4, 6), dtype=np.uint8)
    targets, cells = (
        np.stack(one)
        for one in zip(*(pseudo_mask(prior, otsu_threshold(prior), band) for prior in priors), strict=True)
    )
    assert cells.all() == (band == 0)
    balance = CellBalance.of(targets, cells, [1.0] * 5, positive_weight)
    channels = (torch.from_numpy(one)[:, None].float() for one in (targets, cells))
    loss = saliency_loss(torch.zeros(5, 1, 4, 6), *channels, torch.ones(5), balance)
    assert loss.item() == pytest.approx(math.log(2))


def test_saliency_loss_by_hand():
    saliency = torch.tensor([[[[0.0, 2.0]]], [[[-1.0, 0.0]]]])
    target = torch.tensor([[[[False, True]]], [[[False, False]]]])
    cells, weight = torch.tensor([[[[1.0, 1.0]]], [[[1.0, 0.0]]]]), torch.tensor([1.0, 0.5])
    loss = saliency_loss(saliency, target, cells, weight, CellBalance(negative=2.0, positive=3.0))
    first = (2 * math.log(2) + 3 * math.log(1 + math.exp(-2))) / 2
    second = 2 * math.log(1 + math.exp(-1)) / 2
    assert loss.item() == pytest.approx((first + 0.5 * second) / 2)
    soft = saliency_loss(
        torch.zeros(1, 1, 1, 1), torch.full((1, 1, 1, 1), 0.25), torch.ones(1, 1, 1, 1), torch.ones(1),
        CellBalance(negative=1.0, positive=5.0),
    )  # fmt: skip
    assert soft.item() == pytest.approx(2 * math.log(2))


def test_consistency_loss_by_hand():
    class_map = torch.tensor([[[2.0, 0.0]], [[1.0, 3.0]]])
    prior = torch.tensor([[[[1.0, 1.0]]], [[[0.0, 0.0]]]])  # the second is blank and counts 0
    weight = torch.tensor([0.5, 1.0])
    values = {name: consistency_loss(name, class_map, prior, weight).item() for name in MAP_OBJECTIVES}
    assert values["cosine"] == pytest.approx(0.5 * (1 - 1 / math.sqrt(2)) / 2, rel=1e-4)
    assert values["l2"] == pytest.approx(0.5 * 0.5 / 2)
    one, other = 1 / (1 + 1e-6), 1e-6 / (1 + 1e-6)
    kl = 0.5 * math.log(0.5 / one) + 0.5 * math.log(0.5 / other)
    assert values["kl"] == pytest.approx(0.5 * kl / 2, rel=1e-4)
    for name in MAP_OBJECTIVES:
        alike = consistency_loss(name, prior[:1, 0] * 7, prior[:1], torch.ones(1))
        assert alike.item() == pytest.approx(0, abs=1e-5)  # the scale of a map does not matter
    with pytest.raises(ValueError, match=r"'cos'.*cosine"):
        consistency_loss("cos", class_map, prior, weight)
    with pytest.raises(InputError, match="grid"):
        consistency_loss("l2", class_map, torch.ones(2, 1, 4, 4), weight)


def test_focal_loss_by_hand():
    logits, labels = torch.tensor([[2.0, 0.0, 0.0], [0.0, 0.0, 1.0]]), torch.tensor([0, 1])
    cross_entropy = torch.nn.functional.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(focal_loss(logits, labels, gamma=0), cross_entropy.mean())
    p = (-cross_entropy).exp()
    torch.testing.assert_close(focal_loss(logits, labels), ((1 - p) ** 2 * cross_entropy).mean())
    weight = torch.tensor([1.0, 4.0, 1.0])
    expected = (cross_entropy[0] + 4 * cross_entropy[1]) / 2
    torch.testing.assert_close(focal_loss(logits, labels, 0, weight), expected)
    certain = torch.tensor([[200.0, 0.0]], requires_grad=True)
    focal_loss(certain, torch.tensor([0])).backward()
    assert certain.grad.isfinite().all()


def reference_focal_loss(logits, labels, gamma, class_weight=None):
    """The formula as it was written here before kornia's took its place."""
    log_p = logits.log_softmax(dim=1).gather(1, labels[:, None])[:, 0]
    loss = -((1 - log_p.exp()).clamp(min=0) ** gamma) * log_p
    return (loss if class_weight is None else loss * class_weight[labels]).mean()


@pytest.mark.parametrize("gamma", [0.0, 2.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_focal_loss_and_its_gradient_agree_with_the_formula(gamma, weighted):
    labels = torch.arange(64) % 4
    class_weight = torch.tensor([0.3, 1.0, 2.5, 4.0]) if weighted else None
    results = []
    for loss in (focal_loss, reference_focal_loss):
        logits = (torch.randn(64, 4, generator=torch.Generator().manual_seed(0)) * 5).requires_grad_()
        value = loss(logits, labels, gamma, class_weight)
        value.backward()
        results.append((value, logits.grad))
    torch.testing.assert_close(*results)


def test_focal_loss_is_a_mean_over_images():
    """kornia's own mean is over images and classes."""
    logits, labels = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.arange(6) % 3
    mean = kornia_focal_loss(logits, labels, alpha=None, gamma=2.0, reduction="mean")
    torch.testing.assert_close(focal_loss(logits, labels), 3 * mean)


def test_focal_loss_in_half_precision():
    half = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)).bfloat16()
    labels = torch.arange(6) % 3
    assert focal_loss(half, labels).dtype == torch.float32
    torch.testing.assert_close(focal_loss(half, labels), focal_loss(half.float(), labels), rtol=0, atol=0)


def test_balanced_class_weight():
    labels = [0, 0, 0, 1]
    weight = balanced_class_weight(labels, 2)
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, torch.tensor([4 / 6, 2.0]))
    assert weight[torch.tensor(labels)].mean() == 1


def test_balanced_class_weight_of_absent_class():
    """scikit-learn rejects classes without images; here they count as classes, as in `N / (K count)`."""
    torch.testing.assert_close(balanced_class_weight([0, 0, 2, 2, 2, 2], 4), torch.tensor([0.75, 1.5, 0.375, 1.5]))
    with pytest.raises(ValueError, match="classes should have valid labels"):
        compute_class_weight("balanced", classes=np.arange(4), y=[0, 0, 2, 2, 2, 2])


def test_losses_are_means_over_images():
    torch.manual_seed(0)
    saliency, target, weight = torch.randn(6, 1, 3, 4), torch.rand(6, 1, 3, 4), torch.rand(6)
    cells, balance = (torch.rand(6, 1, 3, 4) > 0.2).float(), CellBalance(0.6, 4.0)
    maps, labels = torch.rand(6, 3, 4), torch.arange(6) % 3
    for loss in (
        lambda rows: saliency_loss(saliency[rows], target[rows], cells[rows], weight[rows], balance),
        lambda rows: consistency_loss("kl", maps[rows], target[rows], weight[rows]),
        lambda rows: focal_loss(maps[rows, 0], labels[rows], class_weight=torch.tensor([1.0, 2.0, 3.0, 4.0])),
    ):
        parts = [loss(slice(start, start + 2)) for start in (0, 2, 4)]
        torch.testing.assert_close(torch.stack(parts).mean(), loss(slice(0, 6)))


def test_gradients_by_finite_differences():
    torch.manual_seed(0)
    saliency = torch.randn(2, 1, 2, 3, dtype=torch.float64, requires_grad=True)
    target, weight = torch.rand(2, 1, 2, 3, dtype=torch.float64), torch.tensor([1.0, 0.3], dtype=torch.float64)
    cells, balance = (torch.rand(2, 1, 2, 3) > 0.3).double(), CellBalance(0.7, 2.0)
    check = torch.autograd.gradcheck
    for one in (target, target > 0.5):
        assert check(lambda logits, one=one: saliency_loss(logits, one, cells, weight, balance), saliency)
    class_map = torch.rand(2, 2, 3, dtype=torch.float64, requires_grad=True)
    for objective in MAP_OBJECTIVES:
        assert check(lambda maps, objective=objective: consistency_loss(objective, maps, target, weight), class_map)
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    class_weight = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    assert check(lambda rows: focal_loss(rows, torch.tensor([0, 1, 2, 1]), 2.0, class_weight), logits)


@pytest.mark.parametrize("objective", MAP_OBJECTIVES)
def test_map_objectives_are_differentiable(objective):
    """Through the closed-form LayerCAM down to the features, by finite differences."""
    model = tiny_model("resnet").double()
    with torch.no_grad():
        model.classifier.weight.mul_(30)
    torch.manual_seed(0)
    features = torch.rand(2, 16, 2, 3, dtype=torch.float64, requires_grad=True)
    prior, weight = torch.rand(2, 1, 2, 3, dtype=torch.float64), torch.ones(2, dtype=torch.float64)

    def loss(feature_map):
        _, saliency = model.classify((feature_map,))
        class_map = layer_cam(model, (feature_map,), saliency, torch.tensor([1, 2]))
        return consistency_loss(objective, class_map, prior, weight)

    assert loss(features) > 0.01
    assert torch.autograd.gradcheck(loss, features)


def test_prior_of_another_grid_is_refused():
    with pytest.raises(ValueError, match=r"grid \(4, 4\) is not the model's \(2, 2\)"):
        saliency_loss(
            torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4), torch.ones(1), CellBalance(1, 1)
        )
