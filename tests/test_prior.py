"""Priors: whose map, on which grid, and what takes its place."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, load_from_disk
from PIL import Image as PILImage
from tiny import tiny_model
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.collator import DefectCollator, to_pixel_values
from kgl.errors import InputError
from kgl.prior import add_saliency_priors
from kgl.saliency import compute_saliency, to_uint8


PROCESSOR = ViTImageProcessorPil(size={"height": 32, "width": 64})


def rows(names=("good", "scratch", "pit"), masks=(None, None, None, None)):
    generator = np.random.default_rng(0)
    pictures = [PILImage.fromarray(generator.integers(0, 255, (40, 70), dtype=np.uint8)) for _ in range(4)]
    features = Features(image=Image(), label=ClassLabel(names=list(names)), mask=Image())
    labels = [names.index(name) for name in ("scratch", "good", "pit", "scratch")]
    return Dataset.from_dict({"image": pictures, "label": labels, "mask": list(masks)}, features=features)


def test_priors_are_the_true_class_s_maps_and_blank_where_there_is_no_defect():
    model, dataset = tiny_model(), rows()
    with_priors = add_saliency_priors(dataset, model, PROCESSOR, batch_size=3)
    assert with_priors.column_names == ["image", "label", "mask", "saliency_prior", "prior_weight"]
    stored = np.asarray(with_priors["saliency_prior"], dtype=np.uint8)
    pixel_values = to_pixel_values(dataset["image"], PROCESSOR)
    expected = to_uint8(compute_saliency(model, pixel_values, torch.tensor([1, 0, 2, 1])))
    expected[1] = 0
    assert stored.shape == (4, 2, 4)
    assert np.abs(stored.astype(int) - expected.astype(int)).max() <= 1  # batches of 3 and 1 sum in another order
    assert stored[[0, 2, 3]].max(axis=(1, 2)).tolist() == [255, 255, 255]
    assert with_priors["prior_weight"] == [1.0] * 4


def test_without_a_defect_free_class_every_image_has_a_map():
    model = tiny_model(defect_free_label=None)
    stored = np.asarray(add_saliency_priors(rows(), model, PROCESSOR)["saliency_prior"])
    assert (stored.max(axis=(1, 2)) == 255).all()


def test_classes_are_matched_by_name():
    dataset = rows(names=("pit", "scratch", "good"))
    stored = add_saliency_priors(dataset, tiny_model(), PROCESSOR)["saliency_prior"]
    assert stored == add_saliency_priors(rows(), tiny_model(), PROCESSOR)["saliency_prior"]
    with pytest.raises(InputError, match=r"classes \['good', 'scratch', 'dent'\] are not the model's"):
        add_saliency_priors(
            rows().cast_column("label", ClassLabel(names=["good", "scratch", "dent"])), tiny_model(), PROCESSOR
        )


def test_a_human_mask_takes_the_prior_s_place():
    mask = np.zeros((40, 70), dtype=np.uint8)
    mask[30, 5] = 255  # one pixel, in the lower left cell of 2 x 4
    dataset = rows(masks=(PILImage.fromarray(mask), None, None, None))
    stored = add_saliency_priors(dataset, tiny_model(), PROCESSOR)["saliency_prior"]
    assert stored[0] == [[0, 0, 0, 0], [255, 0, 0, 0]]
    assert stored[3] == add_saliency_priors(rows(), tiny_model(), PROCESSOR)["saliency_prior"][3]


def test_the_model_is_left_as_it_was():
    model = tiny_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    add_saliency_priors(rows(), model, PROCESSOR)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_prior_is_small_on_disk(tmp_path):
    stored = add_saliency_priors(rows(), tiny_model(), ViTImageProcessorPil(size={"height": 256, "width": 704}))
    priors = stored.select_columns(["saliency_prior", "prior_weight"])
    assert np.asarray(priors["saliency_prior"]).shape == (4, 16, 44)
    assert priors.data.nbytes / 4 <= 3000


def test_collated_priors_and_their_threshold():
    with_priors = add_saliency_priors(rows(), tiny_model(), PROCESSOR)
    batch = DefectCollator(PROCESSOR)([with_priors[index] for index in range(4)])
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "labels": (4,), "prior_threshold": (4,), "prior_weight": (4,), "pixel_values": (4, 3, 32, 64),
        "saliency_prior": (4, 1, 2, 4),
    }  # fmt: skip
    stored = np.asarray(with_priors["saliency_prior"])
    assert torch.equal((batch["saliency_prior"] * 255).round()[:, 0], torch.from_numpy(stored).float())
    assert not (batch["saliency_prior"][1] > batch["prior_threshold"][1]).any()  # the blank one stays blank


def test_the_command(tmp_path, image_folder):
    model = tiny_model(id2label={0: "good", 1: "scratch"})
    model.save_pretrained(tmp_path / "model")
    PROCESSOR.save_pretrained(tmp_path / "model")
    command = [sys.executable, "-m", "kgl.prior", "--model", str(tmp_path / "model"), "--data_dir", str(image_folder),
               "--output_dir", str(tmp_path / "priors"), "--defect_free_label", "good"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert {"saliency_prior", "prior_weight"} <= set(load_from_disk(tmp_path / "priors").column_names)
    again = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert again.returncode == 2 and "exists already" in again.stderr and "Traceback" not in again.stderr
    command[4] = str(image_folder)
    command[8] = str(tmp_path / "other")
    wrong = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert wrong.returncode == 2 and "no saved classifier" in wrong.stderr and "Traceback" not in wrong.stderr
