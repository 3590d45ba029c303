"""Image grids of squares and strips, and names of classes in any script."""

from itertools import combinations

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features
from datasets import Image as ImageFeature
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

import kgl.evaluation.fonts
from kgl.configuration_kgl import KGLConfig
from kgl.evaluation.predictions import Predictions
from kgl.evaluation.visualization import draw_comparison_grid


LONG = ["good", "scratch with quite a long name", "pit"]
CHINESE = ["good", "\u5212\u75d5", "pit"]  # a scratch


@pytest.fixture
def figures(monkeypatch):
    """The figures that are saved."""
    saved = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **options: saved.append(self) or save(self, *args, **options)
    )
    return saved


def draw(path, size, names, count=6, colour=(0, 0, 0)):
    """Draw a comparison grid of images of one colour, each of another class in turn, under maps without heat."""
    images = [Image.new("RGB", size[::-1], colour)] * count
    features = Features(image=ImageFeature(), mask=ImageFeature(), label=ClassLabel(names=names))
    labels = [index % len(names) for index in range(count)]
    dataset = Dataset.from_dict({"image": images, "mask": [None] * count, "label": labels}, features)
    dataset = dataset.add_column("saliency_prior", np.zeros((count, 4, 4), dtype=np.uint8).tolist())
    probabilities = np.tile([0.1, 0.8, 0.1], (count, 1))
    one = Predictions(probabilities, np.zeros((count, 4, 4)), np.zeros((count, 4, 4)))
    config = KGLConfig(id2label=dict(enumerate(names)), saliency_threshold={"threshold": 0.125})
    draw_comparison_grid(path, dataset, {"primary": one, "final": one}, size, "title", config)


def texts(figure):
    """The texts of a figure that show something, with their places in pixels."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    found = [text for text in figure.findobj(Text) if text.get_text().strip() and text.get_visible()]
    return [(text.get_text(), text.get_window_extent(renderer)) for text in found]


@pytest.mark.parametrize(
    "size", [(160, 160), (256, 1600), (64, 400), (64, 4000), (400, 64), (4000, 64), (640, 256), (40, 48)]
)
@pytest.mark.parametrize("count", [1, 6])
def test_tiles_are_large_enough_and_no_texts_overlap(size, count, tmp_path, figures):
    draw(tmp_path / "grid.png", size, LONG, count)
    pixels = np.asarray(Image.open(tmp_path / "grid.png").convert("L"))
    tiles = [axis.get_window_extent() for axis in figures[0].axes if axis.images]
    assert len(tiles) == 5 * count
    for tile in tiles:
        assert min(tile.width, tile.height) >= 30 and max(tile.width, tile.height) >= 150
        top, left = round(len(pixels) - tile.y1) + 3, round(tile.x0) + 3
        assert (pixels[top : top + round(tile.height) - 6, left : left + round(tile.width) - 6] == 0).all()
    page = figures[0].bbox
    for text, box in texts(figures[0]):
        assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= page.x1 and box.y1 <= page.y1, text
    for (one, box), (other, place) in combinations(texts(figures[0]), 2):
        assert not box.shrunk(0.98, 0.98).overlaps(place), (one, other)


def test_colour_images_are_drawn_in_colour(tmp_path, figures):
    draw(tmp_path / "grid.png", (40, 48), LONG, count=2, colour=(0, 200, 0))
    tiles = [axis.get_window_extent() for axis in figures[0].axes if axis.images]
    pixels = np.asarray(Image.open(tmp_path / "grid.png").convert("RGB"))
    for tile in tiles:
        top, left = round(len(pixels) - tile.y1) + 5, round(tile.x0) + 5
        assert (pixels[top : top + 100, left : left + 100] == [0, 200, 0]).all()
        assert tile.width >= 250


def test_names_are_shown_as_they_are(tmp_path, figures):
    """Between two dollars, matplotlib would typeset a formula, and fail at this one."""
    draw(tmp_path / "grid.png", (40, 48), ["good", r"$\bad$", "pit"])
    assert {r"$\bad$", r"predicted: $\bad$ 0.80"} <= {text for text, _ in texts(figures[0])}


def test_threshold_of_the_heat_map_is_named(tmp_path, figures):
    draw(tmp_path / "grid.png", (160, 160), LONG, count=2)
    shown = " ".join(" ".join(text for text, _ in texts(figures[0])).split())
    assert "final: heat map H" in shown and "H: drawn from its threshold, 0.125 (here 0.5), up" in shown


@pytest.mark.filterwarnings("error:Glyph")
def test_letters_without_a_font_become_numbers(tmp_path, figures, monkeypatch):
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: [])
    kgl.evaluation.fonts._installed_fonts.cache_clear()
    draw(tmp_path / "grid.png", (160, 160), CHINESE)
    shown = {text for text, _ in texts(figures[0])}
    assert {"good", "class 1", "pit", "predicted: class 1 0.80"} <= shown
    assert any("number in config.json" in " ".join(text.split()) for text in shown)


@pytest.mark.filterwarnings("error:Glyph")
def test_letters_are_taken_from_an_installed_font(tmp_path, figures, monkeypatch):
    fonts = [
        str(tmp_path / "broken.ttf"),
        build_font(tmp_path / "other.ttf", "\u5212"),
        build_font(tmp_path / "both.ttf", CHINESE[1]),
    ]
    (tmp_path / "broken.ttf").write_bytes(b"no font")
    monkeypatch.setattr(font_manager, "findSystemFonts", lambda: fonts)
    kgl.evaluation.fonts._installed_fonts.cache_clear()
    assert kgl.evaluation.fonts.font_families(CHINESE) == ["DejaVu Sans", "both"]
    draw(tmp_path / "grid.png", (160, 160), CHINESE)
    assert {"good", CHINESE[1], "pit"} <= {text for text, _ in texts(figures[0])}
    kgl.evaluation.fonts._installed_fonts.cache_clear()


def build_font(path, letters):
    """Write a font whose letters are all the same square; return its path."""
    pen = TTGlyphPen(None)
    for place, move in (
        ((0, 0), pen.moveTo),
        ((0, 700), pen.lineTo),
        ((700, 700), pen.lineTo),
        ((700, 0), pen.lineTo),
    ):
        move(place)
    pen.closePath()
    square = pen.glyph()
    font = FontBuilder(1000, isTTF=True)
    font.setupGlyphOrder([".notdef", "square"])
    font.setupCharacterMap({ord(letter): "square" for letter in letters})
    font.setupGlyf({".notdef": square, "square": square})
    font.setupHorizontalMetrics({".notdef": (800, 0), "square": (800, 0)})
    font.setupHorizontalHeader(ascent=800, descent=-200)
    font.setupNameTable({"familyName": path.stem, "styleName": "Regular"})
    font.setupOS2()
    font.setupPost()
    font.save(path)
    return str(path)
