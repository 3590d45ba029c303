"""What the training images look like: the range of their properties, kept in a model's config and buffers."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image as PILImage
from sklearn.model_selection import GroupKFold
from transformers import BaseImageProcessor

from ..data.images import to_pixel_values
from ..data.progress import progress_bar
from ..errors import InputError
from ..heads_kgl import average_features
from ..modeling_kgl import KGLForImageClassification
from ..pipeline_kgl import PROPERTIES, image_properties, upright_rgb
from ..saliency.activations import eval_mode


MAX_IMAGES = 512  # more would narrow the limits little
OUTSIDE = 0.01  # share of images like the training ones beyond each limit
SIZES = ("width", "height")
_FOLDS = 10
_MARGIN = 1e-4  # of a limit, so that rounding on another device changes no answer


@dataclass(frozen=True)
class ImageMeasures:
    """
    Measures of N images.

    Attributes:
        values: `brightness`, `contrast`, `detail`, `width` and `height`, each `(N,)`.
        features: their average features, `(N, P)` float64.
    """

    values: dict[str, np.ndarray]
    features: np.ndarray

    def select(self, rows: np.ndarray) -> ImageMeasures:
        """Return the measures of some of the images."""
        return ImageMeasures({name: one[rows] for name, one in self.values.items()}, self.features[rows])

    def with_distances(self, distances: np.ndarray) -> dict[str, np.ndarray]:
        """Return the values, and `feature_distance`, `(N,)`."""
        return self.values | {"feature_distance": distances}


@torch.no_grad()
def measure_images(
    model: KGLForImageClassification, batches: Iterable[list[PILImage.Image]], image_processor: BaseImageProcessor
) -> ImageMeasures:
    """Measure images, given in batches; the model keeps its training or evaluation mode."""
    seen, features, sizes = [], [], []
    with eval_mode(model):
        for batch in batches:
            images = [upright_rgb(image) for image in batch]
            pixel_values = to_pixel_values(images, image_processor).to(model.device)
            seen.append(image_properties(pixel_values, image_processor).cpu().double())
            features.append(average_features(model.features(pixel_values)[0]).cpu().double())
            sizes += [image.size for image in images]
    columns = [*torch.cat(seen).numpy().T, *np.asarray(sizes).T]
    names = [name for name in PROPERTIES if name != "feature_distance"]
    return ImageMeasures(dict(zip([*names, *SIZES], columns, strict=True)), torch.cat(features).numpy())


def measure_sample(
    model: KGLForImageClassification, dataset: Dataset, image_processor: BaseImageProcessor, batch_size: int = 16
) -> tuple[ImageMeasures, list[str]]:
    """Return the measures and the groups of at most `MAX_IMAGES` images, the same ones whenever it is called."""
    rows = np.sort(np.random.default_rng(0).permutation(len(dataset))[:MAX_IMAGES])
    sample = dataset.select(rows)
    batches = progress_bar(
        sample.select_columns("image").iter(batch_size), "Range of images", total=-(-len(sample) // batch_size)
    )
    return measure_images(model, (batch["image"] for batch in batches), image_processor), sample["group"][:]


def set_training_range(
    model: KGLForImageClassification, train: Dataset, image_processor: BaseImageProcessor, batch_size: int
) -> dict[str, np.ndarray] | None:
    """
    Measure training images, and set the model's `feature_center`, `feature_scale` and `config.training_range`.

    Returns the values that chose the range, as [`find_range`] takes them; None where it stays unknown. A classifier
    whose training diverged, so that features are not finite, is an [`InputError`].

    Args:
        model: trained.
        train: columns `image` and `group`; of fewer than two images the range stays unknown.
        image_processor: the model's.
        batch_size: images per forward pass.
    """
    if len(train) < 2:
        return None
    measures, groups = measure_sample(model, train, image_processor, batch_size)
    if not np.isfinite(measures.features).all():
        raise InputError("The classifier's features are not finite: train it anew with a lower --learning_rate.")
    center, scale = center_and_scale(measures.features)
    model.feature_center.copy_(torch.from_numpy(center))
    model.feature_scale.copy_(torch.from_numpy(scale))
    values = measures.with_distances(held_out_distances(measures.features, groups))
    model.config.training_range = find_range(values, groups)
    return values


def center_and_scale(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """
    Return mean and spread of each feature over the images `(N, P)`, both `(P,)`.

    The spread is the standard deviation, with half of the features' median one added in squares: features that hardly
    vary would decide alone otherwise.
    """
    deviation = features.std(axis=0)
    return features.mean(axis=0), np.sqrt(deviation**2 + (0.5 * np.median(deviation)) ** 2) + 1e-9


def feature_distances(features: np.ndarray, center: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Return the distances `(N,)` of features `(N, P)`, as [`KGLForImageClassification.feature_distance`] does."""
    return np.sqrt(np.square((features - center) / scale).mean(axis=1))


def held_out_distances(features: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """
    Return the distance of each image from the others, `(N,)`, in the folds of [`range_folds`].

    Args:
        features: `(N, P)`, N > 1.
        groups: of the images.
    """
    distances = np.empty(len(features))
    for rest, held_out in range_folds(groups):
        distances[held_out] = feature_distances(features[held_out], *center_and_scale(features[rest]))
    return distances


def range_folds(groups: Sequence[str]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return the rows `(rest, held out)` of ten folds that keep groups whole; of one group, each image is its own."""
    names = np.asarray(groups) if len(set(groups)) > 1 else np.arange(len(groups))
    return list(GroupKFold(min(_FOLDS, len(np.unique(names)))).split(names, groups=names))


def find_range(values: dict[str, np.ndarray], groups: Sequence[str]) -> dict[str, Any]:
    """
    Return the `training_range` of a model's config: [`find_limits`], and how many images pass those of the others.

    Args:
        values: of N > 1 images: `brightness`, `contrast`, `detail`, `feature_distance`, `width` and `height`, each
            `(N,)`.
        groups: of the images, `(N,)`.
    """
    names, outside = np.asarray(groups), np.zeros(len(groups), dtype=bool)
    for rest, held_out in range_folds(groups):
        limits = find_limits({name: one[rest] for name, one in values.items()}, names[rest])
        outside[held_out] = is_outside({name: one[held_out] for name, one in values.items()}, limits)
    counts = {"images": len(names), "groups": len(np.unique(names)), "expected_share": float(outside.mean())}
    return counts | find_limits(values, names)


def find_limits(values: dict[str, np.ndarray], groups: Sequence[str]) -> dict[str, list[float]]:
    """
    Return `[low, high]` of each property.

    Of each group of images the largest and the smallest value count: images of one group resemble each other. A limit
    is the `ceil((G + 1) * 0.99)`-th of the G groups' extremes, the utmost one of fewer than 99 groups. The expected
    share of images of further such groups beyond it is then at most `max(0.01, 1 / (G + 1))` (conformal prediction).
    Sizes have the exact range.

    Args:
        values: as [`find_range`].
        groups: of the images.
    """
    names, group_of = np.unique(groups, return_inverse=True)
    number = len(names)
    rank = min(number, math.ceil((number + 1) * (1 - OUTSIDE) - 1e-9))  # rounding must not raise a whole number
    limits: dict[str, list[float]] = {}
    for name in PROPERTIES:
        lowest, highest = np.full(number, np.inf), np.full(number, -np.inf)
        np.minimum.at(lowest, group_of, values[name])
        np.maximum.at(highest, group_of, values[name])
        low = 0.0 if name == "feature_distance" else float(np.sort(lowest)[number - rank]) * (1 - _MARGIN)
        limits[name] = [low, float(np.sort(highest)[rank - 1]) * (1 + _MARGIN)]
    return limits | {name: [int(values[name].min()), int(values[name].max())] for name in SIZES}


def is_outside(values: dict[str, np.ndarray], limits: dict[str, list[float]]) -> np.ndarray:
    """Return which images lie outside of a limit, `(N,)` bool, as `unlike_training` of the pipeline says it."""
    ranges = [(values[name], *limits[name]) for name in (*PROPERTIES, *SIZES)]
    return np.any([(value < low) | (value > high) for value, low, high in ranges], axis=0)


__all__ = [
    "MAX_IMAGES",
    "SIZES",
    "ImageMeasures",
    "center_and_scale",
    "feature_distances",
    "find_limits",
    "find_range",
    "range_folds",
    "held_out_distances",
    "is_outside",
    "measure_images",
    "measure_sample",
    "set_training_range",
]
