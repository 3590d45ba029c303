"""The report's section on the training images: their range, and how many test images lie outside of it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import BaseImageProcessor

from ..configuration_kgl import KGLConfig
from ..data.storage import write_json
from ..modeling_kgl import KGLForImageClassification
from ..pipeline_kgl import PROPERTIES
from .charts import Chart, property_histogram
from .training_range import SIZES, feature_distances, is_outside, measure_sample


TRAINING_IMAGES_FILE = "training_images.json"  # of the report's section, in a run's folder
_TITLES = {
    "brightness": "Brightness, grey levels",
    "contrast": "Contrast, grey levels",
    "detail": "Detail, grey levels",
    "feature_distance": "Distance of the features",
    "width": "Width, pixels",
    "height": "Height, pixels",
}


@dataclass(frozen=True)
class TrainingImages:
    """
    What the report shows of the training images.

    Attributes:
        rows: of the table, per property: title, range of the training images, range of the test images, and how many
            of these lie outside.
        charts: a histogram per property, sizes left out.
        training: number of training images that were measured.
        test: number of test images that were measured.
        outside: number of these outside of any range.
        expected_percent: how many percent would be by chance.
    """

    rows: list[tuple[str, str, str, str]]
    charts: list[Chart]
    training: int
    test: int
    outside: int
    expected_percent: str


def write_image_values(path: Path, split: str, values: dict[str, np.ndarray]) -> None:
    """
    Write the properties of a split's images, beside those of other splits.

    Args:
        path: the JSON to write: `training` and `test`, each a list of numbers per property.
        split: `training` or `test`.
        values: of N images, each `(N,)`, as [`set_training_range`] returns them.
    """
    content = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    write_json(path, content | {split: {name: [float(f"{one:.6g}") for one in values[name]] for name in _TITLES}})


def write_test_values(
    path: Path, model: KGLForImageClassification, test: Dataset, image_processor: BaseImageProcessor
) -> None:
    """
    Measure test images, at most as many as the range was measured on, and write their properties.

    Args:
        path: of [`write_image_values`], with the training images; nothing is written where it is missing.
        model: the final classifier.
        test: columns `image` and `group`.
        image_processor: the model's.
    """
    if not path.exists():
        return
    measures, _ = measure_sample(model, test, image_processor)
    center, scale = (one.cpu().double().numpy() for one in (model.feature_center, model.feature_scale))
    write_image_values(path, "test", measures.with_distances(feature_distances(measures.features, center, scale)))


def read_training_images(path: Path, config: KGLConfig) -> TrainingImages | None:
    """
    Return what the report shows; None where the run has no such file.

    Args:
        path: the file of [`write_image_values`].
        config: the final classifier's.
    """
    if not path.exists():
        return None
    stored = json.loads(path.read_text(encoding="utf-8"))
    training, test = ({name: np.asarray(stored[split][name]) for name in _TITLES} for split in ("training", "test"))
    limits: dict[str, Any] = {name: config.training_range[name] for name in _TITLES}
    rows = []
    for name, title in _TITLES.items():
        low, high = limits[name]
        outside = (test[name] < low) | (test[name] > high)
        rows.append((title, _range(low, high), _range(test[name].min(), test[name].max()), str(int(outside.sum()))))
    return TrainingImages(
        rows=rows,
        charts=[property_histogram(_TITLES[name], training[name], test[name], limits[name]) for name in PROPERTIES],
        training=len(training[SIZES[0]]),
        test=len(test[SIZES[0]]),
        outside=int(is_outside(test, limits).sum()),
        expected_percent=f"{100 * config.training_range['expected_share']:.0f}",
    )


def _range(low: float, high: float) -> str:
    return f"{low:.4g} … {high:.4g}"


__all__ = ["TRAINING_IMAGES_FILE", "TrainingImages", "read_training_images", "write_image_values", "write_test_values"]
