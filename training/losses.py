"""Terms of the knowledge-guided loss: cells of the heat map, their balance, and the classification loss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from kornia.losses import focal_loss as kornia_focal_loss
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from ..errors import InputError
from ..saliency.maps import to_float
from .arguments import FORMS


def combined_loss(form: str, lambda_: float, loss_kg: torch.Tensor, loss_cls: torch.Tensor) -> torch.Tensor:
    """Return `lambda L_kg + (1 - lambda) L_cls` (`convex`, the paper) or `lambda L_kg + L_cls` (`additive`)."""
    if form == "convex":
        return lambda_ * loss_kg + (1 - lambda_) * loss_cls
    if form == "additive":
        return lambda_ * loss_kg + loss_cls
    raise ValueError(f"form={form!r}: choose one of {FORMS}.")


@dataclass(frozen=True)
class CellBalance:
    """
    Weights of defect cells (`positive`) and other cells (`negative`) in the saliency loss.

    By default both kinds have equal weight in sum over the training set; holistically-nested edge detection (Xie and
    Tu 2015) balances each image in this way.
    """

    negative: float
    positive: float

    @classmethod
    def of(
        cls, masks: Iterable[np.ndarray], image_weights: Iterable[float], positive_weight: float | None = None
    ) -> CellBalance:
        """
        Compute the balance of a training set.

        Args:
            masks: the defect cells of each image, `(h, w)` bool.
            image_weights: per image; 0 ignores an image.
            positive_weight: weight of a defect cell relative to another cell, in place of equal weight in sum.
        """
        if positive_weight is not None:
            return cls(negative=1.0, positive=positive_weight)
        positive = total = 0.0
        for mask, weight in zip(masks, image_weights, strict=True):
            positive += weight * float(mask.sum())
            total += weight * mask.size
        if positive in (0, total):  # one kind only: nothing to balance
            return cls(1.0, 1.0)
        return cls(negative=0.5 * total / (total - positive), positive=0.5 * total / positive)


def saliency_loss(
    saliency: torch.Tensor, mask: torch.Tensor, image_weight: torch.Tensor, balance: CellBalance
) -> torch.Tensor:
    """
    Compute binary cross-entropy of the saliency logits against the priors' masks, a mean over the batch's images.

    Defects are small: without weights, the few positive cells leave the logits untrained. The balance is that of the
    training set, so the loss does not depend on how images are batched.

    Args:
        saliency: logits, `(B, 1, h, w)`.
        mask: defect cells, `(B, 1, h, w)` bool.
        image_weight: `(B,)`; 0 ignores an image.
        balance: the weights of the two kinds of cells.

    Raises:
        InputError: mask and logits have different grids.
    """
    if mask.shape[-2:] != saliency.shape[-2:]:
        raise InputError(
            f"The priors' grid {tuple(mask.shape[-2:])} is not the model's {tuple(saliency.shape[-2:])}: they were "
            "made for another image size or backbone. Make them again for this model."
        )
    saliency = to_float(saliency)
    target = mask.to(saliency.dtype)
    weight = balance.negative + (balance.positive - balance.negative) * target
    cell_loss = F.binary_cross_entropy_with_logits(saliency, target, weight=weight, reduction="none")
    return (cell_loss.mean(dim=(1, 2, 3)) * image_weight).mean()


def focal_loss(
    logits: torch.Tensor, labels: torch.Tensor, gamma: float = 2.0, class_weight: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Compute the focal loss (Lin et al. 2017), `-(1 - p)^gamma log p`, a mean over the batch's images.

    Args:
        logits: `(B, K)`.
        labels: class indices, `(B,)`.
        gamma: 0 is cross-entropy.
        class_weight: weight of an image of each class, `(K,)`.
    """
    logits = to_float(logits)
    # kornia's own mean divides by the number of classes too.
    total = kornia_focal_loss(
        logits, labels, alpha=None, gamma=gamma, reduction="sum", weight=class_weight, ignore_index=None
    )
    return total / len(labels)


def balanced_class_weight(labels: Iterable[int], num_classes: int) -> torch.Tensor:
    """Return `N / (K count)` for each class, `(K,)`: classes have equal weight in sum, an image 1 on average."""
    labels = np.asarray(list(labels))
    present = np.unique(labels)
    weight = np.full(num_classes, len(labels) / num_classes)  # scikit-learn rejects classes without images
    weight[present] = compute_class_weight("balanced", classes=present, y=labels) * len(present) / num_classes
    return torch.from_numpy(weight).float()


__all__ = [
    "CellBalance",
    "balanced_class_weight",
    "combined_loss",
    "focal_loss",
    "saliency_loss",
]
