"""Export wrapper: preprocessing, model and decision in one module."""

from __future__ import annotations

import torch
from torch import nn
from transformers import BaseImageProcessor
from transformers.image_utils import PILImageResampling

from ..errors import InputError
from ..modeling_kgl import KGLForImageClassification
from .resize import resize_as_pillow


class ExportWrapper(nn.Module):
    """
    Module from images in their own size to probabilities, heat map and decision: preprocessing and model.

    Args:
        model: a classifier; put into eval mode.
        image_processor: the one that it was trained with.

    Raises:
        InputError: preprocessing other than bilinear resizing to one size, rescaling and normalisation.
    """

    def __init__(self, model: KGLForImageClassification, image_processor: BaseImageProcessor) -> None:
        super().__init__()
        steps = (image_processor.do_resize, image_processor.do_rescale, image_processor.do_normalize)
        bilinear = image_processor.resample == PILImageResampling.BILINEAR
        if not all(steps) or not bilinear or not (image_processor.size["height"] and image_processor.size["width"]):
            raise InputError(
                "The image processor must resize bilinearly to one size, rescale and normalise; this model's does not."
            )
        self.model = model
        self.size = (image_processor.size["height"], image_processor.size["width"])
        self.rescale_factor = image_processor.rescale_factor
        mean, std = (torch.tensor(values) for values in (image_processor.image_mean, image_processor.image_std))
        self.register_buffer("mean", mean.view(-1, 1, 1), persistent=False)
        self.register_buffer("std", std.view(-1, 1, 1), persistent=False)
        self.eval()

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """
        Preprocess and classify images.

        Args:
            image: `(B, H, W, 3)` uint8, upright and RGB.

        Returns:
            `probabilities (B, K)`, `heat_map (B, h, w)` in 0..1, 0 everywhere where the head was not trained, and,
            where the model has a defect-free class, `defective (B,)` bool by the config's threshold.
        """
        resized = resize_as_pillow(image.permute(0, 3, 1, 2), self.size)
        pixel_values = ((resized * self.rescale_factor).float() - self.mean) / self.std
        output = self.model(pixel_values)
        heat_map = output.saliency[:, 0].sigmoid()
        if not self.model.config.has_heat_map:
            heat_map = heat_map * 0
        outputs = (output.logits.softmax(dim=1), heat_map)
        return outputs if self.model.config.defect_free_id is None else (*outputs, self.model.decide(output.logits)[1])

    @property
    def output_names(self) -> list[str]:
        """Names of the outputs of [`forward`]."""
        names = ["probabilities", "heat_map"]
        return names if self.model.config.defect_free_id is None else [*names, "defective"]


__all__ = ["ExportWrapper"]
