"""What every test runs under, and the fixtures."""

import os


os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads on a busy two-core machine are far slower than one
os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil


torch.set_num_threads(1)


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """12 good and 6 scratched 40 x 48 grey pictures, one folder a class."""
    generator = np.random.default_rng(0)
    for label, count in (("good", 12), ("scratch", 6)):
        folder = tmp_path / "pictures" / label
        folder.mkdir(parents=True)
        for index in range(count):
            pixels = generator.integers(90, 130, (40, 48), dtype=np.uint8)
            if label == "scratch":
                pixels[index + 5, 8:40] = 250
            Image.fromarray(pixels).save(folder / f"{index}.png")
    return tmp_path / "pictures"


@pytest.fixture
def auto_image_processor(tmp_path: Path) -> None:
    """Skips where `AutoImageProcessor`, and so every image pipeline, cannot be used at all."""
    ViTImageProcessorPil().save_pretrained(tmp_path / "processor")
    try:
        AutoImageProcessor.from_pretrained(tmp_path / "processor")
    except ImportError:
        pytest.skip("this transformers needs torchvision for AutoImageProcessor")
