"""Class probabilities and maps of a dataset, and their CSV."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from datasets import Dataset
from transformers import BaseImageProcessor

from ..configuration_kgl import KGLConfig
from ..data.images import to_pixel_values
from ..data.progress import progress_bar
from ..data.storage import write_text
from ..errors import InputError
from ..modeling_kgl import KGLForImageClassification, class_probabilities
from ..saliency.activations import eval_mode
from ..saliency.cam import layer_cam
from ..saliency.maps import to_peak_one
from .metrics import defect_scores


@dataclass
class Predictions:
    """
    Predictions of a classifier for N images.

    Args:
        probabilities: `(N, K)`.
        class_map: LayerCAM of the most probable defect class, `(N, h, w)`, each scaled to peak 1.
        saliency: heat map of the saliency head, `(N, h, w)` in 0..1.
    """

    probabilities: np.ndarray
    class_map: np.ndarray
    saliency: np.ndarray

    def select(self, rows: Sequence[int]) -> Predictions:
        """Return the predictions of some of the images."""
        return Predictions(**{one.name: vars(self)[one.name][rows] for one in fields(self)})


def predict(
    model: KGLForImageClassification, dataset: Dataset, image_processor: BaseImageProcessor, batch_size: int = 16
) -> Predictions:
    """Predict all images of a dataset from its column `image` alone; labels and masks are not read."""
    batches = dataset.select_columns("image").iter(batch_size)
    progress = progress_bar(batches, "Predictions", total=-(-len(dataset) // batch_size))
    return predict_batches(model, (to_pixel_values(batch["image"], image_processor) for batch in progress))


@torch.no_grad()
def predict_batches(model: KGLForImageClassification, batches: Iterable[torch.Tensor]) -> Predictions:
    """
    Predict batches of `pixel_values (B, 3, H, W)`; the model keeps its training or evaluation mode.

    Raises:
        InputError: outputs that are not finite, of a classifier whose training diverged.
    """
    parts: dict[str, list[torch.Tensor]] = {"probabilities": [], "class_map": [], "saliency": []}
    with eval_mode(model):
        for pixel_values in batches:
            output = model(pixel_values.to(model.device))
            logits = output.logits.float()
            if not logits.isfinite().all():
                raise InputError(
                    "The classifier's outputs are not finite: train it anew with a lower --learning_rate."
                )
            targets = most_probable_defects(logits, model.config.defect_free_id)
            maps = layer_cam(model, output.feature_maps, output.saliency, targets)
            parts["probabilities"].append(class_probabilities(logits).cpu())
            parts["class_map"].append(to_peak_one(maps).cpu())
            parts["saliency"].append(output.saliency[:, 0].float().sigmoid().cpu())
    return Predictions(**{name: torch.cat(tensors).numpy() for name, tensors in parts.items()})


def most_probable_defects(scores: torch.Tensor, defect_free_id: int | None) -> torch.Tensor:
    """Return the defect class of the highest score, `(B,)`, of logits or probabilities `(B, K)`."""
    if defect_free_id is None:
        return scores.argmax(dim=1)
    defect_free = torch.arange(scores.shape[1], device=scores.device) == defect_free_id
    return scores.masked_fill(defect_free, -torch.inf).argmax(dim=1)


def write_predictions(
    path: Path,
    dataset: Dataset,
    predictions: dict[str, Predictions],
    configs: dict[str, KGLConfig],
    groups: Sequence[str] | None = None,
) -> None:
    """
    Write a CSV with one row per image.

    Columns: `file_name`, `label`, `group` (only where one is known), and for each model `MODEL_predicted_label`,
    `MODEL_defect_score`, `MODEL_defective` and `MODEL_decision` (these three only where a class is defect-free;
    decided by the model's operating point), and `MODEL_probability_CLASS`. Numbers have full
    precision, so that decisions can be made anew from them.

    Args:
        path: the CSV to write.
        dataset: columns `file_name` and `label`.
        predictions: model to its predictions of `dataset`.
        configs: model to its config.
        groups: of the images, such as parts; "" where it is unknown.
    """
    names = dataset.features["label"].names
    columns = {"file_name": dataset["file_name"][:], "label": [names[label] for label in dataset["label"][:]]}
    if groups is not None and any(groups):
        columns["group"] = list(groups)
    for model, predicted in predictions.items():
        probabilities, config = predicted.probabilities, configs[model]
        columns[f"{model}_predicted_label"] = [names[index] for index in probabilities.argmax(axis=1)]
        if config.defect_free_id is not None:
            scores = defect_scores(probabilities, config.defect_free_id)
            columns[f"{model}_defect_score"] = scores
            columns |= decision_columns(model, scores, config)
        columns |= {f"{model}_probability_{name}": probabilities[:, index] for index, name in enumerate(names)}
    write_text(path, pd.DataFrame(columns).to_csv(index=False, lineterminator="\n"))


def decision_columns(model: str, scores: np.ndarray, config: KGLConfig) -> dict[str, list[str]]:
    """Return the columns `MODEL_defective` and `MODEL_decision` of `P(defect)`, `(N,)`."""
    return {
        f"{model}_defective": [str(bool(score >= config.threshold)) for score in scores],
        f"{model}_decision": [config.decision(score) for score in scores],
    }


__all__ = [
    "Predictions",
    "decision_columns",
    "most_probable_defects",
    "predict",
    "predict_batches",
    "write_predictions",
]
