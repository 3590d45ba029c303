"""The knowledge-guided loss: what the saliency logits are taught, and how much it counts when."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from skimage.filters import threshold_otsu
from torch.nn import functional as F

from .errors import InputError


SCHEDULES = ("linear", "cosine", "constant")


def guidance_weight(schedule: str, progress: float, start: float = 1.0) -> float:
    """
    Lambda at training progress `t` in 0..1, in `L = lambda L_kg + (1 - lambda) L_cls`.

    `linear` (the paper's) falls from `start` to 0 as `1 - t`, `cosine` as half a cosine wave, `constant` stays.
    """
    if schedule == "linear":
        return start * (1 - progress)
    if schedule == "cosine":
        return start * 0.5 * (1 + math.cos(math.pi * progress))
    if schedule == "constant":
        return start
    raise ValueError(f"schedule={schedule!r}: choose one of {SCHEDULES}.")


def otsu_threshold(prior: np.ndarray) -> int:
    """
    Otsu's threshold (1979) of a stored prior `(h, w)` uint8: cells above it are taken for defect.

    A prior of one value has no two classes to part: all of it is above the threshold, unless it is blank.
    """
    if prior.min() == prior.max():
        return int(prior.min()) - 1 if prior.max() > 0 else 0
    return int(threshold_otsu(prior))


@dataclass(frozen=True)
class CellBalance:
    """Weights that give the cells of each kind, over a whole training set, half of the loss."""

    negative: float
    positive: float

    @classmethod
    def of(cls, priors: Iterable[np.ndarray], image_weights: Iterable[float]) -> CellBalance:
        """Balance for stored priors `(h, w)` uint8, each counted by its image's weight."""
        positive = total = 0.0
        for prior, weight in zip(priors, image_weights, strict=True):
            positive += weight * np.count_nonzero(prior > otsu_threshold(prior))
            total += weight * prior.size
        if positive == 0 or positive == total:  # one kind only, or nothing at all: nothing to balance
            return cls(1.0, 1.0)
        return cls(negative=0.5 * total / (total - positive), positive=0.5 * total / positive)


def pseudo_mask_loss(
    saliency: torch.Tensor, pseudo_mask: torch.Tensor, image_weight: torch.Tensor, balance: CellBalance
) -> torch.Tensor:
    """
    Binary cross-entropy of the saliency logits against a binarised prior (arXiv 2605.17780), kinds of cell balanced.

    Defects are small: unweighted, the few positive cells leave the logits untrained. The balance is the training set's
    rather than the batch's, so that the loss is a mean over images and adds up the same however they are batched.

    Args:
        saliency: logits, `(B, 1, h, w)`.
        pseudo_mask: bool, `(B, 1, h, w)`.
        image_weight: `(B,)`, 0 leaves an image out.
        balance: the weight of each kind of cell.

    Raises:
        InputError: mask and logits have different grids.
    """
    if saliency.shape != pseudo_mask.shape:
        raise InputError(
            f"The priors' grid {tuple(pseudo_mask.shape[-2:])} is not the model's {tuple(saliency.shape[-2:])}: they "
            "were made for another image size or backbone. Make them again with this model's own."
        )
    saliency = saliency.to(torch.promote_types(saliency.dtype, torch.float32))  # autocast hands out half precision
    cell_weight = torch.where(pseudo_mask, balance.positive, balance.negative)
    cell_loss = F.binary_cross_entropy_with_logits(
        saliency, pseudo_mask.to(saliency.dtype), weight=cell_weight, reduction="none"
    )
    return (cell_loss.mean(dim=(1, 2, 3)) * image_weight).mean()


__all__ = ["SCHEDULES", "CellBalance", "guidance_weight", "otsu_threshold", "pseudo_mask_loss"]
