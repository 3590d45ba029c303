"""Good and defective images, and a model of their cells, for the tests of priors."""

from collections.abc import Sequence

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from tiny import stages_model
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.data.images import to_pixel_values
from kgl.knowledge.cells import fit_projection
from kgl.modeling_kgl import KGLForImageClassification


PROCESSOR = ViTImageProcessorPil(size={"height": 64, "width": 64})
LABELS = ("good", "scratch", "good", "good", "pit", "good", "good")
GROUPS = ["a", "b", "c", "a", "d", "e", "f"]


def rows(
    order: Sequence[int] = range(7), masks: Sequence[PILImage.Image | None] = (None,) * 7, groups: list[str] = GROUPS
) -> Dataset:
    """Return images of noise in this order; the first and the fourth are equal."""
    generator = np.random.default_rng(0)
    pixels = [generator.integers(0, 255, (60, 70), dtype=np.uint8) for _ in range(7)]
    pixels[3] = pixels[0]  # of one group
    names = ["good", "scratch", "pit"]
    features = Features(image=Image(), label=ClassLabel(names=names), mask=Image(), group=Value("string"))
    columns = {
        "image": [PILImage.fromarray(pixels[index]) for index in order],
        "label": [names.index(LABELS[index]) for index in order],
        "mask": [masks[index] for index in order],
        "group": [groups[index] for index in order],
    }
    return Dataset.from_dict(columns, features=features)


def fitted_model() -> KGLForImageClassification:
    """Return a tiny model with the head `stages` whose cells are projected on components of the images."""
    model, dataset = stages_model(), rows()
    with torch.no_grad():
        maps, _ = model.features(to_pixel_values(dataset["image"], PROCESSOR))
    fit_projection(model, [maps], len(dataset), seed=0)
    return model
