"""Choice of the images of a grid, and heat maps over images."""

import numpy as np
import pytest
from datasets import ClassLabel, Dataset

from kgl.evaluation.overlay import overlay_heat_map
from kgl.evaluation.visualization import select_grid_rows


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


def test_colours_of_an_image_fade_under_the_heat():
    image = np.zeros((1, 3, 3), dtype=np.uint8)
    image[..., 1] = 200  # green, of grey level 117.4
    before, heat = image.copy(), np.array([[0.0, 0.5, 1.0]])
    overlay = overlay_heat_map(image, heat)
    assert (overlay[0, 0] == [0, 200, 0]).all() and (image == before).all()
    grey = overlay_heat_map(np.full((1, 3), 117, dtype=np.uint8), heat)
    assert np.abs(overlay[0, 2].astype(int) - grey[0, 2]).max() <= 1
    half = 0.625 * (np.array([0, 200, 0]) + 117.4) / 2  # half of its colour, under three eighths of the map's
    assert np.abs(overlay[0, 1] - half - (grey[0, 1] - 0.625 * 117)).max() <= 2


def test_grey_images_in_colour_channels_are_drawn_as_grey_ones():
    image = np.random.default_rng(0).integers(0, 255, (8, 9), dtype=np.uint8)
    heat = np.random.default_rng(1).random((8, 9))
    drawn = overlay_heat_map(np.repeat(image[..., None], 3, axis=2), heat).astype(int)
    assert np.abs(drawn - overlay_heat_map(image, heat)).max() <= 1


def test_nothing_is_drawn_below_the_threshold():
    image = np.full((1, 4), 100, dtype=np.uint8)
    heat = np.array([[0.0, 0.19, 0.2, 1.0]])
    overlay = overlay_heat_map(image, heat, 0.2)
    assert (overlay[0, :2] == 100).all()
    assert (overlay[0, 2:] == overlay_heat_map(image[:, :2], np.array([[0.5, 1.0]]))[0]).all()
    assert (overlay_heat_map(image, heat, 1.0)[0, :3] == 100).all()
