"""Collation of dataset rows into training batches."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch.utils.data import get_worker_info
from transformers import BaseImageProcessor

from ..data.image_cache import cached_to_tensor
from ..data.images import normalize, to_pixel_values
from ..errors import InputError
from .augmentation import PairedAugmentation


@dataclass
class DefectCollator:
    """
    Collator of dataset rows, each image given as `image` or as the cached `pixels` of [`~kgl.data.image_cache`].

    Returns `pixel_values (B, 3, H, W)`, `labels (B,)` and, for rows with the columns of a prior, `prior_mask
    (B, 1, h, w)` bool (cells above `prior_threshold`) and `prior_weight (B,)`.
    """

    image_processor: BaseImageProcessor
    augmentation: PairedAugmentation | None = None

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
        masks = None
        if "saliency_prior" in rows[0]:
            masks = torch.stack([prior_mask(row) for row in rows])
            batch["prior_weight"] = torch.tensor([row["prior_weight"] for row in rows])
        if "pixels" in rows[0]:
            images = cached_to_tensor([row["pixels"] for row in rows], self.image_processor)
        else:
            images = to_pixel_values([row["image"] for row in rows], self.image_processor, do_normalize=False)
        if self.augmentation is not None:
            images, masks = self.augmentation(images, masks)
        batch["pixel_values"] = normalize(images, self.image_processor)
        return batch if masks is None else batch | {"prior_mask": masks > 0.5}

    def unaugmented(self) -> DefectCollator:
        """Return the same collator without augmentation, for evaluation."""
        return replace(self, augmentation=None)


class SeededCollator:
    """
    Collator whose random numbers depend on a batch's place in the training alone.

    Batches are made before the step that trains on them, and in several processes: a resumed run could not continue
    the numbers of a generator that all of them share.

    Args:
        collator: makes the batches, with torch's global generator.
        seed: of the run.
        process: index of this process, which makes batches of its own.
    """

    def __init__(self, collator: Callable[[list[Any]], dict[str, torch.Tensor]], seed: int, process: int) -> None:
        self._collator, self._seed, self._process = collator, seed, process
        self.start(0, 0)

    def start(self, epoch: int, batch: int) -> None:
        """Go on with a batch of an epoch, both counted from 0."""
        self._epoch, self._first, self._made = epoch, batch, 0

    def __call__(self, rows: list[Any]) -> dict[str, torch.Tensor]:
        """Collate rows with the random numbers of the next batch."""
        worker = get_worker_info()
        workers, own = (1, 0) if worker is None else (worker.num_workers, worker.id)
        number = self._first + own + workers * self._made  # workers make the batches in turns
        self._made += 1
        seed = np.random.SeedSequence([self._seed, self._process, self._epoch, number]).generate_state(1, np.uint64)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(seed[0] >> 1))  # torch.manual_seed would reseed GPUs too
            return self._collator(rows)


def prior_mask(row: dict[str, Any]) -> torch.Tensor:
    """
    Return the mask of a row's prior, `(1, h, w)` of 0 and 1.

    The threshold is applied before augmentation: interpolation makes values that it was not chosen for.
    """
    mask = np.asarray(row["saliency_prior"], dtype=np.uint8) > row["prior_threshold"]
    return torch.from_numpy(mask[None].astype(np.float32))


__all__ = ["DefectCollator", "SeededCollator", "prior_mask"]
