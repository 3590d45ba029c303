"""Cache of resized images."""

import numpy as np
import pytest
import torch
from datasets import concatenate_datasets
from PIL import Image
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.data import image_cache
from kgl.data.arguments import DataArguments
from kgl.data.image_cache import FOLDER, cache_resized_images, cached_to_tensor
from kgl.data.images import to_pixel_values
from kgl.data.loading import load_defect_dataset
from kgl.errors import InputError
from kgl.training.augmentation import PairedAugmentation
from kgl.training.collator import DefectCollator


@pytest.fixture
def images(image_folder):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.open(image_folder / "good" / "0.png").save(image_folder / "good" / "rotated.jpg", exif=exif)
    return load_defect_dataset(DataArguments(data_dir=str(image_folder)))["train"]


def test_cached_images_give_the_same_batches(images, tmp_path):
    processor = ViTImageProcessorPil(size={"height": 24, "width": 32})
    pixels = cache_resized_images(images, processor, tmp_path)
    raw = cached_to_tensor(pixels["pixels"], processor)
    assert torch.equal(raw, to_pixel_values(images["image"], processor, do_normalize=False))
    once = concatenate_datasets([images.remove_columns("image"), pixels], axis=1)
    for augmentation in (None, PairedAugmentation()):
        collator = DefectCollator(processor, augmentation)
        batches = []
        for rows in (images, once):
            torch.manual_seed(0)
            batches.append(collator([rows[index] for index in range(len(rows))]))
        assert torch.equal(batches[0]["pixel_values"], batches[1]["pixel_values"])
    plain = DefectCollator(processor)([images[0]])["pixel_values"]
    torch.testing.assert_close(plain, to_pixel_values([images[0]["image"]], processor), rtol=0, atol=1e-6)


def test_an_existing_cache_is_used_and_a_full_disk_refused(images, tmp_path, monkeypatch):
    processor = ViTImageProcessorPil(size={"height": 24, "width": 32})
    first = cache_resized_images(images, processor, tmp_path)
    written = (tmp_path / FOLDER / "images.arrow").stat().st_mtime_ns
    assert np.array_equal(cache_resized_images(images, processor, tmp_path)["pixels"], first["pixels"])
    assert (tmp_path / FOLDER / "images.arrow").stat().st_mtime_ns == written
    huge = ViTImageProcessorPil(size={"height": 1_000_000, "width": 1_000_000})
    message = "the resized images take .* GiB .* make room, or decode them in every epoch with --decode_once false"
    with pytest.raises(InputError, match=message):
        cache_resized_images(images, huge, tmp_path / "..")


def test_a_stopped_cache_is_made_again(images, tmp_path, monkeypatch, capfd):
    processor = ViTImageProcessorPil(size={"height": 24, "width": 32})
    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        stopped.setattr(image_cache, "to_pixel_values", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        cache_resized_images(images, processor, tmp_path)
    assert not (tmp_path / FOLDER / "images.arrow").exists()
    assert len(cache_resized_images(images, processor, tmp_path)) == len(images)
    assert [path.name for path in (tmp_path / FOLDER).iterdir()] == ["images.arrow"]
    assert capfd.readouterr() == ("", "")  # no progress bar without a terminal
