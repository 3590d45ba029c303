"""The images and the table of the benchmark of the fast way."""

from collections import Counter

from PIL import Image

from kgl.benchmarks.evidence.task_data import load_images
from kgl.benchmarks.fast_way import ARMS, SIZE, table, write_images


def test_images_are_written_by_class_at_the_size(tmp_path):
    images = load_images("smoke").select(range(8))
    write_images(tmp_path, images)
    files = list(tmp_path.glob("*/*.png"))
    names = images.features["label"].names
    assert Counter(path.parent.name for path in files) == Counter(names[label] for label in images["label"])
    assert {Image.open(path).size for path in files} == {(SIZE, SIZE)}


def test_table_has_paired_differences():
    slow = list(ARMS)[1]
    lines = [
        {"arm": arm, "choice": choice, "seconds": seconds + choice, "ap": ap + choice / 10}
        for arm, seconds, ap in (("default", 20, 0.5), (slow, 300, 0.4))
        for choice in range(3)
    ]
    rows = table(lines).splitlines()
    assert rows[-2] == "| default | 21 | 22 | 0.600 |  |"
    assert rows[-1] == f"| {slow} | 301 | 302 | 0.500 | **+0.100 (+0.100 .. +0.100)** |"
