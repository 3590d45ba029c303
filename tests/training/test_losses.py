"""Loss terms on tensors small enough to compute by hand."""

import math

import numpy as np
import pytest
import torch
from kornia.losses import focal_loss as kornia_focal_loss
from sklearn.utils.class_weight import compute_class_weight

from kgl.errors import InputError
from kgl.training.losses import (
    CellBalance,
    balanced_class_weight,
    combined_loss,
    focal_loss,
    saliency_loss,
)


def test_forms():
    loss_kg, loss_cls = torch.tensor(2.0), torch.tensor(3.0)
    assert combined_loss("convex", 0.25, loss_kg, loss_cls) == 0.25 * 2 + 0.75 * 3
    assert combined_loss("additive", 1.5, loss_kg, loss_cls) == 1.5 * 2 + 3
    with pytest.raises(ValueError, match=r"'product'.*additive"):
        combined_loss("product", 0.5, loss_kg, loss_cls)


def test_balance_gives_both_kinds_equal_weight():
    masks = [np.array([[False, False], [False, True]]), np.zeros((2, 2), dtype=bool)]
    balance = CellBalance.of(masks, [1.0, 1.0])
    assert (balance.negative, balance.positive) == pytest.approx((8 / 14, 4.0))
    assert 7 * balance.negative == pytest.approx(1 * balance.positive)
    halved = CellBalance.of(masks, [0.5, 1.0])  # 6 cells in all, half a one of a defect
    assert (halved.negative, halved.positive) == pytest.approx((3 / 5.5, 6.0))
    assert CellBalance.of(masks[1:], [1.0]) == CellBalance(1.0, 1.0)
    assert CellBalance.of(masks, [0.0, 1.0]) == CellBalance(1.0, 1.0)
    assert CellBalance.of(masks, [0.0, 0.0]) == CellBalance(1.0, 1.0)
    assert CellBalance.of(masks, [1.0, 1.0], 3.0) == CellBalance(1.0, 3.0)


def test_balance_does_not_change_the_scale_of_the_loss():
    """Logits of 0 have a loss of ln 2, however many cells are defects."""
    masks = np.random.default_rng(0).random((5, 4, 6)) > 0.9
    balance = CellBalance.of(masks, [1.0] * 5)
    loss = saliency_loss(torch.zeros(5, 1, 4, 6), torch.from_numpy(masks)[:, None], torch.ones(5), balance)
    assert loss.item() == pytest.approx(math.log(2))


def test_saliency_loss_by_hand():
    saliency = torch.tensor([[[[0.0, 2.0]]], [[[-1.0, 0.0]]]])
    mask = torch.tensor([[[[False, True]]], [[[False, False]]]])
    loss = saliency_loss(saliency, mask, torch.tensor([1.0, 0.5]), CellBalance(negative=2.0, positive=3.0))
    first = (2 * math.log(2) + 3 * math.log(1 + math.exp(-2))) / 2
    second = (2 * math.log(1 + math.exp(-1)) + 2 * math.log(2)) / 2
    assert loss.item() == pytest.approx((first + 0.5 * second) / 2)


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
    saliency, mask, weight = torch.randn(6, 1, 3, 4), torch.rand(6, 1, 3, 4) > 0.5, torch.rand(6)
    balance, logits, labels = CellBalance(0.6, 4.0), torch.rand(6, 4), torch.arange(6) % 3
    for loss in (
        lambda rows: saliency_loss(saliency[rows], mask[rows], weight[rows], balance),
        lambda rows: focal_loss(logits[rows], labels[rows], class_weight=torch.tensor([1.0, 2.0, 3.0, 4.0])),
    ):
        parts = [loss(slice(start, start + 2)) for start in (0, 2, 4)]
        torch.testing.assert_close(torch.stack(parts).mean(), loss(slice(0, 6)))


def test_gradients_by_finite_differences():
    torch.manual_seed(0)
    saliency = torch.randn(2, 1, 2, 3, dtype=torch.float64, requires_grad=True)
    mask, weight = torch.rand(2, 1, 2, 3) > 0.5, torch.tensor([1.0, 0.3], dtype=torch.float64)
    check = torch.autograd.gradcheck
    assert check(lambda logits: saliency_loss(logits, mask, weight, CellBalance(0.7, 2.0)), saliency)
    logits = torch.randn(4, 3, dtype=torch.float64, requires_grad=True)
    class_weight = torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    assert check(lambda rows: focal_loss(rows, torch.tensor([0, 1, 2, 1]), 2.0, class_weight), logits)


def test_prior_of_another_grid_is_refused():
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    with pytest.raises(InputError, match=r"grid \(4, 4\) is not the model's \(2, 2\)"):
        saliency_loss(torch.zeros(1, 1, 2, 2), mask, torch.ones(1), CellBalance(1, 1))
