"""Pipelines `"defect-detection"`, with decision, heat map and boxes, and `"image-classification"`."""

from __future__ import annotations

import os
from base64 import b64decode
from contextlib import suppress
from io import BytesIO
from typing import Any
from urllib.request import urlopen

import numpy as np
from PIL import Image
from torch.nn import functional as F
from transformers import AutoModelForImageClassification, ImageClassificationPipeline, Pipeline
from transformers.image_utils import load_image
from transformers.pipelines import PIPELINE_REGISTRY


TASK = "defect-detection"


class DefectDetectionPipeline(Pipeline):
    """
    Defect detection on images (paths, URLs or PIL images, one or a list of them), one dictionary per image:

    - **label** (`str`), **score** (`float`) -- The most probable class and its probability.
    - **scores** (`dict[str, float]`) -- The probability of every class, as `pipeline("image-classification")` has it.
    - **defect_score** (`float` or `None`) -- `P(defect)`, the probability that the image is not of the defect-free
      class; `None` where the model has no such class.
    - **defective** (`bool` or `None`) -- Whether `defect_score` reaches the model's decision threshold (0.5 where none
      was chosen).
    - **heat_map** (`PIL.Image.Image`) -- The saliency head's output in the size of the upright image, grey, 255 for 1.
    - **boxes** (`list[dict]`) -- Bounding boxes of the connected regions of the heat map, highest peak first: `xmin`,
      `ymin`, `xmax`, `ymax` in pixels of the upright image (`xmax` and `ymax` exclusive) and `score`, the peak.

    Parameters of the pipeline or of a call: `box_threshold` (`float` in 0..1, defaults to 0.5), the value of the heat
    map from which a pixel belongs to a region, and `timeout` (`float`, *optional*), the seconds to wait for a URL.

    The image processor must show the model whole images, uncropped, as those saved by kgl train do.

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
        """
        Return `pixel_values (1, 3, H, W)` of an image and the `size` of the upright image, height first.

        Raises:
            ValueError: more than 8 bits per channel.
        """
        image = open_image(image, timeout)
        inputs = self.image_processor(images=image, return_tensors="pt").to(self.dtype)
        return {"pixel_values": inputs["pixel_values"], "size": (image.height, image.width)}

    def _forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        output = self.model(pixel_values=inputs["pixel_values"])
        return {"logits": output.logits, "saliency": output.saliency, "size": inputs["size"]}

    def postprocess(self, outputs: dict[str, Any], box_threshold: float = 0.5) -> dict[str, Any]:
        """Return an image's dictionary from logits `(1, K)` and saliency logits `(1, 1, h, w)`."""
        config = self.model.config
        logits = outputs["logits"].float()
        probabilities = logits.softmax(dim=1)[0].tolist()
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


class KGLImageClassificationPipeline(ImageClassificationPipeline):
    """
    The pipeline `"image-classification"` of transformers, which refuses images that it would clip to white.

    A saved model's config names it, so `pipeline("image-classification", model=FOLDER)` is this one.
    """

    def preprocess(self, image: str | Image.Image, timeout: float | None = None) -> dict[str, Any]:
        """
        Return `pixel_values (1, 3, H, W)` of an image.

        Raises:
            ValueError: as [`open_image`].
        """
        return super().preprocess(open_image(image, timeout))


def custom_pipelines() -> dict[str, dict[str, Any]]:
    """Return the entry of a model's config that makes `pipeline` take the classes of this module."""
    classes = {TASK: DefectDetectionPipeline, "image-classification": KGLImageClassificationPipeline}
    return {
        task: {
            "impl": f"{__name__.rpartition('.')[2]}.{pipeline_class.__name__}",
            "pt": ["AutoModelForImageClassification"],
            "type": "image",
        }
        for task, pipeline_class in classes.items()
    }


def open_image(image: str | Image.Image, timeout: float | None = None) -> Image.Image:
    """
    Return an upright RGB image of a path, URL, base64 text or PIL image.

    Raises:
        ValueError: more than 8 bits per channel, which a conversion to RGB would clip to white, or more pixels than
            Pillow allows.
    """
    try:
        if isinstance(image, str) and os.path.isfile(image):
            image = Image.open(image)
        elif isinstance(image, str) and image.startswith(("http://", "https://")):
            with urlopen(image, timeout=timeout) as answer:
                image = Image.open(BytesIO(answer.read()))
        elif isinstance(image, str):
            with suppress(ValueError, OSError):  # load_image says what is wrong with other text
                image = Image.open(BytesIO(b64decode(image.split(",")[-1])))
    except Image.DecompressionBombError as error:
        raise ValueError(f"{error} If you trust the file, set PIL.Image.MAX_IMAGE_PIXELS higher.") from error
    if isinstance(image, Image.Image):
        tiles = getattr(image, "tile", [])  # of a file's 16-bit colours Pillow drops the lower bytes
        if image.mode.startswith(("I", "F")) or any(";16" in str(tile) for tile in tiles):
            raise ValueError(f"An image of mode {image.mode} has more than 8 bits per channel; convert it to 8.")
    return load_image(image, timeout=timeout)


def hot_boxes(heat: np.ndarray, threshold: float) -> list[dict[str, Any]]:
    """
    Return bounding boxes of the 8-connected regions of `heat >= threshold`, highest peak first.

    Args:
        heat: `(H, W)`.
        threshold: the value from which a pixel belongs to a region.

    Returns:
        Dictionaries of `xmin`, `ymin`, `xmax`, `ymax` (pixels, the last two exclusive) and `score`, the region's peak.
    """
    # scipy.ndimage.label finds the same regions, but a model from the Hub must load without scipy.
    # Runs of hot pixels in each row, in reading order; `ends` are exclusive.
    changes = np.diff(np.pad(heat >= threshold, ((0, 0), (1, 1))).astype(np.int8), axis=1)
    rows, starts = (where.tolist() for where in np.nonzero(changes == 1))
    ends = np.nonzero(changes == -1)[1].tolist()

    parent = list(range(len(rows)))  # union-find over the runs

    def root(run: int) -> int:
        while parent[run] != run:
            parent[run] = parent[parent[run]]
            run = parent[run]
        return run

    first = 0  # first run of the row above that may touch this run or a later one
    for run in range(len(rows)):
        while rows[first] < rows[run] - 1 or (rows[first] == rows[run] - 1 and ends[first] < starts[run]):
            first += 1
        above = first
        while rows[above] == rows[run] - 1 and starts[above] <= ends[run]:
            parent[root(above)] = root(run)
            above += 1

    boxes: dict[int, dict[str, Any]] = {}
    for run, (row, start, end) in enumerate(zip(rows, starts, ends, strict=True)):
        peak = float(heat[row, start:end].max())
        box = boxes.setdefault(root(run), {"xmin": start, "ymin": row, "xmax": end, "ymax": row + 1, "score": peak})
        box["xmin"], box["xmax"] = min(box["xmin"], start), max(box["xmax"], end)
        box["ymax"], box["score"] = row + 1, max(box["score"], peak)
    return sorted(boxes.values(), key=lambda box: -box["score"])


# Each model's folder has a copy of this file; the first one loaded registers the task.
if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
    PIPELINE_REGISTRY.register_pipeline(
        TASK, DefectDetectionPipeline, pt_model=AutoModelForImageClassification, type="image"
    )

__all__ = [
    "TASK",
    "DefectDetectionPipeline",
    "KGLImageClassificationPipeline",
    "custom_pipelines",
    "hot_boxes",
    "open_image",
]
