"""From which value a heat map is drawn."""

import numpy as np
import pytest
from PIL import Image

from kgl.evaluation.overlay import grey_shown_from, overlay_grey_heat_map, overlay_heat_map, shown_from


HEAT = np.linspace(0, 0.4, 101).reshape(1, 101)


@pytest.mark.parametrize(
    ("heat", "threshold", "defective", "expected"),
    [
        (HEAT, 0.5, False, 0.5),  # called good: nothing below the threshold
        (HEAT, 0.5, True, 0.38),  # called defective: the highest 5 % of the cells
        (HEAT, 0.5, None, 0.38),  # no decision
        (HEAT, 0.2, True, 0.2),  # more of them are above the threshold
        (np.zeros((4, 4)), 0.5, True, 0.5),  # a blank map stays blank
    ],
)
def test_images_called_defective_show_their_highest_cells(heat, threshold, defective, expected):
    assert shown_from(heat, threshold, defective, 0.05) == pytest.approx(expected)


def test_nothing_is_drawn_below():
    image = np.full((1, 101), 100, dtype=np.uint8)
    drawn = overlay_heat_map(image, HEAT, shown_from(HEAT, 0.5, True, 0.05))
    changed = (drawn != 100).any(axis=-1)[0]
    assert changed.sum() == 6 and changed[95:].all()


@pytest.mark.parametrize("suspect", [True, False])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("highest", [0, 1, 90, 255])
@pytest.mark.parametrize("shape", [(7, 9), (7, 9, 3)])
def test_grey_maps_are_drawn_like_those_of_numbers(shape, highest, threshold, suspect):
    draws = np.random.default_rng(0)
    image, grey = (draws.integers(0, 256, shape, np.uint8), draws.integers(0, highest + 1, shape[:2], np.uint8))
    heat, heat_map = grey / np.float32(255), Image.fromarray(grey)
    for share in (0.0, 0.05, 0.5, 1.0):
        lowest = grey_shown_from(heat_map, threshold, suspect, share)
        assert lowest == pytest.approx(shown_from(heat, threshold, suspect, share), abs=1e-6)
        drawn = overlay_grey_heat_map(Image.fromarray(image), heat_map, lowest)
        assert np.array_equal(drawn, overlay_heat_map(image, heat, lowest))


@pytest.mark.parametrize("channels", [(), (3,)])
def test_tall_maps_are_drawn_like_each_of_their_rows(channels):
    draws = np.random.default_rng(0)
    image, heat = draws.integers(0, 256, (150, 5, *channels), np.uint8), draws.random((150, 5))
    heat[70:140] = 0  # without heat in a whole band
    rows = [overlay_heat_map(image[row : row + 1], heat[row : row + 1]) for row in range(150)]
    assert np.array_equal(overlay_heat_map(image, heat), np.concatenate(rows))
