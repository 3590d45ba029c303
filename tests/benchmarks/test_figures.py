"""Figures of the evidence bench."""

import pandas as pd
import pytest
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from kgl.benchmarks.evidence import curves
from kgl.benchmarks.evidence import differences as differences_module
from kgl.benchmarks.evidence.curves import GRAD_CAM, STYLES, draw_over_steps
from kgl.benchmarks.evidence.differences import differences


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


def runs_of(dataset: str, budget: int, arms: list[str], steps: int, seeds: int = 3) -> list[dict]:
    metrics = {"ap": 0.5, "saliency_ap": 0.1, "steps": steps}
    return [
        {"dataset": dataset, "budget": budget, "arm": arm, "seed": seed} | metrics
        for arm in arms
        for seed in range(seeds)
    ]


def test_curves_of_what_was_measured(tmp_path, monkeypatch):
    arms = list(STYLES)
    searched = [*runs_of("magnetic_tile", 16, arms, 200), *runs_of("magnetic_tile_long", 16, arms, 500)]
    tested = [
        *runs_of("neu_det_long", 8, arms, 500),
        *runs_of("neu_det_long", 16, ["plain", "guided, head alone"], 500),
        *runs_of("neu_det_long", 32, ["plain"], 500, seeds=2),
        *runs_of("few", 8, ["plain"], 500, seeds=2),
    ]
    drawn, draw = [], curves.draw_curve
    monkeypatch.setattr(
        curves,
        "draw_curve",
        lambda axes, points, name, shift: (drawn.append((name, list(points))), draw(axes, points, name, shift)),
    )
    figure = curves.draw_figure(pd.DataFrame(tested), pd.DataFrame(searched))
    assert ("plain", [8, 16]) in drawn and ("guided", [8]) in drawn and ("guided", [200, 500]) in drawn
    assert [axes.get_title() for axes in figure.axes[:2]] == ["neu_det, test", "magnetic_tile, validation"]
    assert len(figure.axes) == 6 and len(figure.legends) == 1


def test_curve_includes_plain_training_of_twice_the_length(monkeypatch):
    runs = pd.DataFrame([*runs_of("tiles", 16, ["plain"], 200), *runs_of("tiles", 16, ["plain, twice as long"], 400)])
    drawn = {}
    monkeypatch.setattr(curves, "draw_curve", lambda axes, points, name, shift: drawn.update({name: list(points)}))
    draw_over_steps(plt.figure().subplots(), [runs], "ap")
    assert drawn == {"plain": [200, 400]}


def test_axes_without_curves_are_hidden():
    axes = plt.figure().subplots()
    runs = pd.DataFrame(runs_of("tiles", 16, ["an arm without a style"], 4))
    draw_over_steps(axes, [runs], "ap")
    assert not axes.get_visible()


def test_differences_are_drawn_over_shared_seeds(monkeypatch):
    guided = {seed: {"ap": 0.1 * seed, "accuracy": 0.5, "saliency_image_ap": 0.4} for seed in range(4)}
    plain = {seed: {"ap": 0.0, "gradcam_image_ap": 0.1 * seed} for seed in range(3)} | {3: {"ap": 0.0}}
    blank = {seed: {"ap": 0.05 * seed, "accuracy": 0.5} for seed in range(1, 4)}
    arms = {"guided": guided, "plain": plain, "blank mask": blank, "shuffled prior": {0: {"ap": 0.3}}}
    runs = pd.DataFrame(
        {"dataset": "tiles", "budget": 8, "arm": arm, "seed": seed} | metrics
        for arm, seeds in arms.items()
        for seed, metrics in seeds.items()
    )
    assert differences(runs, "guided", "ap", "blank mask").tolist() == pytest.approx([0.05, 0.1, 0.15])
    assert differences(runs, "guided", "saliency_image_ap", GRAD_CAM).tolist() == pytest.approx([0.4, 0.3, 0.2])
    assert differences(runs, "guided", "saliency_image_ap", "guided, true masks").empty

    drawn, errorbar = [], Axes.errorbar
    monkeypatch.setattr(
        Axes,
        "errorbar",
        lambda axes, x, y, **style: (
            drawn.append((style["label"], round(float(x), 3))),
            errorbar(axes, x, y, **style),
        )[1],
    )
    differences_module.draw_figure(runs)
    assert drawn == [("blank mask", 0.1), ("blank mask", 0), (GRAD_CAM, 0.3)]  # the shuffled prior has one seed


def test_figure_scripts_write_png_files(tmp_path, monkeypatch):
    runs = pd.DataFrame(runs_of("neu_det_long", 8, list(STYLES), 500))
    for module in (curves, differences_module):
        monkeypatch.setattr(module, "read_runs", lambda path: runs)
        monkeypatch.setattr("sys.argv", ["script", "--output", str(tmp_path / f"{module.__name__}.png")])
        module.main()
    assert [path.read_bytes()[:4] for path in tmp_path.iterdir()] == [b"\x89PNG"] * 2
