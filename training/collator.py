"""Collation of dataset rows into training batches."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from transformers import BaseImageProcessor

from ..data.image_cache import cached_to_tensor
from ..data.images import normalize, to_pixel_values
from ..errors import InputError
from .augmentation import PairedAugmentation


def shared_zero() -> torch.Tensor:
    """Return a number that workers of a data loader read as it stands in the main process."""
    return torch.zeros((), dtype=torch.long).share_memory_()


@contextmanager
def repeatable_draws(seed: int | None, epoch: torch.Tensor, rows: list[dict[str, Any]]) -> Iterator[None]:
    """Seed torch's generator within by the seed, the epoch and the rows' `index`; leave it alone without a seed."""
    if seed is None:
        yield
        return
    digest = hashlib.sha1(f"{seed} {int(epoch)} {[row['index'] for row in rows]}".encode()).hexdigest()
    with seeded_draws(digest):
        yield


@contextmanager
def seeded_draws(digest: str) -> Iterator[None]:
    """Seed torch's generator by a hexadecimal digest within, and leave it as it was afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(digest[:8], 16))  # torch.manual_seed would reseed GPUs too
        yield


@dataclass
class DefectCollator:
    """
    Collator of dataset rows, each image given as `image` or as the cached `pixels` of [`~kgl.data.image_cache`].

    Returns `pixel_values (B, 3, H, W)`, `labels (B,)` and, for rows with the columns of a prior, `prior_mask
    (B, 1, h, w)` bool (cells above `prior_threshold`) and `prior_weight (B,)`.

    Args:
        image_processor: the model's.
        augmentation: of training images.
        seed: makes augmentation a function of it, the epoch and the rows' `index`, so that a run resumed within an
            epoch sees the same images; batches then have `index (B,)`. None draws from torch's generator as it stands.
    """

    image_processor: BaseImageProcessor
    augmentation: PairedAugmentation | None = None
    seed: int | None = None
    epoch: torch.Tensor = field(default_factory=shared_zero, init=False, repr=False)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """
        Collate rows.

        Raises:
            InputError: rows without images, which a Trainer removes by default.
        """
        if "image" not in rows[0] and "pixels" not in rows[0]:
            raise InputError(
                "The rows have no image. A plain Trainer removes it; give its TrainingArguments "
                "remove_unused_columns=False."
            )
        batch = {"labels": torch.tensor([row["label"] for row in rows])}
        if self.seed is not None:
            batch["index"] = torch.tensor([row["index"] for row in rows])
        masks = None
        if "saliency_prior" in rows[0]:
            masks = torch.stack([prior_mask(row) for row in rows])
            batch["prior_weight"] = torch.tensor([row["prior_weight"] for row in rows])
        if "pixels" in rows[0]:
            images = cached_to_tensor([row["pixels"] for row in rows], self.image_processor)
        else:
            images = to_pixel_values([row["image"] for row in rows], self.image_processor, do_normalize=False)
        if self.augmentation is not None:
            with repeatable_draws(self.seed, self.epoch, rows):
                images, masks = self.augmentation(images, masks)
        batch["pixel_values"] = normalize(images, self.image_processor)
        return batch if masks is None else batch | {"prior_mask": masks > 0.5}

    def unaugmented(self) -> DefectCollator:
        """Return the same collator without augmentation, for evaluation."""
        return replace(self, augmentation=None)


def prior_mask(row: dict[str, Any]) -> torch.Tensor:
    """
    Return the mask of a row's prior, `(1, h, w)` of 0 and 1.

    The threshold is applied before augmentation: interpolation makes values that it was not chosen for.
    """
    mask = np.asarray(row["saliency_prior"], dtype=np.uint8) > row["prior_threshold"]
    return torch.from_numpy(mask[None].astype(np.float32))


__all__ = ["DefectCollator", "prior_mask", "repeatable_draws", "seeded_draws", "shared_zero"]
