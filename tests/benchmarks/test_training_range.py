"""The benchmark of the training range, on made-up measures: what is held out, rates, and tables."""

import numpy as np
import pytest
from PIL import Image

from kgl.benchmarks.training_range import (
    CHANGES,
    DATA,
    changes_table,
    draw_changes,
    held_out_table,
    judge,
    shuffled_groups,
    split_rows,
    warned,
)
from kgl.evaluation.training_range import ImageMeasures


GROUPS = [f"part {row // 4}" for row in range(400)]


def measures(generator: np.random.Generator, count: int, brightness: float = 0.0, width: int = 50) -> ImageMeasures:
    values = {name: generator.normal(10, 1, count) for name in ("brightness", "contrast", "detail")}
    values["brightness"] += brightness
    values |= {"width": np.full(count, width), "height": np.full(count, 40)}
    return ImageMeasures(values, generator.normal(size=(count, 6)))


def test_groups_are_kept_whole():
    train, changed = split_rows(GROUPS)
    assert len(train) + len(changed) == 300 and len(changed) == 60
    names = np.asarray(GROUPS)
    assert not set(names[train]) & set(names[changed])
    order = names[shuffled_groups(GROUPS, 3)]
    assert len(set(order[::4])) == 100 and (order.reshape(100, 4) == order[::4, None]).all()


def test_changed_images_are_flagged_and_held_out_ones_rarely():
    generator = np.random.default_rng(0)
    both = measures(generator, 300)
    groups = [f"part {row}" for row in range(240)]
    unlike = {"brighter": measures(generator, 60, brightness=20), "other size": measures(generator, 60, width=70)}
    found = judge(both, np.arange(150), groups, unlike, 0)
    assert (found["held_out"], found["groups"]) == (150, 150)
    assert found["flagged"] < 0.12 and found["warned"]["20"] == 0
    assert found["changes"]["brighter"] == {"flagged": 1.0, "warned": 1.0}
    assert found["changes"]["other size"]["flagged"] < 0.25  # the size is left out


def test_images_of_the_training_groups_are_not_held_out():
    both = measures(np.random.default_rng(0), 300)
    found = judge(both, np.arange(40), [f"part {row // 60}" for row in range(240)], {}, 0)
    assert (found["held_out"], found["groups"]) == (300 - 60, 1)


def test_folders_warn_as_predict_does():
    training_range = {"groups": 150, "expected_share": 0.05}
    generator = np.random.default_rng(0)
    assert warned(np.ones(30, dtype=bool), 20, training_range, generator) == 1
    assert warned(np.zeros(30, dtype=bool), 20, training_range, generator) == 0
    assert warned(np.ones(10, dtype=bool), 20, training_range, generator) is None


def test_tables_and_figure(tmp_path):
    changes = {title: {"flagged": 0.9, "warned": 1.0} for title in CHANGES}
    lines = [
        {"data": name, "training_images": 40, "seed": seed, "groups": 20, "expected_share": 0.1,
         "flagged": 0.05 + seed / 100, "held_out": 80, "warned": {"20": 0.0, "50": 0.01}, "changes": changes}
        for name in DATA
        for seed in range(2)
    ]  # fmt: skip
    assert "| magnetic tiles | 40 | 20 | 10.0 % | 5.5 % | 0.0 % | 1.0 % |  |" in held_out_table(lines)
    assert "| blur, radius 1 | 90.0 %, 100.0 % | 90.0 %, 100.0 % | 90.0 %, 100.0 % |" in changes_table(lines)
    draw_changes(lines, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 10_000


@pytest.mark.parametrize("title", CHANGES)
def test_changes_change_an_image(title):
    image = Image.fromarray(np.random.default_rng(0).integers(40, 90, (24, 24, 3), dtype=np.uint8))
    changed = np.asarray(CHANGES[title](image), dtype=float)
    assert changed.shape == (24, 24, 3) and (changed != np.asarray(image)).mean() > 0.5
    if title.startswith("exposure"):
        expected = np.asarray(image) * float(title.rpartition(" ")[2])
        assert np.abs(changed - expected).max() <= 0.5
