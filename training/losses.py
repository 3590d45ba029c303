"""The knowledge-guided loss: objectives, schedules and class weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from skimage.filters import threshold_otsu
from torch.nn import functional as F

from ..errors import InputError
from .arguments import FORMS, MAP_OBJECTIVES, SCHEDULES


_DELAY = 1 / 3


def guidance_weight(schedule: str, progress: float, start: float = 1.0) -> float:
    """
    Lambda at training progress `t` in 0..1.

    `linear` (the paper's) falls from `start` to 0 as `1 - t`, `cosine` as half a cosine wave, `constant` stays,
    `delayed` is 0 for the first third and then falls linearly from `start`.
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
    """`convex` (the paper's): `lambda L_kg + (1 - lambda) L_cls`; `additive`: `lambda L_kg + L_cls`."""
    if form == "convex":
        return lambda_ * loss_kg + (1 - lambda_) * loss_cls
    if form == "additive":
        return lambda_ * loss_kg + loss_cls
    raise ValueError(f"form={form!r}: choose one of {FORMS}.")


def otsu_threshold(prior: np.ndarray) -> int:
    """
    Otsu's threshold (1979) of a stored prior `(h, w)` uint8: cells above it are taken for defect.

    A prior of one value has no two classes to part: all of it is above the threshold, unless it is blank.
    """
    if prior.min() == prior.max():
        return int(prior.min()) - 1 if prior.max() > 0 else 0
    return int(threshold_otsu(prior))


def pseudo_mask(prior: np.ndarray, ignore_band: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """
    A stored prior `(h, w)` uint8 as a mask (above Otsu's threshold) and the cells to learn it from, both bool.

    Left out are cells at most `ignore_band` (in 0..1, as a share of the peak) from the middle of the gap between the
    two kinds, as Ahn and Kwak (2018) leave out what a class activation map is not sure of. A blank prior and one of
    two values only, such as a mask, have no doubtful cells below half their range.
    """
    mask = prior > otsu_threshold(prior)
    if ignore_band == 0 or mask.all() or not mask.any():
        return mask, np.ones_like(mask)
    middle = (float(prior[~mask].max()) + float(prior[mask].min())) / 2
    return mask, np.abs(prior - middle) > ignore_band * 255


@dataclass(frozen=True)
class CellBalance:
    """
    What a cell of each kind weighs; by default so that each kind, over a whole training set, has half of the loss.

    As in holistically-nested edge detection (Xie and Tu 2015), which balances every image by itself.
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
        Balance for targets `(h, w)` in 0..1, cells counted by their own weight `(h, w)` and their image's.

        The loss is a mean over all cells, so those that are left out are made up for by the others. With
        `positive_weight` a defect cell weighs so many times as much as another, however many there are.
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
    Binary cross-entropy of the saliency logits against a prior, as a mask (arXiv 2605.17780) or as it is.

    As it is, it is a soft target, as in distillation (Hinton et al. 2015). Defects are small: unweighted, the few
    positive cells leave the logits untrained. The balance is the training set's rather than the batch's, so that the
    loss is a mean over images and adds up the same however they are batched.

    Args:
        saliency: logits, `(B, 1, h, w)`.
        target: in 0..1, `(B, 1, h, w)`; a cell counts as both kinds in that proportion.
        cell_weight: `(B, 1, h, w)`, 0 leaves a cell out.
        image_weight: `(B,)`, 0 leaves an image out.
        balance: the weight of each kind of cell.

    Raises:
        InputError: target and logits have different grids.
    """
    _check_grid(target, saliency)
    saliency = saliency.to(torch.promote_types(saliency.dtype, torch.float32))  # autocast hands out half precision
    target = target.to(saliency.dtype)
    weight = cell_weight * (balance.negative + (balance.positive - balance.negative) * target)
    cell_loss = F.binary_cross_entropy_with_logits(saliency, target, weight=weight, reduction="none")
    return (cell_loss.mean(dim=(1, 2, 3)) * image_weight).mean()


def consistency_loss(
    objective: str, class_map: torch.Tensor, prior: torch.Tensor, image_weight: torch.Tensor
) -> torch.Tensor:
    """
    How far the final model's own class map is from the prior (the paper's abstract): a mean over the batch's images.

    `cosine` is 1 less the cosine of the two as vectors, half of attention transfer's squared distance of maps of unit
    length (Zagoruyko and Komodakis 2017); `l2` the mean squared difference of maps of peak 1; `kl` the
    Kullback-Leibler divergence of the prior from the class map, each as a distribution over cells, as in channel-wise
    distillation (Shu et al. 2021). Images with a blank prior say nothing and count 0.

    Args:
        objective: one of `MAP_OBJECTIVES`.
        class_map: `(B, h, w)`, not negative.
        prior: in 0..1, `(B, 1, h, w)`.
        image_weight: `(B,)`.

    Raises:
        InputError: map and prior have different grids.
    """
    _check_grid(prior, class_map)
    tiny = 1e-6
    maps, priors = class_map.flatten(1), prior.flatten(1).to(class_map.dtype)
    peaks = maps.amax(dim=1, keepdim=True).clamp(min=tiny)
    if objective == "cosine":
        distance = 1 - F.cosine_similarity(maps, priors, dim=1, eps=tiny)
    elif objective == "l2":
        distance = (maps / peaks - priors).square().mean(dim=1)
    elif objective == "kl":
        wanted = priors / priors.sum(dim=1, keepdim=True).clamp(min=tiny)
        shown = maps / peaks + tiny
        shown = shown / shown.sum(dim=1, keepdim=True)
        distance = (torch.xlogy(wanted, wanted) - wanted * shown.log()).sum(dim=1)
    else:
        raise ValueError(f"objective={objective!r}: choose one of {MAP_OBJECTIVES}.")
    return (distance * image_weight * (priors.amax(dim=1) > 0)).mean()


def focal_loss(
    logits: torch.Tensor, labels: torch.Tensor, gamma: float = 2.0, class_weight: torch.Tensor | None = None
) -> torch.Tensor:
    """
    Cross-entropy that counts what is already right less: `(1 - p)^gamma` (Lin et al. 2017), a mean over the batch.

    Args:
        logits: `(B, K)`.
        labels: class indices, `(B,)`.
        gamma: 0 is plain cross-entropy.
        class_weight: `(K,)`, what an image of each class counts.
    """
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_p = logits.log_softmax(dim=1).gather(1, labels[:, None])[:, 0]
    loss = -log_p if gamma == 0 else -((1 - log_p.exp()).clamp(min=0) ** gamma) * log_p
    return (loss if class_weight is None else loss * class_weight[labels]).mean()


def balanced_class_weight(labels: Iterable[int], num_classes: int) -> torch.Tensor:
    """`(K,)`: every class counts the same over a training set, an image 1 on average (scikit-learn's `balanced`)."""
    counts = torch.bincount(torch.as_tensor(list(labels)), minlength=num_classes)
    return counts.sum() / (num_classes * counts.clamp(min=1))


def _check_grid(prior: torch.Tensor, saliency: torch.Tensor) -> None:
    if prior.shape[-2:] != saliency.shape[-2:]:
        raise InputError(
            f"The priors' grid {tuple(prior.shape[-2:])} is not the model's {tuple(saliency.shape[-2:])}: they "
            "were made for another image size or backbone. Make them again with this model's own."
        )


__all__ = [
    "CellBalance",
    "balanced_class_weight",
    "combined_loss",
    "consistency_loss",
    "focal_loss",
    "guidance_weight",
    "otsu_threshold",
    "pseudo_mask",
    "saliency_loss",
]
