"""The pipeline `"defect-detection"`: what is on an image, whether that calls for action, and where it is."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from torch.nn import functional as F
from transformers import AutoModelForImageClassification, Pipeline
from transformers.image_utils import load_image
from transformers.pipelines import PIPELINE_REGISTRY


TASK = "defect-detection"


class DefectDetectionPipeline(Pipeline):
    """
    Images (paths, URLs or PIL images, one or a list of them) to one dictionary each:

    - **label** (`str`), **score** (`float`) -- The most probable class and its probability.
    - **scores** (`dict[str, float]`) -- The probability of every class, as `pipeline("image-classification")` has it.
    - **defect_score** (`float` or `None`) -- How probably the image is not of the defect-free class; `None` where
      the model has no such class.
    - **defective** (`bool` or `None`) -- Whether that calls for action, by the model's operating point; one half where
      none is stored.
    - **heat_map** (`PIL.Image.Image`) -- Grey, as large as the image when upright: the saliency head, 255 for 1.
    - **boxes** (`list[dict]`) -- The connected regions of the heat map, the hottest first: `xmin`, `ymin`, `xmax`,
      `ymax` in pixels of the upright image (the last two are the first behind the region) and `score`, its peak.

    Parameters, of the pipeline or of a call: `box_threshold` (`float` in 0..1, defaults to 0.5), from which value of
    the heat map a pixel belongs to a region, and `timeout` (`float`, *optional*), how many seconds to wait for a URL.

    The image processor has to show the model whole images, uncropped, as those of kgl-train do.

    Example:
    ```python
    >>> from transformers import pipeline

    >>> inspect = pipeline("defect-detection", model="runs/mine/final", trust_remote_code=True)
    >>> inspect("part.png")["boxes"]
    [{'xmin': 96, 'ymin': 40, 'xmax': 131, 'ymax': 88, 'score': 0.93}]
    ```
    """

    _load_processor = False
    _load_image_processor = True
    _load_video_processor = False
    _load_feature_extractor = False
    _load_tokenizer = False

    def _sanitize_parameters(
        self, box_threshold: float | None = None, timeout: float | None = None
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if box_threshold is not None and not 0 <= box_threshold <= 1:
            raise ValueError(f"box_threshold={box_threshold}: it must lie in 0..1.")
        preprocessing = {} if timeout is None else {"timeout": timeout}
        return preprocessing, {}, {} if box_threshold is None else {"box_threshold": box_threshold}

    def preprocess(self, image: str | Image.Image, timeout: float | None = None) -> dict[str, Any]:
        """One image to `pixel_values (1, 3, H, W)` and its own upright `size`, height first."""
        image = load_image(image, timeout=timeout)
        inputs = self.image_processor(images=image, return_tensors="pt").to(self.dtype)
        return {"pixel_values": inputs["pixel_values"], "size": (image.height, image.width)}

    def _forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        output = self.model(pixel_values=inputs["pixel_values"])
        return {"logits": output.logits, "saliency": output.saliency, "size": inputs["size"]}

    def postprocess(self, outputs: dict[str, Any], box_threshold: float = 0.5) -> dict[str, Any]:
        """Logits `(1, K)` and saliency logits `(1, 1, h, w)` to what an image's dictionary holds."""
        config = self.model.config
        logits = outputs["logits"].float()
        several = config.problem_type == "multi_label_classification"
        probabilities = (logits.sigmoid() if several else logits.softmax(dim=1))[0].tolist()
        scores = {config.id2label[index]: value for index, value in enumerate(probabilities)}
        label = max(scores, key=scores.__getitem__)
        defect_score, defective = None, None
        if config.defect_free_label is not None:
            defect_score, defective = (value.item() for value in self.model.decide(logits))
        heat = F.interpolate(outputs["saliency"].float().sigmoid(), outputs["size"], mode="bilinear")[0, 0].numpy()
        return {
            "label": label,
            "score": scores[label],
            "scores": scores,
            "defect_score": defect_score,
            "defective": defective,
            "heat_map": Image.fromarray((heat * 255).round().astype(np.uint8)),
            "boxes": hot_boxes(heat, box_threshold),
        }


def hot_boxes(heat: np.ndarray, threshold: float) -> list[dict[str, Any]]:
    """
    Boxes around the connected regions, corners count, of a map `(H, W)` from `threshold` up, the highest peak first.

    `xmax` and `ymax` are the first column and row behind the region; `score` is its peak.
    """
    # Every row's runs of hot pixels, in reading order; `ends` are the first columns behind them.
    changes = np.diff(np.pad(heat >= threshold, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = (where.tolist() for where in np.nonzero(changes == 1))
    ends = np.nonzero(changes == -1)[1].tolist()

    region = list(range(len(rows)))  # a run that belongs to the same region, itself where it stands for it

    def root(run: int) -> int:
        while region[run] != run:
            region[run] = region[region[run]]
            run = region[run]
        return run

    first = 0  # of the runs before this one that may still touch it or one behind it
    for run in range(len(rows)):
        while rows[first] < rows[run] - 1 or (rows[first] == rows[run] - 1 and ends[first] < starts[run]):
            first += 1
        above = first
        while rows[above] == rows[run] - 1 and starts[above] <= ends[run]:
            region[root(above)] = root(run)
            above += 1

    boxes: dict[int, dict[str, Any]] = {}
    for run, (row, start, end) in enumerate(zip(rows, starts, ends, strict=True)):
        peak = float(heat[row, start:end].max())
        box = boxes.setdefault(root(run), {"xmin": start, "ymin": row, "xmax": end, "ymax": row + 1, "score": peak})
        box["xmin"], box["xmax"] = min(box["xmin"], start), max(box["xmax"], end)
        box["ymax"], box["score"] = row + 1, max(box["score"], peak)
    return sorted(boxes.values(), key=lambda box: -box["score"])


# The copy of this file in another model's folder leaves the first one's entry as it is.
if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
    PIPELINE_REGISTRY.register_pipeline(
        TASK, DefectDetectionPipeline, pt_model=AutoModelForImageClassification, type="image"
    )

__all__ = ["TASK", "DefectDetectionPipeline", "hot_boxes"]
