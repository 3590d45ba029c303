"""The dataset schema and fingerprints."""

import pytest
from PIL import Image

from kgl.data.arguments import DataArguments
from kgl.data.loading import load_defect_dataset
from kgl.data.schema import dataset_fingerprint, defect_dataset
from kgl.errors import InputError


def test_fingerprint_changes_with_images_and_class_names(image_folder):
    def load():
        return load_defect_dataset(DataArguments(data_dir=str(image_folder), validation_share=0))["train"]

    train = load()
    before = dataset_fingerprint(train)
    assert dataset_fingerprint(load()) == before
    image = image_folder / train[0]["file_name"]
    content = image.read_bytes()
    Image.new("L", (48, 40), 7).save(image)
    assert dataset_fingerprint(load()) != before
    image.write_bytes(content)
    assert dataset_fingerprint(load()) == before
    (image_folder / "scratch").rename(image_folder / "stain")
    assert dataset_fingerprint(load()) != before


def test_file_names_that_are_not_utf8_are_refused():
    with pytest.raises(InputError, match=r"not UTF-8; rename them: 'a\\udcff\.png'\."):
        defect_dataset(images=[None] * 2, labels=["a", "a"], names=["a"], file_names=["a\udcff.png", "ü.png"])
