"""Priors from the source that is asked for: the primary's saliency, good parts, or where both agree."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Value, load_from_disk
from transformers import BaseImageProcessor

from ..data.host_folders import find_writers, send_to_hosts
from ..data.splits import count_groups_per_class
from ..data.storage import run_on_main_process, save_dataset
from ..errors import InputError
from ..modeling_kgl import KGLForImageClassification
from .arguments import TrainPriorArguments
from .good_parts import write_good_parts_priors
from .prior_columns import PRIOR_COLUMNS, prior_features
from .saliency_priors import write_saliency_priors
from .thresholds import otsu_threshold


def resolve_source(source: str, train: Dataset, defect_free_label: str | None, pretrained: bool) -> str:
    """
    Return the source of the priors, `auto` resolved.

    Args:
        source: one of `SOURCES`.
        train: columns `label` and `group`.
        defect_free_label: name of the class without defects, None where there is none.
        pretrained: whether the backbone is; untrained features know nothing of good parts.

    Raises:
        InputError: good parts are asked for where none can be learned from.
    """
    good = 0 if defect_free_label is None else count_groups_per_class(train)[defect_free_label]
    if source == "auto":
        return "good_parts" if pretrained and good >= 2 else "saliency"
    if source != "saliency" and good < 2:
        raise InputError(
            f"--prior_source {source}: it learns from at least two independent defect-free images, and there are "
            f"{good}. Add good images and name their class by --defect_free_label, or use --prior_source saliency."
        )
    if source != "saliency" and not pretrained:
        raise InputError(f"--prior_source {source} goes with --backbone: untrained features know no good parts.")
    return source


def write_priors(
    dataset: Dataset,
    primary: KGLForImageClassification,
    cell_model: KGLForImageClassification | None,
    image_processor: BaseImageProcessor,
    folder: Path,
    batch_size: int,
    args: TrainPriorArguments,
    grid: tuple[int, int],
) -> Dataset:
    """
    Write the priors of all images to `folder`, and return the table, as the function of each source does.

    Args:
        dataset: columns `image`, `label`, `group` and optionally `mask`.
        primary: the primary classifier.
        cell_model: pretrained, with the head `stages` and a fitted cell projection; for good parts.
        image_processor: of both models.
        folder: of the table.
        batch_size: images per forward pass.
        args: `prior_source` is not `auto`.
        grid: of the priors, `(h, w)`.

    Raises:
        InputError: as [`write_saliency_priors`] and [`write_good_parts_priors`].
    """
    if args.prior_source == "saliency":
        return write_saliency_priors(dataset, primary, image_processor, folder, batch_size, args)
    if args.prior_source == "good_parts":
        return write_good_parts_priors(dataset, cell_model, image_processor, folder, batch_size, grid)
    first, second = (folder.with_name(f"{folder.name}_{source}") for source in ("saliency", "good_parts"))
    own = write_saliency_priors(dataset, primary, image_processor, first, batch_size, args)
    good_parts = write_good_parts_priors(dataset, cell_model, image_processor, second, batch_size, grid)
    run_on_main_process(lambda: folder.exists() or save_dataset(agreement(own, good_parts, grid), folder))
    send_to_hosts(folder, find_writers(folder.parent))
    return load_from_disk(folder)


def agreement(first: Dataset, second: Dataset, grid: tuple[int, int]) -> Dataset:
    """Return the priors where two tables of the same images agree: geometric mean of maps, product of weights."""
    maps = [
        np.sqrt(np.asarray(one, dtype=np.float32) * np.asarray(other, dtype=np.float32)).round().astype(np.uint8)
        for one, other in zip(first["saliency_prior"], second["saliency_prior"], strict=True)
    ]
    weights = [one * other for one, other in zip(first["prior_weight"], second["prior_weight"], strict=True)]
    columns = {name: first[name][:] for name in first.column_names if name not in PRIOR_COLUMNS}
    columns |= {
        "saliency_prior": maps,
        "prior_threshold": [otsu_threshold(one) for one in maps],
        "prior_weight": weights,
    }
    types = {name: Value("string") for name in columns if name not in PRIOR_COLUMNS}
    return Dataset.from_dict(columns, features=Features(types | prior_features(grid)))


__all__ = ["agreement", "resolve_source", "write_priors"]
