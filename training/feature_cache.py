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
from tqdm.auto import tqdm
from transformers import BaseImageProcessor

from ..data.images import normalize, to_pixel_values
from ..data.storage import check_disk_space
from ..errors import InputError
from ..modeling_kgl import KGLForImageClassification
from ..saliency.activations import eval_mode
from .augmentation import PairedAugmentation
from .collator import prior_to_channels, split_channels


# What comes before the first stage.
_STEMS = {"resnet": "embedder", "convnext": "embeddings", "convnextv2": "embeddings"}


def max_freezable_stages(model: KGLForImageClassification) -> int:
    """Return how many stages can be frozen: those below the first output, 0 for backbones without separable stages."""
    if model.config.backbone_config.model_type not in _STEMS:
        return 0
    stages = model.backbone.stage_names
    return max(0, min(stages.index(name) for name in model.backbone.out_features) - 1)


def check_freezable(model: KGLForImageClassification, stages: int) -> None:
    """
    Check that the first `stages` stages can be frozen.

    Raises:
        InputError: the backbone's stages cannot be separated, there are not as many, or one of them is an output.
    """
    kind, used = model.config.backbone_config.model_type, ", ".join(model.backbone.out_features)
    if kind not in _STEMS:
        raise InputError(f"--freeze_stages: not with a {kind} backbone, only with {', '.join(_STEMS)}.")
    most = max_freezable_stages(model)
    if most < 1:
        raise InputError(f"--freeze_stages {stages}: there is no stage below {used}, which is trained.")
    if not 1 <= stages <= most:
        raise InputError(f"--freeze_stages {stages}: it must lie in 1..{most}, below {used}, which is trained.")


@torch.no_grad()
def compute_frozen_features(model: KGLForImageClassification, pixel_values: torch.Tensor, stages: int) -> torch.Tensor:
    """What the stem and the first `stages` stages give in eval mode: `(B, C, h, w)` for `(B, 3, H, W)`."""
    features = pixel_values
    with eval_mode(model):
        for module in _frozen_modules(model, stages):
            features = module(features)
    return features


@contextmanager
def bypass_frozen_stages(model: KGLForImageClassification, stages: int) -> Iterator[None]:
    """Within, the model takes the features of the first `stages` stages for `pixel_values`; these are not trained."""
    modules = _frozen_modules(model, stages)
    trained = [parameter for module in modules for parameter in module.parameters() if parameter.requires_grad]
    try:
        for module in modules:
            module.forward = identity  # the module itself stays: backbones watch theirs for hidden states
        for parameter in trained:
            parameter.requires_grad_(False)
        yield
    finally:
        for module in modules:
            del module.forward
        for parameter in trained:
            parameter.requires_grad_(True)


def identity(features: torch.Tensor) -> torch.Tensor:
    return features


def _frozen_modules(model: KGLForImageClassification, stages: int) -> list[nn.Module]:
    stem = model.backbone.get_submodule(_STEMS[model.config.backbone_config.model_type])
    return [stem, *model.backbone.encoder.stages[:stages]]


def make_views(
    image: torch.Tensor, maps: torch.Tensor | None, augmentation: PairedAugmentation, views: int, digest: str
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """
    An image as it is and augmented in `views - 1` ways, the same ones every time, whether with maps or without.

    Args:
        image: `(3, H, W)` in 0..1.
        maps: `(M, h, w)` in 0..1, or None.
        augmentation: what moves both.
        views: how many, the image as it is among them.
        digest: hexadecimal; the image's own, from which its augmentations are drawn.

    Returns:
        `(views, 3, H, W)` and `(views, M, h, w)` or None.
    """
    copies = image.expand(views, *image.shape)
    map_copies = None if maps is None else maps.expand(views, *maps.shape)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(digest[:8], 16))  # torch.manual_seed would reseed GPUs too
        moved, moved_maps = augmentation(copies, map_copies)
    moved = torch.cat([image[None], moved[1:]])
    return moved, None if maps is None else torch.cat([maps[None], moved_maps[1:]])


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
    Every image's features in every view as a `.npy` file, `(N, views, C, h, w)` float32, unless it is there.

    Args:
        path: the file; it must be this dataset's and this model's.
        dataset: columns `image` and `digest`.
        model: its frozen stages are used.
        image_processor: the one the model is trained with.
        stages: how many stages are frozen.
        views: of each image; 1 without an augmentation.
        augmentation: what makes them.

    Returns:
        The array, mapped from the file.

    Raises:
        InputError: there is no room for it.
    """
    with FileLock(path.with_name(f"{path.name}.lock")):  # another process may be writing it
        if not path.exists():
            unfinished = path.with_name(f"{path.name}.unfinished")
            stored = None
            for index, row in enumerate(tqdm(dataset.select_columns(["image", "digest"]), "Frozen stages")):
                raw = to_pixel_values([row["image"]], image_processor, do_normalize=False)[0]
                seen = raw[None]
                if augmentation is not None:
                    seen, _ = make_views(raw, None, augmentation, views, row["digest"])
                pixel_values = normalize(seen, image_processor).to(model.device)
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
    Collates stored features in place of images, each image in one of its views at random.

    Rows have `index` (into the features), `label`, `digest` and, in phase 2, `saliency_prior` and `prior_weight`; what
    is returned has the names of [`DefectCollator`]'s, `pixel_values` being features `(B, C, h, w)`.

    Args:
        features: `(N, views, C, h, w)`.
        size: `(H, W)` of the images, in whose pixels the augmentation moves priors.
        augmentation: the one that the views were made by, or None for images as they are.
        ignore_band: as in [`DefectCollator`].

    Rows need no other columns, images least of all: they would be decoded for nothing.
    """

    features: np.ndarray
    size: tuple[int, int]
    augmentation: PairedAugmentation | None = None
    ignore_band: float = 0.0
    _moved: dict[int, torch.Tensor] = field(default_factory=dict, init=False, repr=False)

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        views = [0] * len(rows)
        if self.augmentation is not None:
            views = torch.randint(self.features.shape[1], (len(rows),)).tolist()
        indices = [row["index"] for row in rows]
        batch = {
            "labels": torch.tensor([row["label"] for row in rows]),
            "pixel_values": torch.from_numpy(np.stack([self.features[at] for at in zip(indices, views, strict=True)])),
        }
        if "saliency_prior" not in rows[0]:
            return batch
        maps = torch.stack([self._maps_of(row)[view] for row, view in zip(rows, views, strict=True)])
        return batch | {"prior_weight": torch.tensor([row["prior_weight"] for row in rows])} | split_channels(maps)

    def unaugmented(self) -> FrozenFeatureCollator:
        """The same for images as they are."""
        return replace(self, augmentation=None)

    def _maps_of(self, row: dict[str, Any]) -> torch.Tensor:
        """A row's prior in every view, `(views, 3, h, w)`, moved once and kept: they are small."""
        if row["index"] not in self._moved:
            maps = prior_to_channels(row["saliency_prior"], self.ignore_band)[None]
            if self.augmentation is not None:  # where an image's pixels go does not depend on what they show
                blank = torch.zeros(3, *self.size)
                _, maps = make_views(blank, maps[0], self.augmentation, self.features.shape[1], row["digest"])
            self._moved[row["index"]] = maps
        return self._moved[row["index"]]


__all__ = [
    "FrozenFeatureCollator",
    "bypass_frozen_stages",
    "cache_frozen_features",
    "check_freezable",
    "compute_frozen_features",
    "make_views",
    "max_freezable_stages",
]
