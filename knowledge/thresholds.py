"""Otsu's threshold of a prior: the cells above it count as defect."""

from __future__ import annotations

import numpy as np
from datasets import Dataset, Value
from skimage.filters import threshold_otsu


NO_CELL = 255  # threshold of a blank prior: no cell lies above it


def otsu_threshold(prior: np.ndarray) -> int:
    """
    Return Otsu's threshold (1979) of a stored prior `(h, w)` uint8, in 0..255: cells above it count as defect.

    A prior with one value only has no two classes to separate: all of its cells count as defect, or none where it is
    blank. A mask of 0 and 255 has the threshold 0.
    """
    lowest, highest = int(prior.min()), int(prior.max())
    if highest == 0:
        return NO_CELL
    return highest - 1 if lowest == highest else int(threshold_otsu(prior))


def add_prior_thresholds(dataset: Dataset) -> Dataset:
    """
    Return the dataset with the column `prior_threshold` (uint8) of its `saliency_prior`, computed anew if present.

    [`add_saliency_priors`] and [`write_saliency_priors`] store the column themselves; priors from elsewhere need this
    before they are trained on.
    """
    thresholds = [otsu_threshold(np.asarray(prior, dtype=np.uint8)) for prior in dataset["saliency_prior"]]
    others = [name for name in dataset.column_names if name != "prior_threshold"]
    return dataset.select_columns(others).add_column("prior_threshold", thresholds, feature=Value("uint8"))


__all__ = ["NO_CELL", "add_prior_thresholds", "otsu_threshold"]
