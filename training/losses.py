"""Terms of the knowledge-guided loss: objectives, cell balance, schedules and the classification loss."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from kornia.losses import focal_loss as kornia_focal_loss
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional as F

from ..errors import InputError
from ..saliency.maps import to_float
from .arguments import FORMS, MAP_OBJECTIVES, SCHEDULES


_DELAY = 1 / 3


def guidance_weight(schedule: str, progress: float, start: float = 1.0) -> float:
    """
    Return the weight lambda of the guidance loss at training progress `t` in 0..1.

    `linear` (the paper) falls from `start` to 0 as `1 - t`, `cosine` as half a cosine wave, `constant` stays at
    `start`, `delayed` is 0 for the first third and then falls linearly from `start` to 0.
    """
    if schedule == "linear":
        return start * (1 - progress)
    if schedule == "cosine":
        return start * 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "constant":
        return start
    if schedule == "delayed":
        return 0.0 if progress < _DELAY else start * (1 - progress) / (1 - _DELAY)
    raise ValueError(f"schedule={schedule!r}: choose one of {SCHEDULES}.")


def combined_loss(form: str, lambda_: float, loss_kg: torch.Tensor, loss_cls: torch.Tensor) -> torch.Tensor:
    """Return `lambda L_kg + (1 - lambda) L_cls` (`convex`, the paper) or `lambda L_kg + L_cls` (`additive`)."""
    if form == "convex":
        return lambda_ * loss_kg + (1 - lambda_) * loss_cls
    if form == "additive":
        return lambda_ * loss_kg + loss_cls
    raise ValueError(f"form={form!r}: choose one of {FORMS}.")


def pseudo_mask(prior: np.ndarray, threshold: int, ignore_band: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """
    Return a prior's mask and the cells outside the ignored band, both `(h, w)` bool.

    Ignored are cells within `ignore_band` of the middle of the gap between the two kinds of cells, as uncertain cells
    of class activation maps are in Ahn and Kwak (2018). Blank priors and masks have none for bands below 0.5.

    Args:
        prior: stored map, `(h, w)` uint8.
        threshold: its `prior_threshold`; cells above it are the mask.
        ignore_band: half-width of the band in 0..0.5, as a share of 255; 0 ignores no cell.
    """
    mask = prior > threshold
    if ignore_band == 0 or mask.all() or not mask.any():
        return mask, np.ones_like(mask)
    middle = (float(prior[~mask].max()) + float(prior[mask].min())) / 2
    return mask, np.abs(prior - middle) > ignore_band * 255


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
        cls,
        targets: Iterable[np.ndarray],
        cell_weights: Iterable[np.ndarray],
        image_weights: Iterable[float],
        positive_weight: float | None = None,
    ) -> CellBalance:
        """
        Compute the balance of a training set.

        The loss is a mean over all cells, so the weights also compensate for ignored cells.

        Args:
            targets: per image, `(h, w)` in 0..1.
            cell_weights: per image, `(h, w)`; 0 ignores a cell.
            image_weights: per image; 0 ignores an image.
            positive_weight: weight of a defect cell relative to another cell, in place of equal weight in sum.
        """
        positive = known = total = 0.0
        for target, cells, weight in zip(targets, cell_weights, image_weights, strict=True):
            positive += weight * float((target * cells).sum())
            known += weight * float(cells.sum())
            total += weight * cells.size
        if known == 0:
            return cls(1.0, 1.0)
        if positive_weight is not None:
            return cls(negative=total / known, positive=positive_weight * total / known)
        if positive in (0, known):  # one kind only: nothing to balance
            return cls(total / known, total / known)
        return cls(negative=0.5 * total / (known - positive), positive=0.5 * total / positive)


def saliency_loss(
    saliency: torch.Tensor,
    target: torch.Tensor,
    cell_weight: torch.Tensor,
    image_weight: torch.Tensor,
    balance: CellBalance,
) -> torch.Tensor:
    """
    Compute binary cross-entropy of the saliency logits against a prior, a mean over the batch's images.

    The target is the prior's mask (arXiv 2605.17780) or the prior itself, a soft target as in distillation (Hinton et
    al. 2015). Defects are small: without weights, the few positive cells leave the logits untrained. The balance is
    that of the training set, so the loss does not depend on how images are batched.

    Args:
        saliency: logits, `(B, 1, h, w)`.
        target: in 0..1, `(B, 1, h, w)`; a cell counts as both kinds in this proportion.
        cell_weight: `(B, 1, h, w)`; 0 ignores a cell.
        image_weight: `(B,)`; 0 ignores an image.
        balance: the weights of the two kinds of cells.

    Raises:
        InputError: target and logits have different grids.
    """
    _check_grid(target, saliency)
    saliency = to_float(saliency)
    target = target.to(saliency.dtype)
    weight = cell_weight * (balance.negative + (balance.positive - balance.negative) * target)
    cell_loss = F.binary_cross_entropy_with_logits(saliency, target, weight=weight, reduction="none")
    return (cell_loss.mean(dim=(1, 2, 3)) * image_weight).mean()


def consistency_loss(
    objective: str, class_map: torch.Tensor, prior: torch.Tensor, image_weight: torch.Tensor
) -> torch.Tensor:
    """
    Compute the distance of the class map from the prior, a mean over the batch's images (arXiv 2605.17780).

    `cosine` is 1 minus the cosine similarity, half of attention transfer's squared distance of maps of unit length
    (Zagoruyko and Komodakis 2017); `l2` is the mean squared difference of maps of peak 1; `kl` is the Kullback-Leibler
    divergence of the prior from the class map, each as a distribution over cells, as in channel-wise distillation (Shu
    et al. 2021). Images with a blank prior count 0.

    Args:
        objective: one of `MAP_OBJECTIVES`.
        class_map: `(B, h, w)`, non-negative.
        prior: in 0..1, `(B, 1, h, w)`.
        image_weight: `(B,)`; 0 ignores an image.

    Raises:
        InputError: map and prior have different grids.
    """
    _check_grid(prior, class_map)
    eps = 1e-6
    maps, priors = class_map.flatten(1), prior.flatten(1).to(class_map.dtype)
    peaks = maps.amax(dim=1, keepdim=True).clamp(min=eps)
    if objective == "cosine":
        distance = 1 - F.cosine_similarity(maps, priors, dim=1, eps=eps)
    elif objective == "l2":
        distance = (maps / peaks - priors).square().mean(dim=1)
    elif objective == "kl":
        target = priors / priors.sum(dim=1, keepdim=True).clamp(min=eps)
        predicted = maps / peaks + eps
        predicted = predicted / predicted.sum(dim=1, keepdim=True)
        distance = (torch.xlogy(target, target) - target * predicted.log()).sum(dim=1)
    else:
        raise ValueError(f"objective={objective!r}: choose one of {MAP_OBJECTIVES}.")
    return (distance * image_weight * (priors.amax(dim=1) > 0)).mean()


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


def _check_grid(prior: torch.Tensor, saliency: torch.Tensor) -> None:
    if prior.shape[-2:] != saliency.shape[-2:]:
        raise InputError(
            f"The priors' grid {tuple(prior.shape[-2:])} is not the model's {tuple(saliency.shape[-2:])}: they were "
            "made for another image size or backbone. Make them again for this model."
        )


__all__ = [
    "CellBalance",
    "balanced_class_weight",
    "combined_loss",
    "consistency_loss",
    "focal_loss",
    "guidance_weight",
    "pseudo_mask",
    "saliency_loss",
]
