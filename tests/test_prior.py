"""Priors: whose map, on which grid, and what takes its place."""

import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, load_from_disk
from PIL import Image as PILImage
from tiny import TINY_BACKBONES, tiny_model
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.augmentation import PairedAugmentation
from kgl.collator import DefectCollator, to_pixel_values
from kgl.data import DataArguments
from kgl.errors import InputError
from kgl.losses import otsu_threshold
from kgl.prior import PriorArguments, add_saliency_priors, run
from kgl.runs import save_whole
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
    stored = add_saliency_priors(rows(), tiny_model(), ViTImageProcessorPil(size={"height": 704, "width": 256}))
    priors = stored.select_columns(["saliency_prior", "prior_weight"])
    assert np.asarray(priors["saliency_prior"]).shape == (4, 44, 16)
    assert priors.data.nbytes / 4 <= 1000


def test_collated_priors_and_their_masks():
    with_priors = add_saliency_priors(rows(), tiny_model(), PROCESSOR)
    batch = DefectCollator(PROCESSOR)([with_priors[index] for index in range(4)])
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "labels": (4,), "prior_weight": (4,), "pixel_values": (4, 3, 32, 64), "saliency_prior": (4, 1, 2, 4),
        "pseudo_mask": (4, 1, 2, 4),
    }  # fmt: skip
    stored = np.asarray(with_priors["saliency_prior"], dtype=np.uint8)
    assert torch.equal((batch["saliency_prior"] * 255).round()[:, 0], torch.from_numpy(stored).float())
    expected = np.stack([prior > otsu_threshold(prior) for prior in stored])
    assert np.array_equal(batch["pseudo_mask"][:, 0].numpy(), expected)
    assert not expected[1].any() and expected[0].any()  # the blank one stays blank


def test_a_moved_mask_keeps_its_size():
    """Otsu's threshold of a 0 / 255 mask is 0: applied after the move, it would take every cell the mask touches."""
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[3:5, 3:6] = 255
    picture = PILImage.new("L", (64, 64))
    row = {"image": picture, "label": 1, "saliency_prior": mask, "prior_weight": 1.0}
    torch.manual_seed(0)
    processor = ViTImageProcessorPil(size={"height": 64, "width": 64})
    moved = DefectCollator(processor, PairedAugmentation())([row] * 200)["pseudo_mask"]
    sizes = moved.sum(dim=(1, 2, 3)).float()
    assert abs(sizes.mean() - 6) < 0.3 and sizes.max() <= 9 and sizes.std() > 0


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
    assert wrong.returncode == 2 and "none that kgl-train saved" in wrong.stderr and "Traceback" not in wrong.stderr


def test_a_model_of_another_kind_makes_no_priors(tmp_path):
    TINY_BACKBONES["resnet"].save_pretrained(tmp_path / "resnet")
    with pytest.raises(InputError, match="none that kgl-train saved"):
        run(PriorArguments(model=str(tmp_path / "resnet"), output_dir=str(tmp_path / "priors")), DataArguments())
    with pytest.raises(InputError, match="--batch_size 0"):
        PriorArguments(model="m", output_dir="o", batch_size=0)


def test_saving_takes_no_folder_of_the_user_s(tmp_path):
    (tmp_path / "priors.unfinished").mkdir()
    (tmp_path / "priors.unfinished" / "thesis.txt").write_text("mine")
    save_whole(rows(), tmp_path / "priors")
    assert len(load_from_disk(tmp_path / "priors")) == 4
    assert (tmp_path / "priors.unfinished" / "thesis.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["priors", "priors.unfinished"]
