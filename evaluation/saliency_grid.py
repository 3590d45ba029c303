"""Draw the same images under several saliency methods."""

from __future__ import annotations

from pathlib import Path

import torch
from datasets import Dataset
from transformers import BaseImageProcessor

from ..data.images import to_pixel_values
from ..errors import InputError
from ..knowledge.saliency_priors import check_classes
from ..modeling_kgl import KGLForImageClassification
from ..saliency.compute import compute_saliency
from ..saliency.maps import to_peak_one
from .image_grid import draw_image_grid
from .visualization import select_grid_rows


def draw_saliency_grid(
    path: Path,
    images: Dataset,
    model: KGLForImageClassification,
    image_processor: BaseImageProcessor,
    methods: list[str],
    count: int,
    title: str,
) -> Dataset:
    """
    Write a PNG of the true class's maps, one column per method, each map scaled by its own peak.

    Args:
        path: the PNG.
        images: columns `image`, `label` and `mask`.
        model: the classifier, in eval mode.
        image_processor: the classifier's.
        methods: of [`compute_saliency`].
        count: how many images with a defect to draw, the classes taking turns.
        title: of the figure.

    Returns:
        The images drawn.

    Raises:
        InputError: classes that are not the model's, a method that does not fit it, or a file that cannot be written.
    """
    names = images.features["label"].names
    check_classes(names, model)
    defect_free = model.config.defect_free_label  # its prior is blank
    rows = images.select([index for index, label in enumerate(images["label"]) if names[label] != defect_free])
    rows = rows.select(select_grid_rows(rows, count, defect_free))

    pixel_values = to_pixel_values(rows["image"], image_processor).to(model.device)
    targets = torch.tensor([model.config.label2id[names[label]] for label in rows["label"]], device=model.device)
    try:
        maps = {
            method: to_peak_one(compute_saliency(model, pixel_values, targets, method)).cpu().numpy()
            for method in methods
        }
    except ValueError as error:
        raise InputError(f"--methods: {error}") from error
    with torch.no_grad():
        probabilities = model(pixel_values).logits.softmax(dim=1).gather(1, targets[:, None])[:, 0].tolist()
    captions = {"image": [f"P(true class) {value:.2f}" for value in probabilities]}
    size = tuple(pixel_values.shape[-2:])
    try:
        draw_image_grid(path, rows, maps, size, title, "share of the map's own peak", captions, {})
    except OSError as error:
        raise InputError(f"--output {path}: it cannot be written. {error}") from error
    return rows


__all__ = ["draw_saliency_grid"]
