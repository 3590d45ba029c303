"""Cache of frozen features: stages that are not trained are computed once per image and view."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from filelock import FileLock
from torch import nn
from transformers import BaseImageProcessor

from ..data.images import normalize, to_pixel_values
from ..data.progress import progress_bar
from ..data.storage import check_disk_space
from ..errors import InputError
from ..modeling_kgl import KGLForImageClassification
from ..saliency.activations import eval_mode
from .augmentation import PairedAugmentation
from .collator import prior_mask, repeatable_draws, seeded_draws, shared_zero


# The module before the first stage, by model type.
_STEMS = {"resnet": "embedder", "convnext": "embeddings", "convnextv2": "embeddings"}


def max_freezable_stages(model: KGLForImageClassification) -> int:
    """
    Return how many stages can be frozen, 0 for backbones without separable stages.

    Those up to the first output, whose map is then the cached one, and below the last, which is trained.
    """
    if model.config.backbone_config.model_type not in _STEMS:
        return 0
    outputs = [model.backbone.stage_names.index(name) for name in model.backbone.out_features]
    return max(0, min(min(outputs), max(outputs) - 1))


def check_freezable(model: KGLForImageClassification, stages: int) -> None:
    """
    Check that the stem and the first `stages` stages of the backbone can be frozen.

    Raises:
        InputError: the backbone's type is not supported, it has fewer stages, or one of them must be trained.
    """
    kind, outputs = model.config.backbone_config.model_type, model.backbone.out_features
    if kind not in _STEMS:
        raise InputError(
            f"--freeze_stages: a {kind} backbone cannot be frozen in part, only {', '.join(_STEMS)}; use 0."
        )
    most = max_freezable_stages(model)
    if most < 1:
        raise InputError(f"--freeze_stages {stages}: there is no stage below {outputs[-1]}, which is trained; use 0.")
    if not 1 <= stages <= most:
        raise InputError(
            f"--freeze_stages {stages}: it must lie in 0..{most}: 0 freezes nothing, {outputs[-1]} is trained, and "
            f"the map of {outputs[0]} is needed."
        )


@torch.no_grad()
def compute_frozen_features(model: KGLForImageClassification, pixel_values: torch.Tensor, stages: int) -> torch.Tensor:
    """Return the features `(B, C, h, w)` of the stem and the first `stages` stages in eval mode."""
    features = pixel_values
    with eval_mode(model):
        for module in _frozen_modules(model, stages):
            features = module(features)
    return features


@contextmanager
def bypass_frozen_stages(model: KGLForImageClassification, stages: int) -> Iterator[None]:
    """
    Skip the stem and the first `stages` stages within the context: the model takes their features as `pixel_values`.

    Their parameters are not trained meanwhile.
    """
    modules = _frozen_modules(model, stages)
    parameters = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    try:
        for module in modules:
            module.forward = identity  # modules stay in place: backbones hook theirs for hidden states
        for parameter in parameters:
            parameter.requires_grad_(False)
        yield
    finally:
        for module in modules:
            del module.forward
        for parameter in parameters:
            parameter.requires_grad_(True)


def identity(features: torch.Tensor) -> torch.Tensor:
    """Return the features unchanged."""
    return features


def _frozen_modules(model: KGLForImageClassification, stages: int) -> list[nn.Module]:
    stem = model.backbone.get_submodule(_STEMS[model.config.backbone_config.model_type])
    return [stem, *model.backbone.encoder.stages[:stages]]


def make_views(
    image: torch.Tensor, maps: torch.Tensor | None, augmentation: PairedAugmentation, views: int, digest: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    Return an image unaugmented and in `views - 1` augmented views, reproducible, the same with and without maps.

    Args:
        image: `(3, H, W)` in 0..1.
        maps: `(M, h, w)` in 0..1, or None.
        augmentation: transforms of both.
        views: the number of views, the unaugmented one included.
        digest: the image's hexadecimal digest, which seeds its augmentations.

    Returns:
        `(views, 3, H, W)`, and `(views, M, h, w)` or None.
    """
    copies = image.expand(views, *image.shape)
    map_copies = None if maps is None else maps.expand(views, *maps.shape)
    with seeded_draws(digest):
        augmented, augmented_maps = augmentation(copies, map_copies)
    augmented = torch.cat([image[None], augmented[1:]])
    return augmented, None if maps is None else torch.cat([maps[None], augmented_maps[1:]])


def cache_frozen_features(
    path: Path,
    dataset: Dataset,
    model: KGLForImageClassification,
    image_processor: BaseImageProcessor,
    stages: int,
    views: int,
    augmentation: PairedAugmentation | None,
) -> np.ndarray:
    """
    Write the features of every view of every image to a `.npy` file, `(N, views, C, h, w)` float32, unless it exists.

    Args:
        path: the file; an existing one must belong to this dataset and this model.
        dataset: columns `image` and `digest`.
        model: the classifier with the frozen stages.
        image_processor: the one that the model is trained with.
        stages: the number of frozen stages.
        views: per image, see [`make_views`]; 1 without an augmentation.
        augmentation: of the views.

    Returns:
        The array, memory-mapped.

    Raises:
        InputError: the disk has too little free space.
    """
    with FileLock(path.with_name(f"{path.name}.lock")):  # another process may be writing it
        if not path.exists():
            unfinished = path.with_name(f"{path.name}.unfinished")
            stored = None
            rows = dataset.select_columns(["image", "digest"])
            for index, row in enumerate(progress_bar(rows, "Feature cache", unit=" images")):
                images = to_pixel_values([row["image"]], image_processor, do_normalize=False)
                if augmentation is not None:
                    images, _ = make_views(images[0], None, augmentation, views, row["digest"])
                pixel_values = normalize(images, image_processor).to(model.device)
                features = compute_frozen_features(model, pixel_values, stages).cpu().numpy()
                if stored is None:
                    unfinished.unlink(missing_ok=True)  # a killed run's
                    check_disk_space(
                        path.parent,
                        len(dataset) * features.nbytes,
                        "the features of the frozen stages",
                        "lower --frozen_views",
                    )
                    stored = np.lib.format.open_memmap(unfinished, "w+", np.float32, (len(dataset), *features.shape))
                stored[index] = features
            stored.flush()
            unfinished.replace(path)
    return np.load(path, mmap_mode="r")


@dataclass
class FrozenFeatureCollator:
    """
    Collator of cached features in place of images, each image in one of its views at random.

    Rows have `index` (into the features), `label`, `digest` and, in phase 2, the columns of a prior. Other columns,
    images above all, should be removed: they would be decoded for nothing. Batches have the keys of
    [`DefectCollator`]'s, with features `(B, C, h, w)` as `pixel_values`.

    Args:
        features: `(N, views, C, h, w)`.
        size: `(H, W)` of the images, in whose pixels the augmentation works.
        augmentation: the one that made the views, or None for unaugmented images.
        seed: of the choice of views, as [`DefectCollator`]'s of augmentation.
    """

    features: np.ndarray
    size: tuple[int, int]
    augmentation: PairedAugmentation | None = None
    seed: int | None = None
    epoch: torch.Tensor = field(default_factory=shared_zero, init=False, repr=False)
    _masks: dict[int, torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        views = [0] * len(rows)
        if self.augmentation is not None:
            with repeatable_draws(self.seed, self.epoch, rows):
                views = torch.randint(self.features.shape[1], (len(rows),)).tolist()
        indices = [row["index"] for row in rows]
        batch = {
            "labels": torch.tensor([row["label"] for row in rows]),
            "pixel_values": torch.from_numpy(np.stack([self.features[at] for at in zip(indices, views, strict=True)])),
        }
        if self.seed is not None:
            batch["index"] = torch.tensor(indices)
        if "saliency_prior" not in rows[0]:
            return batch
        masks = torch.stack([self._masks_of_views(row)[view] for row, view in zip(rows, views, strict=True)])
        return batch | {"prior_weight": torch.tensor([row["prior_weight"] for row in rows]), "prior_mask": masks > 0.5}

    def unaugmented(self) -> FrozenFeatureCollator:
        """Return the same collator without augmentation, for evaluation."""
        return replace(self, augmentation=None)

    def _masks_of_views(self, row: dict[str, Any]) -> torch.Tensor:
        """Return the mask of a row's prior in every view, `(views, 1, h, w)`, computed once and kept: it is small."""
        if row["index"] not in self._masks:
            masks = prior_mask(row)[None]
            if self.augmentation is not None:  # geometric transforms do not depend on the image's content
                blank = torch.zeros(3, *self.size)
                _, masks = make_views(blank, masks[0], self.augmentation, self.features.shape[1], row["digest"])
            self._masks[row["index"]] = masks
        return self._masks[row["index"]]


__all__ = [
    "FrozenFeatureCollator",
    "bypass_frozen_stages",
    "cache_frozen_features",
    "check_freezable",
    "compute_frozen_features",
    "make_views",
    "max_freezable_stages",
]
