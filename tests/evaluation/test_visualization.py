"""Image grids and overlays."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset
from PIL import Image
from tiny import make_images

from kgl.data.schema import defect_dataset
from kgl.evaluation.predictions import Predictions
from kgl.evaluation.visualization import draw_comparison_grid, overlay_heat_map, select_grid_rows


@pytest.mark.parametrize(
    ("count", "rows"), [(1, [3]), (4, [3, 1, 0, 4]), (6, [3, 1, 0, 4, 2, 5]), (99, [3, 1, 0, 4, 2, 5, 6])]
)
def test_classes_take_turns_and_good_comes_last(count, rows):
    labels = [0, 2, 0, 1, 1, 0, 0]  # good, pit, good, scratch, scratch, good, good
    dataset = Dataset.from_dict({"label": labels}).cast_column("label", ClassLabel(names=["good", "scratch", "pit"]))
    assert select_grid_rows(dataset, count, "good") == rows


def test_overlay_covers_the_image_with_the_heat():
    image = np.full((2, 3), 100, dtype=np.uint8)
    heat = np.array([[0.0, 0.5, 1.0], [-1.0, 0.0, 2.0]])  # clipped to 0..1
    overlay = overlay_heat_map(image, heat)
    assert overlay.shape == (2, 3, 3) and overlay.dtype == np.uint8
    assert (overlay[0, 0] == 100).all() and (overlay[1, :2] == 100).all()
    assert (overlay[0, 2] == overlay[1, 2]).all()
    assert np.abs(overlay[0, 2] - (0.25 * 100 + 0.75 * np.array([252, 255, 164]))).max() < 2


def test_grid_shows_names_of_classes_as_they_are(tmp_path):
    """Between two dollars, matplotlib would typeset a formula, and fail at this one."""
    make_images(tmp_path / "images")
    files = sorted((tmp_path / "images").rglob("*.png"))[-3:]
    names = ["good", r"$\bad$"]
    dataset = defect_dataset(
        images=[str(file) for file in files], labels=[names[1]] * 3, names=names,
        file_names=[file.name for file in files], masks=[str(files[0]), None, None],
    )  # fmt: skip
    dataset = dataset.add_column("saliency_prior", [np.full((4, 4), 255, dtype=np.uint8).tolist()] * 3)
    generator = np.random.default_rng(0)
    predictions = {
        model: Predictions(np.array([[0.2, 0.8]] * 3), *generator.random((2, 3, 4, 4)))
        for model in ("primary", "final")
    }
    draw_comparison_grid(tmp_path / "grid.png", dataset, predictions, (40, 48), "title")
    width, height = Image.open(tmp_path / "grid.png").size
    assert width > 1.5 * height  # six columns, three rows
