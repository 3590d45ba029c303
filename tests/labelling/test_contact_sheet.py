"""The contact sheet of `kgl next`: strips, names without a font, and many images."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

import kgl.evaluation.fonts
import kgl.labelling.contact_sheet
from kgl.configuration_kgl import KGLConfig
from kgl.data.schema import defect_dataset
from kgl.labelling.contact_sheet import draw_contact_sheet


CHINESE = "\u5212\u75d5"  # a scratch
LONG = "line/camera 2/a_rather_long_name_of_an_image"


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """Draw a sheet of images of a size and return its figure."""
    saved, save = [], Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, *args: saved.append(self) or save(self, *args))

    def draw(size, count=4, name=LONG, has_score=True, colour=(99, 99, 99)):
        files = [f"{name}_{index}.png" for index in range(count)]
        images = defect_dataset(
            images=[np.full((*size, 3), colour, np.uint8)] * count, labels=["unknown"] * count, names=["unknown"],
            file_names=files,
        )  # fmt: skip
        columns = {"rank": list(range(1, count + 1)), "file": files, "predicted_label": [CHINESE] * count}
        scores = {"defect_score": [0.25] * count} if has_score else {}
        config = KGLConfig(id2label={0: "good", 1: CHINESE}, defect_free_label="good" if has_score else None)
        draw_contact_sheet(tmp_path / "next.png", images, [np.zeros((4, 4))] * count, columns | scores, config)
        assert Image.open(tmp_path / "next.png").width >= 700
        return saved[-1]

    return draw


def texts(figure):
    """The titles of tiles and of the figure, on one line each."""
    titles = [*(axis.title for axis in figure.axes), *(axis._left_title for axis in figure.axes), figure._suptitle]
    return [" ".join(title.get_text().split()) for title in titles if title.get_text()]


@pytest.mark.parametrize("size", [(256, 1600), (64, 400), (1600, 256), (20, 1600), (1600, 20), (200, 240)])
def test_images_are_large_enough_and_titles_do_not_overlap(draw, size):
    figure = draw(size)
    tiles = [axis.get_window_extent() for axis in figure.axes if axis.images]
    assert len(tiles) == 8
    for tile in tiles:
        assert min(tile.width, tile.height) >= (60 if 20 not in size else 30)
        assert max(tile.width, tile.height) >= (400 if max(size) > 240 else 180)
    renderer = FigureCanvasAgg(figure).get_renderer()
    titles = [title for axis in figure.axes for title in (axis.title, axis._left_title) if title.get_text()]
    places = [title.get_window_extent(renderer) for title in titles]
    assert len(places) == 8
    assert not any(one.overlaps(other) for one, other in combinations(places, 2))
    assert not any(place.padded(-1).overlaps(tile) for place in places for tile in tiles)


def test_colour_images_are_drawn_in_colour(draw):
    figure = draw((200, 240), count=2, colour=(0, 200, 0))
    shown = [axis.images[0].get_array() for axis in figure.axes if axis.images]
    assert len(shown) == 4 and all((pixels == [0, 200, 0]).all() for pixels in shown)


@pytest.mark.filterwarnings("error:Glyph")
def test_names_without_a_font_are_named_by_rank_and_number(draw, monkeypatch):
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])
    kgl.evaluation.fonts._installed_fonts.cache_clear()
    shown = texts(draw((64, 400), 2, CHINESE, has_score=False))
    title = (
        "Images to label next (files by their rank in next.csv, classes by their number in config.json: no installed "
        "font has the letters of all names)"
    )
    assert sorted(shown) == ["1", "2", title, "class 1", "class 1"]
    assert sorted(texts(draw((64, 400), 1, "a"))) == ["1 a_0.png", "Images to label next", "P(defect) 0.25"]


def test_sheet_of_many_images_has_the_first(draw, monkeypatch):
    monkeypatch.setattr(kgl.labelling.contact_sheet, "_MAX_IMAGES", 2)
    figure = draw((200, 240), 3, "a")
    assert sum(bool(axis.images) for axis in figure.axes) == 4
    assert "The first 2 of 3 images to label" in texts(figure)


def test_scale_names_the_threshold_of_the_heat_map(draw):
    labels = [axis.get_xlabel() for axis in draw((200, 240)).axes]
    assert "heat map: drawn from its threshold, 0.5 (here 0.5), up" in labels
