"""The guided loss on tensors small enough to do by hand."""

import math

import numpy as np
import pytest
import torch

from kgl.losses import CellBalance, guidance_weight, otsu_threshold, pseudo_mask_loss


@pytest.mark.parametrize(
    ("schedule", "weights"),
    [("linear", [0.8, 0.6, 0.4, 0.0]), ("cosine", [0.8, 0.6828427, 0.4, 0.0]), ("constant", [0.8, 0.8, 0.8, 0.8])],
)
def test_schedules(schedule, weights):
    assert [guidance_weight(schedule, t, start=0.8) for t in (0, 0.25, 0.5, 1)] == pytest.approx(weights)


def test_unknown_schedule():
    with pytest.raises(ValueError, match=r"'cubic'.*linear"):
        guidance_weight("cubic", 0.5)


def test_otsu_parts_two_kinds_of_cell():
    prior = np.array([[0, 10, 20], [15, 200, 255]], dtype=np.uint8)
    assert (prior > otsu_threshold(prior)).tolist() == [[False, False, False], [False, True, True]]


def test_otsu_of_one_value():
    blank, full = np.zeros((2, 2), dtype=np.uint8), np.full((2, 2), 255, dtype=np.uint8)
    assert not (blank > otsu_threshold(blank)).any()
    assert (full > otsu_threshold(full)).all()


def test_balance_gives_both_kinds_half_of_the_loss():
    priors = [np.array([[0, 0], [0, 255]], dtype=np.uint8), np.zeros((2, 2), dtype=np.uint8)]
    balance = CellBalance.of(priors, [1.0, 1.0])
    assert (balance.negative, balance.positive) == pytest.approx((8 / 14, 4.0))
    assert 7 * balance.negative == pytest.approx(1 * balance.positive)
    assert CellBalance.of(priors[1:], [1.0]) == CellBalance(1.0, 1.0)
    assert CellBalance.of(priors, [0.0, 1.0]) == CellBalance(1.0, 1.0)


def test_pseudo_mask_loss_by_hand():
    saliency = torch.tensor([[[[0.0, 2.0]]], [[[-1.0, 0.0]]]])
    mask = torch.tensor([[[[False, True]]], [[[False, False]]]])
    weight = torch.tensor([1.0, 0.5])
    loss = pseudo_mask_loss(saliency, mask, weight, CellBalance(negative=2.0, positive=3.0))
    first = (2 * math.log(2) + 3 * math.log(1 + math.exp(-2))) / 2
    second = (2 * math.log(1 + math.exp(-1)) + 2 * math.log(2)) / 2
    assert loss.item() == pytest.approx((first + 0.5 * second) / 2)


def test_pseudo_mask_loss_adds_up_over_batches():
    torch.manual_seed(0)
    saliency, mask, weight = torch.randn(6, 1, 3, 4), torch.rand(6, 1, 3, 4) > 0.7, torch.rand(6)
    balance = CellBalance(0.6, 4.0)
    whole = pseudo_mask_loss(saliency, mask, weight, balance)
    parts = [pseudo_mask_loss(saliency[i : i + 2], mask[i : i + 2], weight[i : i + 2], balance) for i in (0, 2, 4)]
    torch.testing.assert_close(torch.stack(parts).mean(), whole)


def test_gradient_by_finite_differences():
    torch.manual_seed(0)
    saliency = torch.randn(2, 1, 2, 3, dtype=torch.float64, requires_grad=True)
    mask, weight = torch.rand(2, 1, 2, 3) > 0.5, torch.tensor([1.0, 0.3], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda logits: pseudo_mask_loss(logits, mask, weight, CellBalance(0.7, 2.0)), saliency
    )


def test_priors_of_another_grid_are_refused():
    with pytest.raises(ValueError, match=r"grid \(4, 4\) is not the model's \(2, 2\)"):
        pseudo_mask_loss(torch.zeros(1, 1, 2, 2), torch.ones(1, 1, 4, 4) > 0, torch.ones(1), CellBalance(1, 1))
