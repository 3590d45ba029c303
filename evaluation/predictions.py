"""Class probabilities and maps of a dataset, and their CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from tqdm.auto import tqdm
from transformers import BaseImageProcessor

from ..configuration_kgl import KGLConfig
from ..data.images import to_pixel_values
from ..data.storage import write_text
from ..modeling_kgl import KGLForImageClassification, class_probabilities
from ..saliency.activations import eval_mode
from ..saliency.cam import layer_cam
from ..saliency.maps import to_peak_one
from .metrics import defect_scores


@dataclass
class Predictions:
    """Probabilities `(N, K)`, and maps `(N, h, w)` in 0..1: the likeliest defect class's, and the saliency head's."""

    probabilities: np.ndarray
    class_map: np.ndarray
    saliency: np.ndarray


def predict(
    model: KGLForImageClassification, dataset: Dataset, image_processor: BaseImageProcessor, batch_size: int = 16
) -> Predictions:
    """Classes and maps of every image, by nothing but the image: labels and masks are not looked at."""
    batches = dataset.select_columns("image").iter(batch_size)
    shown = tqdm(batches, "Predictions", -(-len(dataset) // batch_size))
    return predict_batches(model, (to_pixel_values(batch["image"], image_processor) for batch in shown))


@torch.no_grad()
def predict_batches(model: KGLForImageClassification, batches: Iterable[torch.Tensor]) -> Predictions:
    """
    Classes and maps of batches of `pixel_values (B, 3, H, W)`.

    The model is left in the mode it was in. The class map is the LayerCAM of the most probable class that is a defect,
    scaled by its own peak.
    """
    parts: dict[str, list[torch.Tensor]] = {"probabilities": [], "class_map": [], "saliency": []}
    with eval_mode(model):
        for pixel_values in batches:
            output = model(pixel_values.to(model.device))
            logits = output.logits.float()
            defects = likeliest_defects(logits, model.config.defect_free_id)
            maps = layer_cam(model, output.feature_map, output.saliency, defects)
            parts["probabilities"].append(class_probabilities(logits).cpu())
            parts["class_map"].append(to_peak_one(maps).cpu())
            parts["saliency"].append(output.saliency[:, 0].float().sigmoid().cpu())
    return Predictions(**{name: torch.cat(tensors).numpy() for name, tensors in parts.items()})


def likeliest_defects(scores: torch.Tensor, defect_free_id: int | None) -> torch.Tensor:
    """The class of the highest score among those that are a defect, `(B,)` for logits or probabilities `(B, K)`."""
    if defect_free_id is None:
        return scores.argmax(dim=1)
    good = torch.arange(scores.shape[1], device=scores.device) == defect_free_id
    return scores.masked_fill(good, -torch.inf).argmax(dim=1)


def write_predictions(
    path: Path, dataset: Dataset, predictions: dict[str, Predictions], configs: dict[str, KGLConfig]
) -> None:
    """
    A CSV of every image's file name and class, and what each model says of it.

    Columns `MODEL: P(CLASS)` and, where a class is free of defects, `MODEL: P(defect)` and `MODEL: defective` by its
    operating point (one half where it has none).
    """
    names = dataset.features["label"].names
    columns = {"file_name": dataset["file_name"][:], "label": [names[label] for label in dataset["label"][:]]}
    for model, one in predictions.items():
        columns |= {f"{model}: P({name})": one.probabilities[:, index] for index, name in enumerate(names)}
        if configs[model].defect_free_id is not None:
            scores = defect_scores(one.probabilities, configs[model].defect_free_id)
            columns |= {f"{model}: P(defect)": scores, f"{model}: defective": scores >= configs[model].threshold}
    text = io.StringIO(newline="")
    table = csv.writer(text, lineterminator="\n")
    table.writerow(columns)
    for row in zip(*columns.values(), strict=True):
        table.writerow([f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row])
    write_text(path, text.getvalue())


__all__ = ["Predictions", "likeliest_defects", "predict", "predict_batches", "write_predictions"]
