"""Recognition of published layouts."""

import pytest
from tiny import save_mask, save_noise

from kgl.data.arguments import DataArguments
from kgl.data.loading import read_images
from kgl.data.readers.layouts import LAYOUTS, detect_layout


@pytest.mark.parametrize(
    ("file", "dataset"),
    [
        ("kos01/Part0_label.bmp", "kolektorsdd"),
        ("train/10000_GT.png", "kolektorsdd2"),
        ("Class1/Train/Label/0576_label.PNG", "dagm"),
        ("Train/Label/0576_label.PNG", "dagm"),
        ("MT_Free/Imgs/exp1_num_1.jpg", "magnetic_tile"),
        ("IMAGES/pitted_surface_1.jpg", "neu_det"),
        ("IMAGES/rolled-in_scale_1.jpg", "neu_det"),
        ("IMAGES/my_part.jpg", None),
        ("train/good/1.png", None),
    ],
)
def test_layouts_are_detected_by_their_markers(tmp_path, file, dataset):
    save_mask(tmp_path / file)
    assert detect_layout(tmp_path) == dataset


def test_a_detected_layout_is_read_as_such(tmp_path):
    for tile in range(4):
        label = "Free" if tile < 2 else "Crack"
        path = tmp_path / f"MT_{label}" / "Imgs" / f"exp1_num_{tile * 1000}.jpg"
        save_noise(path, tile)
        save_mask(path.with_suffix(".png"), marked=tile >= 2)
    loaded = read_images(DataArguments(data_dir=str(tmp_path)))
    assert (loaded.dataset, loaded.class_names, loaded.duplicate_distance) == ("magnetic_tile", ["Free", "Crack"], 60)
    assert (loaded.defect_free_label, loaded.defect_free.origin) == ("Free", "layout")
    given = read_images(DataArguments(data_dir=str(tmp_path), defect_free_label="Crack", duplicate_distance=5))
    assert (given.dataset, given.defect_free_label, given.duplicate_distance) == ("magnetic_tile", "Crack", 5)
    assert read_images(DataArguments(data_dir=str(tmp_path), defect_free_label="none")).defect_free_label is None


def test_every_layout_has_markers():
    assert all(layout.markers for layout in LAYOUTS.values())
