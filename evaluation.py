"""What a classifier says of a data set, and how right it is: classes and maps."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset
from torch.nn import functional as F
from tqdm.auto import tqdm
from transformers import BaseImageProcessor

from .collator import to_pixel_values
from .data import mask_array
from .metrics import DefectClassification, pixel_average_precision
from .modeling_kgl import KGLForImageClassification
from .saliency import layer_cam, to_peak_one


@dataclass
class Predictions:
    """Probabilities `(N, K)`, and maps `(N, h, w)` in 0..1: the likeliest defect class's, and the saliency head's."""

    probabilities: np.ndarray
    class_map: np.ndarray
    saliency: np.ndarray


@torch.no_grad()
def predict(
    model: KGLForImageClassification, dataset: Dataset, image_processor: BaseImageProcessor, batch_size: int = 16
) -> Predictions:
    """
    Classes and maps of every picture, by nothing but the picture: labels and masks are not looked at.

    The model is put in eval mode. The class map is the LayerCAM of the most probable class that is a defect, scaled by
    its own peak.
    """
    model = model.eval()
    parts: dict[str, list[torch.Tensor]] = {"probabilities": [], "class_map": [], "saliency": []}
    for batch in tqdm(dataset.select_columns("image").iter(batch_size), "Predictions", -(-len(dataset) // batch_size)):
        output = model(to_pixel_values(batch["image"], image_processor).to(model.device))
        logits = output.logits.float()
        defects = logits.clone()
        if model.config.defect_free_id is not None:
            defects[:, model.config.defect_free_id] = -torch.inf
        maps = layer_cam(model, output.feature_map, output.saliency, defects.argmax(dim=1))
        parts["probabilities"].append(logits.double().softmax(dim=1).cpu())  # no exact 0 and 1
        parts["class_map"].append(to_peak_one(maps).cpu())
        parts["saliency"].append(output.saliency[:, 0].float().sigmoid().cpu())
    return Predictions(**{name: torch.cat(tensors).numpy() for name, tensors in parts.items()})


def evaluate_predictions(
    predictions: Predictions, dataset: Dataset, defect_free_id: int | None, size: tuple[int, int]
) -> dict[str, float]:
    """
    Metrics of [`DefectClassification`], and where pictures have masks, the maps' pixel AP at `size = (H, W)`.

    `map_ap` is the class map's, `saliency_ap` the saliency head's, both pooled over the pictures with a defect in
    their mask, maps enlarged bilinearly.
    """
    results = DefectClassification(keep_in_memory=True).compute(
        predictions=predictions.probabilities, references=dataset["label"], defect_free_id=defect_free_id
    )
    masks = [mask_array(mask, size) for mask in dataset["mask"]]
    marked = [index for index, mask in enumerate(masks) if mask is not None and mask.any()]
    if marked:
        truth = [masks[index] for index in marked]
        results["map_ap"] = pixel_average_precision(list(enlarge(predictions.class_map[marked], size)), truth)
        results["saliency_ap"] = pixel_average_precision(list(enlarge(predictions.saliency[marked], size)), truth)
    return results


def enlarge(maps: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Maps `(N, h, w)` at `size = (H, W)`, bilinearly."""
    tensor = torch.from_numpy(np.ascontiguousarray(maps, dtype=np.float32))
    return F.interpolate(tensor[:, None], size=size, mode="bilinear", align_corners=False)[:, 0].numpy()


__all__ = ["Predictions", "enlarge", "evaluate_predictions", "predict"]
