"""The guided loss on tensors small enough to do by hand."""

import math

import numpy as np
import pytest
import torch
from tiny import tiny_model

from kgl.errors import InputError
from kgl.saliency.cam import layer_cam
from kgl.training.arguments import MAP_OBJECTIVES
from kgl.training.losses import (
    CellBalance,
    balanced_class_weight,
    combined_loss,
    consistency_loss,
    focal_loss,
    guidance_weight,
    otsu_threshold,
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


def test_unknown_schedule():
    with pytest.raises(ValueError, match=r"'cubic'.*linear"):
        guidance_weight("cubic", 0.5)


def test_forms():
    loss_kg, loss_cls = torch.tensor(2.0), torch.tensor(3.0)
    assert combined_loss("convex", 0.25, loss_kg, loss_cls) == 0.25 * 2 + 0.75 * 3
    assert combined_loss("additive", 1.5, loss_kg, loss_cls) == 1.5 * 2 + 3
    with pytest.raises(ValueError, match=r"'product'.*additive"):
        combined_loss("product", 0.5, loss_kg, loss_cls)


def test_otsu_parts_two_kinds_of_cell():
    prior = np.array([[0, 10, 20], [15, 200, 255]], dtype=np.uint8)
    assert (prior > otsu_threshold(prior)).tolist() == [[False, False, False], [False, True, True]]


def test_otsu_of_one_value():
    blank, full = np.zeros((2, 2), dtype=np.uint8), np.full((2, 2), 255, dtype=np.uint8)
    assert not (blank > otsu_threshold(blank)).any()
    assert (full > otsu_threshold(full)).all()


def test_doubtful_cells_are_left_out():
    prior = np.array([[0, 100, 120], [140, 200, 255]], dtype=np.uint8)
    assert otsu_threshold(prior) == 140  # {0, 100, 120, 140} and {200, 255}: the gap's middle is 170
    mask, known = pseudo_mask(prior, ignore_band=0.15)  # 38.25 to either side
    assert mask.tolist() == [[False, False, False], [False, True, True]]
    assert known.tolist() == [[True, True, True], [False, False, True]]
    assert pseudo_mask(prior)[1].all()
    for certain in (np.zeros((2, 2)), np.full((2, 2), 255), np.array([[0, 255], [0, 0]])):
        mask, known = pseudo_mask(certain.astype(np.uint8), ignore_band=0.4)
        assert known.all() and mask.tolist() == (certain > 0).tolist()


def test_balance_gives_both_kinds_half_of_the_loss():
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
def test_a_band_leaves_guidance_its_weight(band, positive_weight):
    """Where nothing is known yet the loss is ln 2, however many cells are left out."""
    priors = np.random.default_rng(0).integers(0, 256, (5, 4, 6), dtype=np.uint8)
    targets, cells = (np.stack(one) for one in zip(*(pseudo_mask(prior, band) for prior in priors), strict=True))
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


def test_consistency_by_hand():
    class_map = torch.tensor([[[2.0, 0.0]], [[1.0, 3.0]]])
    prior = torch.tensor([[[[1.0, 1.0]]], [[[0.0, 0.0]]]])  # the second is blank and says nothing
    weight = torch.tensor([0.5, 1.0])
    values = {name: consistency_loss(name, class_map, prior, weight).item() for name in MAP_OBJECTIVES}
    assert values["cosine"] == pytest.approx(0.5 * (1 - 1 / math.sqrt(2)) / 2, rel=1e-4)
    assert values["l2"] == pytest.approx(0.5 * 0.5 / 2)
    one, other = 1 / (1 + 1e-6), 1e-6 / (1 + 1e-6)
    kl = 0.5 * math.log(0.5 / one) + 0.5 * math.log(0.5 / other)
    assert values["kl"] == pytest.approx(0.5 * kl / 2, rel=1e-4)
    for name in MAP_OBJECTIVES:
        alike = consistency_loss(name, prior[:1, 0] * 7, prior[:1], torch.ones(1))
        assert alike.item() == pytest.approx(0, abs=1e-5)  # a map's scale does not matter
    with pytest.raises(ValueError, match=r"'cos'.*cosine"):
        consistency_loss("cos", class_map, prior, weight)
    with pytest.raises(InputError, match="grid"):
        consistency_loss("l2", class_map, torch.ones(2, 1, 4, 4), weight)


def test_focal_loss():
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


def test_balanced_class_weights():
    weight = balanced_class_weight([0, 0, 0, 1], 2)
    torch.testing.assert_close(weight, torch.tensor([4 / 6, 2.0]))
    assert (weight[torch.tensor([0, 0, 0, 1])]).mean() == 1


def test_losses_add_up_over_batches():
    torch.manual_seed(0)
    saliency, target, weight = torch.randn(6, 1, 3, 4), torch.rand(6, 1, 3, 4), torch.rand(6)
    cells, balance = (torch.rand(6, 1, 3, 4) > 0.2).float(), CellBalance(0.6, 4.0)
    maps, labels = torch.rand(6, 3, 4), torch.arange(6) % 3
    for loss in (
        lambda rows: saliency_loss(saliency[rows], target[rows], cells[rows], weight[rows], balance),
        lambda rows: consistency_loss("kl", maps[rows], target[rows], weight[rows]),
        lambda rows: focal_loss(maps[rows, 0], labels[rows], class_weight=torch.tensor([1.0, 2.0, 3.0])),
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
def test_the_class_map_s_objectives_train_the_network(objective):
    """Through the closed-form LayerCAM, by finite differences, down to the features."""
    model = tiny_model("resnet").double()
    with torch.no_grad():
        model.classifier.weight.mul_(30)
    torch.manual_seed(0)
    features = torch.rand(2, 16, 2, 3, dtype=torch.float64, requires_grad=True)
    prior, weight = torch.rand(2, 1, 2, 3, dtype=torch.float64), torch.ones(2, dtype=torch.float64)

    def loss(feature_map):
        _, saliency = model.classify(feature_map)
        class_map = layer_cam(model, feature_map, saliency, torch.tensor([1, 2]))
        return consistency_loss(objective, class_map, prior, weight)

    assert loss(features) > 0.01
    assert torch.autograd.gradcheck(loss, features)


def test_priors_of_another_grid_are_refused():
    with pytest.raises(ValueError, match=r"grid \(4, 4\) is not the model's \(2, 2\)"):
        saliency_loss(
            torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 4, 4), torch.ones(1, 1, 4, 4), torch.ones(1), CellBalance(1, 1)
        )
