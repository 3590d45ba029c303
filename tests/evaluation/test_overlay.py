"""From which value a heat map is drawn."""

import numpy as np
import pytest

from kgl.evaluation.overlay import overlay_heat_map, shown_from


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
