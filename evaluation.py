"""What a classifier says of a data set, and how right it is: classes and maps."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import BaseImageProcessor

from .collator import to_pixel_values
from .configuration_kgl import KGLConfig
from .metrics import DefectClassification, concentration, defect_scores, pixel_average_precision, pointing_game
from .modeling_kgl import KGLForImageClassification
from .runs import write_text
from .saliency import layer_cam, to_peak_one
from .saliency.activations import undisturbed
from .schema import mask_array, mask_on_grid


@dataclass
class Predictions:
    """Probabilities `(N, K)`, and maps `(N, h, w)` in 0..1: the likeliest defect class's, and the saliency head's."""

    probabilities: np.ndarray
    class_map: np.ndarray
    saliency: np.ndarray


def predict(
    model: KGLForImageClassification, dataset: Dataset, image_processor: BaseImageProcessor, batch_size: int = 16
) -> Predictions:
    """Classes and maps of every picture, by nothing but the picture: labels and masks are not looked at."""
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
    with undisturbed(model):
        for pixel_values in batches:
            output = model(pixel_values.to(model.device))
            logits = output.logits.float()
            defects = likeliest_defects(logits, model.config.defect_free_id)
            maps = layer_cam(model, output.feature_map, output.saliency, defects)
            certain = torch.finfo(torch.double).eps  # no exact 0 and 1, which would be hard labels
            parts["probabilities"].append(logits.double().softmax(dim=1).clamp(certain, 1 - certain).cpu())
            parts["class_map"].append(to_peak_one(maps).cpu())
            parts["saliency"].append(output.saliency[:, 0].float().sigmoid().cpu())
    return Predictions(**{name: torch.cat(tensors).numpy() for name, tensors in parts.items()})


def likeliest_defects(scores: torch.Tensor, defect_free_id: int | None) -> torch.Tensor:
    """The class of the highest score among those that are a defect, `(B,)` for logits or probabilities `(B, K)`."""
    if defect_free_id is None:
        return scores.argmax(dim=1)
    good = torch.arange(scores.shape[1], device=scores.device) == defect_free_id
    return scores.masked_fill(good, -torch.inf).argmax(dim=1)


def evaluate_predictions(
    predictions: Predictions, dataset: Dataset, defect_free_id: int | None, size: tuple[int, int]
) -> dict[str, Any]:
    """
    Metrics of [`DefectClassification`], and where pictures have masks, how right the maps are.

    `map_...` is the class map's, `saliency_...` the saliency head's; see [`evaluate_maps`].
    """
    results = DefectClassification(keep_in_memory=True).compute(
        predictions=predictions.probabilities, references=dataset["label"], defect_free_id=defect_free_id
    )
    maps = {"map": predictions.class_map, "saliency": predictions.saliency}
    return results | evaluate_maps(maps, dataset, size)


def evaluate_maps(maps: dict[str, np.ndarray], dataset: Dataset, size: tuple[int, int]) -> dict[str, float]:
    """
    How right maps are over the pictures with a defect in their mask; nothing where there is none.

    `NAME_ap` is that of the pixels at `size = (H, W)`, maps enlarged bilinearly, all pictures pooled, so that large
    defects count most; `NAME_picture_ap` the mean of each picture's own, so that all count alike. `NAME_cell_ap`
    (pooled) and `NAME_pointing` (the share of peaks that lie on the defect) are on the maps' own grid, where a cell is
    defect if any of its pixels is; `NAME_entropy` and `NAME_area90` those of [`concentration`].

    Args:
        maps: by name, `(N, h, w)`, one map for every picture.
        dataset: column `mask`.
        size: of the pixels.
    """
    masks = [mask_array(mask, size) for mask in dataset["mask"]]
    marked = [index for index, mask in enumerate(masks) if mask is not None and mask.any()]
    results: dict[str, float] = {}
    if marked:
        truth = np.stack([masks[index] for index in marked])
        for name, of_all in maps.items():
            of_marked = of_all[marked]
            cells = list(mask_on_grid(truth, of_marked.shape[1:]))
            enlarged = list(enlarge(of_marked, size))
            results[f"{name}_ap"] = pixel_average_precision(enlarged, truth)
            each = [pixel_average_precision([one], [mask]) for one, mask in zip(enlarged, truth, strict=True)]
            results[f"{name}_picture_ap"] = float(np.mean(each))
            results[f"{name}_cell_ap"] = pixel_average_precision(list(of_marked), cells)
            results[f"{name}_pointing"] = pointing_game(list(of_marked), cells)
            results |= {f"{name}_{measure}": value for measure, value in concentration(of_marked).items()}
    return results


def write_predictions(
    path: Path, dataset: Dataset, predictions: dict[str, Predictions], configs: dict[str, KGLConfig]
) -> None:
    """
    A CSV of every picture's file name and class, and what each model says of it.

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


def enlarge(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Maps `(N, h, w)` at `size = (H, W)`, bilinearly."""
    tensor = torch.from_numpy(np.ascontiguousarray(maps, dtype=np.float32))
    return F.interpolate(tensor[:, None], size=size, mode="bilinear", align_corners=False)[:, 0].numpy()


__all__ = [
    "Predictions",
    "enlarge",
    "evaluate_maps",
    "evaluate_predictions",
    "likeliest_defects",
    "predict",
    "predict_batches",
    "write_predictions",
]
