"""Pipelines `"defect-detection"`, with decision, heat map and boxes, and `"image-classification"`."""

from __future__ import annotations

import os
from base64 import b64decode
from collections.abc import Sequence
from contextlib import suppress
from io import BytesIO
from typing import Any
from urllib.request import urlopen

import torch
from PIL import ExifTags, Image
from torch.nn import functional as F
from transformers import AutoModelForImageClassification, BaseImageProcessor, ImageClassificationPipeline, Pipeline
from transformers.image_utils import load_image
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil
from transformers.pipelines import PIPELINE_REGISTRY

from .handler import is_deeper_than_8_bits  # the server loads handler.py alone: it can import nothing from here


TASK = "defect-detection"
# Of an image as the model sees it, with the words for values below and above the training images'.
PROPERTIES = {
    "brightness": ("darker", "brighter"),
    "contrast": ("less contrast", "more contrast"),
    "detail": ("less detail", "more detail"),
    "feature_distance": ("other features", "other features"),
}
OTHER_SIZE = "other size"


class DefectDetectionPipeline(Pipeline):
    """
    Defect detection on images (paths, URLs or PIL images, one or a list of them), one dictionary per image:

    - **label** (`str`), **score** (`float`) -- The most probable class and its probability.
    - **scores** (`dict[str, float]`) -- The probability of every class, as `pipeline("image-classification")` has it.
    - **defect_score** (`float` or `None`) -- `P(defect)`, the probability that the image is not of the defect-free
      class; `None` where the model has no such class.
    - **defective** (`bool` or `None`) -- Whether `defect_score` reaches the model's decision threshold (0.5 where none
      was chosen).
    - **decision** (`str` or `None`) -- `"defective"` or `"good"` or, where the model's operating point has a
      `look_again_threshold`, `"look again"` from there up to the threshold.
    - **heat_map** (`PIL.Image.Image`) -- The saliency head's output in the size of the upright image, grey, 255 for 1;
      blank where the head was not trained (`has_heat_map` of the config is `False`), as in a primary classifier.
    - **boxes** (`list[dict]`) -- Bounding boxes of the connected regions of marked cells of the heat map, highest peak
      first: `xmin`, `ymin`, `xmax`, `ymax` in pixels of the upright image (`xmax` and `ymax` exclusive) and `score`,
      the peak. None is smaller than a cell, and none lies inside another. Without a heat map there are none.
    - **unlike_training** (`list[str]` or `None`) -- How the image differs from the training images: `"darker"` or
      `"brighter"`, `"less contrast"` or `"more contrast"`, `"less detail"` or `"more detail"`, `"other features"`,
      `"other size"`; empty where it is like them, `None` where the model has no `training_range`.

    Parameters of the pipeline or of a call: `box_threshold` (`float` in 0..1, defaults to the `saliency_threshold` of
    the config, 0.5 where none was chosen), the value of the heat map from which a cell is marked, and `timeout`
    (`float`, *optional*), the seconds to wait for a URL.

    The image processor must show the model whole images, uncropped, as those saved by kgl train do. On a CPU the
    pipeline lays the weights of its model out in `torch.channels_last`, in place.

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

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.device.type == "cpu":  # faster, with the same results but for the last digits
            self.model.to(memory_format=torch.channels_last)

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
        seen = resize_first(image, self.image_processor)
        inputs = self.image_processor(images=seen, return_tensors="pt").to(self.dtype)
        return {"pixel_values": inputs["pixel_values"], "size": (image.height, image.width)}

    def _forward(self, inputs: dict[str, Any]) -> dict[str, Any]:
        output = self.model(pixel_values=inputs["pixel_values"])
        outputs = {"logits": output.logits, "saliency": output.saliency, "size": inputs["size"]}
        if self.model.config.training_range is not None:
            seen = image_properties(inputs["pixel_values"], self.image_processor)
            distance = self.model.feature_distance(output.feature_maps)
            outputs["properties"] = torch.cat([seen, distance[:, None]], dim=1)
        return outputs

    def postprocess(self, outputs: dict[str, Any], box_threshold: float | None = None) -> dict[str, Any]:
        """Return an image's dictionary from logits `(1, K)` and saliency logits `(1, 1, h, w)`."""
        config = self.model.config
        logits = outputs["logits"].float()
        probabilities = logits.softmax(dim=1)[0].tolist()
        scores = {config.id2label[index]: value for index, value in enumerate(probabilities)}
        label = max(scores, key=scores.__getitem__)
        defect_score, defective, decision = None, None, None
        if config.defect_free_label is not None:
            defect_score, defective = (value.item() for value in self.model.decide(logits))
            decision = config.decision(defect_score)
        cells = outputs["saliency"].float().sigmoid() * config.has_heat_map
        grey = F.interpolate(255 * cells, outputs["size"], mode="bilinear")[0, 0].round_().byte()
        threshold = config.heat_threshold if box_threshold is None else box_threshold
        unlike = None
        if config.training_range is not None:
            unlike = unlike_training(outputs["properties"][0].tolist(), outputs["size"], config.training_range)
        return {
            "label": label,
            "score": scores[label],
            "scores": scores,
            "defect_score": defect_score,
            "defective": defective,
            "decision": decision,
            "heat_map": Image.fromarray(grey.numpy()),
            "boxes": hot_boxes(cells[0, 0], threshold, outputs["size"]) if config.has_heat_map else [],
            "unlike_training": unlike,
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
        ValueError: more than 8 bits per channel, or more pixels than Pillow allows.
    """
    name = "An"
    try:
        if isinstance(image, str) and os.path.isfile(image):
            name = f"{image}: an"
            image = Image.open(image)
        elif isinstance(image, str) and image.startswith(("http://", "https://")):
            with urlopen(image, timeout=timeout) as answer:
                image = Image.open(BytesIO(answer.read()))
        elif isinstance(image, str):
            with suppress(ValueError, OSError):  # load_image says what is wrong with other text
                image = Image.open(BytesIO(b64decode(image.split(",")[-1])))
    except Image.DecompressionBombError as error:
        raise ValueError(f"{error} If you trust the file, set PIL.Image.MAX_IMAGE_PIXELS higher.") from error
    if isinstance(image, Image.Image) and is_deeper_than_8_bits(image):
        raise ValueError(f"{name} image of mode {image.mode} has more than 8 bits per channel; convert it to 8.")
    return upright_rgb(image, timeout)


def upright_rgb(image: str | Image.Image, timeout: float | None = None) -> Image.Image:
    """Return what `transformers.image_utils.load_image` does, without its two copies of an upright RGB image."""
    if isinstance(image, Image.Image) and image.mode == "RGB":
        image.load()
        if not is_turned(image):
            return image
    return load_image(image, timeout=timeout)


def is_turned(image: Image.Image) -> bool:
    """Return whether a loaded image has an EXIF tag by which it has to be rotated or mirrored."""
    return image.getexif().get(ExifTags.Base.Orientation, 1) in range(2, 9)


def resize_first(image: Image.Image, image_processor: BaseImageProcessor) -> Image.Image:
    """
    Return an RGB image in the size that the image processor will give it, where that is one of kgl train.

    What the processor makes of both is equal; of the whole image it would make three copies in other formats.
    """
    if type(image_processor) is not ViTImageProcessorPil or not image_processor.do_resize:  # others crop or pad
        return image
    size = dict(image_processor.size)
    if not (size.get("height") and size.get("width")):
        return image
    return image.resize((size["width"], size["height"]), image_processor.resample)


def image_properties(pixel_values: torch.Tensor, image_processor: BaseImageProcessor) -> torch.Tensor:
    """
    Return brightness, contrast and detail of images as the model sees them, `(B, 3)` float32 in grey levels 0..255.

    Grey is the mean of the channels. Brightness is its mean, contrast its standard deviation, and detail the mean
    absolute difference of an inner pixel from its four neighbours, all four added (the Laplacian).

    Args:
        pixel_values: `(B, 3, H, W)`, as the image processor returns them.
        image_processor: the one that made them.
    """
    colours = pixel_values.float()
    if image_processor.do_normalize:
        values = (image_processor.image_mean, image_processor.image_std)
        mean, std = (torch.tensor(one, device=colours.device).view(-1, 1, 1) for one in values)
        colours = colours * std + mean
    grey = colours.mean(dim=1)
    if image_processor.do_rescale:
        grey = grey / image_processor.rescale_factor
    across = grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    down = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1]
    detail = (4 * grey[:, 1:-1, 1:-1] - across - down).abs().mean(dim=(1, 2))
    return torch.stack([grey.mean(dim=(1, 2)), grey.flatten(1).std(dim=1, correction=0), detail], dim=1)


def unlike_training(properties: Sequence[float], size: tuple[int, int], training_range: dict[str, Any]) -> list[str]:
    """
    Return how an image differs from the training images, as `unlike_training` of [`DefectDetectionPipeline`].

    Args:
        properties: the values of `PROPERTIES`.
        size: height and width of the upright image in pixels.
        training_range: of the model's config.
    """
    found = []
    for (name, (below, above)), value in zip(PROPERTIES.items(), properties, strict=True):
        low, high = training_range[name]
        if not low <= value <= high:  # also where it is not a number
            found.append(below if value < low else above)
    limits = (training_range["height"], training_range["width"])
    if not all(low <= side <= high for side, (low, high) in zip(size, limits, strict=True)):
        found.append(OTHER_SIZE)
    return found


def hot_boxes(cells: torch.Tensor, threshold: float, size: tuple[int, int]) -> list[dict[str, Any]]:
    """
    Return bounding boxes of the 8-connected regions of `cells >= threshold`, highest peak first.

    Boxes hold whole cells, and a box that lies inside another is merged into it.

    Args:
        cells: `(h, w)`.
        threshold: the value from which a cell belongs to a region.
        size: height and width in pixels of the image that the cells cover.

    Returns:
        Dictionaries of `xmin`, `ymin`, `xmax`, `ymax` (pixels, the last two exclusive) and `score`, the highest value.
    """
    (height, width), (rows, columns) = size, cells.shape
    y, x = (cells >= threshold).nonzero(as_tuple=True)
    found, region = _regions(cells >= threshold)[y, x].unique(return_inverse=True)

    def of_regions(values: torch.Tensor, reduce: str) -> list[float]:
        return values.new_zeros(len(found)).scatter_reduce(0, region, values, reduce, include_self=False).tolist()

    left, right, top, bottom = (of_regions(one, reduce) for one in (x, y) for reduce in ("amin", "amax"))
    boxes = [
        {
            "xmin": left[index] * width // columns,
            "ymin": top[index] * height // rows,
            "xmax": -(-(right[index] + 1) * width // columns),
            "ymax": -(-(bottom[index] + 1) * height // rows),
            "score": peak,
        }
        for index, peak in enumerate(of_regions(cells[y, x], "amax"))
    ]
    boxes.sort(key=lambda box: (box["xmax"] - box["xmin"]) * (box["ymax"] - box["ymin"]), reverse=True)
    outermost: list[dict[str, Any]] = []
    for box in boxes:  # the largest first, so that what holds a box comes before it
        around = next((other for other in outermost if _is_inside(box, other)), None)
        if around is None:
            outermost.append(box)
        else:
            around["score"] = max(around["score"], box["score"])
    return sorted(outermost, key=lambda box: -box["score"])


def _is_inside(box: dict[str, Any], other: dict[str, Any]) -> bool:
    return all(box[low] >= other[low] for low in ("xmin", "ymin")) and all(
        box[high] <= other[high] for high in ("xmax", "ymax")
    )


def _regions(marked: torch.Tensor) -> torch.Tensor:
    """Return the number `(h, w)` of the 8-connected region of each cell of a mask, -1 outside."""
    # scipy.ndimage.label finds the same regions, but a model from the Hub must load without scipy.
    cells = torch.arange(marked.numel(), dtype=torch.float64, device=marked.device).view(marked.shape)
    labels = torch.where(marked, cells, -1)
    while True:  # the last cell of a region gives its number to the neighbours, and to those that its number reached
        highest = torch.where(marked, F.max_pool2d(labels[None, None], 3, stride=1, padding=1)[0, 0], -1)
        spread = torch.where(marked, highest.flatten()[highest.long().clamp(min=0)], -1)
        if torch.equal(spread, labels):
            return labels
        labels = spread


# Each model's folder has a copy of this file; the first one loaded registers the task.
if TASK not in PIPELINE_REGISTRY.get_supported_tasks():
    PIPELINE_REGISTRY.register_pipeline(
        TASK, DefectDetectionPipeline, pt_model=AutoModelForImageClassification, type="image"
    )

__all__ = [
    "OTHER_SIZE",
    "PROPERTIES",
    "TASK",
    "DefectDetectionPipeline",
    "KGLImageClassificationPipeline",
    "custom_pipelines",
    "hot_boxes",
    "image_properties",
    "is_turned",
    "open_image",
    "resize_first",
    "unlike_training",
    "upright_rgb",
]
