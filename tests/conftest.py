"""Environment and fixtures of all tests."""

import os


os.environ.setdefault("OMP_NUM_THREADS", "1")  # two threads on a busy two-core machine are far slower than one
os.environ["HF_HUB_OFFLINE"] = "1"

from pathlib import Path

import pytest
import torch
from jobs import run_train, write_recipe
from tiny import make_images
from transformers import AutoImageProcessor
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

import kgl.data.progress


torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def progress_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """Forget after each test that it asked for no progress bars, as for a process that ends."""
    monkeypatch.setitem(kgl.data.progress._state, "disabled", False)


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """12 good and 6 scratched images, one folder per class."""
    return make_images(tmp_path / "images")


@pytest.fixture
def auto_image_processor(tmp_path: Path) -> None:
    """Skip where `AutoImageProcessor`, and so every image pipeline, cannot be used at all."""
    ViTImageProcessorPil().save_pretrained(tmp_path / "processor")
    try:
        AutoImageProcessor.from_pretrained(tmp_path / "processor")
    except ImportError:
        pytest.skip("this transformers needs torchvision for AutoImageProcessor")


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, str]:
    """One finished run on a folder of images: its recipe, its output folder and its standard output."""
    folder = tmp_path_factory.mktemp("run")
    make_images(folder / "images")
    recipe = write_recipe(folder, data_dir=str(folder / "images"))
    done = run_train(recipe, "--output_dir", folder / "out", "--keep_checkpoints", "true")
    assert done.returncode == 0, done.stderr
    return recipe, folder / "out", done.stdout


@pytest.fixture
def few_draws(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few bootstrap draws: the intervals of a run take longer than training a tiny model."""
    monkeypatch.setattr("kgl.evaluation.results.BOOTSTRAP_DRAWS", 10)
