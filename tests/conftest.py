"""What every test runs under, and the fixtures."""

import os


os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads on a busy two-core machine are far slower than one
os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image


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
