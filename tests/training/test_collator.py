"""Training batches: the targets of guidance from stored priors."""

import numpy as np
import pytest
import torch
from datasets import Array2D, ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from skimage.filters import threshold_otsu
from tiny import tiny_model
from transformers import Trainer, TrainingArguments
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.errors import InputError
from kgl.knowledge.thresholds import add_prior_thresholds, otsu_threshold
from kgl.training.augmentation import PairedAugmentation
from kgl.training.collator import DefectCollator, prior_mask


PROCESSOR = ViTImageProcessorPil(size={"height": 64, "width": 64})


def priors() -> np.ndarray:
    """Random, blank, constant and mask-like priors, `(N, 6, 8)` uint8."""
    generator = np.random.default_rng(0)
    noise = generator.integers(0, 256, (40, 6, 8), dtype=np.uint8)
    peaked = (255 * generator.random((40, 6, 8)) ** 6).astype(np.uint8)
    masks = (generator.random((40, 6, 8)) > 0.9).astype(np.uint8) * np.uint8(255)
    constant = np.full((3, 6, 8), [[[0]], [[1]], [[255]]], dtype=np.uint8)
    return np.concatenate([noise, peaked, masks, constant])


def rows(stored: np.ndarray) -> Dataset:
    dataset = Dataset.from_dict(
        {
            "image": [PILImage.new("L", (64, 64))] * len(stored),
            "label": [1] * len(stored),
            "saliency_prior": list(stored),
            "prior_weight": [0.5] * len(stored),
        },
        features=Features(
            image=Image(),
            label=ClassLabel(names=["good", "scratch"]),
            saliency_prior=Array2D(stored.shape[1:], "uint8"),
            prior_weight=Value("float32"),
        ),
    )
    return add_prior_thresholds(dataset)


def reference_mask(prior: np.ndarray) -> np.ndarray:
    """The mask as it was made before thresholds were stored: Otsu's threshold of the prior at every access."""
    if prior.min() == prior.max():
        return prior > 0
    return prior > int(threshold_otsu(prior))


def test_masks_from_stored_thresholds_are_those_of_the_prior():
    stored = priors()
    for row, prior in zip(rows(stored).remove_columns("image"), stored, strict=True):
        mask = prior_mask(row)
        assert mask.dtype == torch.float32
        np.testing.assert_array_equal(mask.numpy(), reference_mask(prior)[None])


def test_batch():
    stored = priors()[[0, 50, 90, 120]]  # the last one is blank
    dataset = rows(stored)
    batch = DefectCollator(PROCESSOR)([dataset[index] for index in range(4)])
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "labels": (4,), "prior_weight": (4,), "pixel_values": (4, 3, 64, 64), "prior_mask": (4, 1, 6, 8),
    }  # fmt: skip
    expected = np.stack([prior > otsu_threshold(prior) for prior in stored])
    assert batch["prior_mask"].dtype == torch.bool and np.array_equal(batch["prior_mask"][:, 0].numpy(), expected)
    assert not expected[3].any() and expected[0].any()
    assert batch["prior_weight"].tolist() == [0.5] * 4


def test_augmented_mask_keeps_its_size():
    """The threshold 0 of a mask, applied after augmentation, would take every cell that the mask touches."""
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[3:5, 3:6] = 255
    row = rows(mask[None])[0]
    torch.manual_seed(0)
    augmented = DefectCollator(PROCESSOR, PairedAugmentation())([row] * 200)["prior_mask"]
    sizes = augmented.sum(dim=(1, 2, 3)).float()
    assert abs(sizes.mean() - 6) < 0.3 and sizes.max() <= 9 and sizes.std() > 0


def test_plain_trainer_that_removes_the_images_is_refused(tmp_path):
    dataset = rows(priors()[:4]).select_columns(["image", "label"])
    settings = {"max_steps": 1, "use_cpu": True, "disable_tqdm": True}
    for remove in (True, False):
        args = TrainingArguments(str(tmp_path), remove_unused_columns=remove, **settings)
        trainer = Trainer(tiny_model(), args, data_collator=DefectCollator(PROCESSOR), train_dataset=dataset)
        if remove:
            with pytest.raises(InputError, match="remove_unused_columns=False"):
                trainer.train()
        else:
            assert trainer.train().global_step == 1
