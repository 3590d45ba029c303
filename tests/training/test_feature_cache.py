"""Cache of frozen features: the same results as computing them for every batch."""

import shutil
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from datasets import Array2D, ClassLabel, Dataset, Features, Image, Value
from PIL import Image as PILImage
from tiny import stages_model, tiny_model
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

import kgl.data.storage
from kgl.data.images import normalize, to_pixel_values
from kgl.errors import InputError
from kgl.knowledge.thresholds import add_prior_thresholds
from kgl.training.augmentation import PairedAugmentation
from kgl.training.collator import DefectCollator
from kgl.training.feature_cache import (
    FrozenFeatureCollator,
    bypass_frozen_stages,
    cache_frozen_features,
    check_freezable,
    compute_frozen_features,
    make_views,
)
from kgl.training.trainer import KnowledgeGuidedTrainer
from kgl.training.training_args import KGLTrainingArguments


PROCESSOR = ViTImageProcessorPil(size={"height": 32, "width": 64})
VIEWS = 3


def rows(count=6):
    generator = np.random.default_rng(0)
    dataset = Dataset.from_dict(
        {
            "image": [PILImage.fromarray(generator.integers(0, 255, (40, 70), dtype=np.uint8)) for _ in range(count)],
            "label": [index % 3 for index in range(count)],
            "digest": [f"{index:040x}" for index in range(count)],
            "index": list(range(count)),
            "saliency_prior": [generator.integers(0, 256, (2, 4), dtype=np.uint8) for _ in range(count)],
            "prior_weight": [1.0] * count,
        },
        features=Features(
            image=Image(), label=ClassLabel(names=["good", "scratch", "pit"]), digest=Value("string"),
            index=Value("int64"), saliency_prior=Array2D((2, 4), "uint8"), prior_weight=Value("float32"),
        ),
    )  # fmt: skip
    return add_prior_thresholds(dataset)


class Recomputed(FrozenFeatureCollator):
    """Collator that computes every view of every image for every batch."""

    model, stages, images = None, 2, None

    def __call__(self, batch):
        features = []
        for row in batch:
            raw = to_pixel_values([self.images[row["index"]]["image"]], PROCESSOR, do_normalize=False)[0]
            seen, _ = make_views(raw, None, self.augmentation, VIEWS, row["digest"])
            features.append(compute_frozen_features(self.model, normalize(seen, PROCESSOR), self.stages))
        self.features = {row["index"]: views.numpy() for row, views in zip(batch, features, strict=True)}
        self.features = _Table(self.features)
        return super().__call__(batch)


class _Table(dict):
    shape = (6, VIEWS)

    def __getitem__(self, at):
        return dict.__getitem__(self, at[0])[at[1]]


@pytest.mark.parametrize("backbone", ["resnet", "convnextv2", "resnet with the head stages"])
def test_upper_stages_on_frozen_features_equal_the_whole_model(backbone):
    model = stages_model() if "head" in backbone else tiny_model(backbone)  # its first map is that of a frozen stage
    pixel_values = torch.randn(2, 3, 32, 64)
    whole = model(pixel_values)
    features = compute_frozen_features(model, pixel_values, 2)
    with bypass_frozen_stages(model, 2):
        upper = model(features)
        trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        assert trained and all(
            "backbone" not in name or any(upper in name for upper in ("stages.2", "stages.3", "stage3"))
            for name in trained
        )
    torch.testing.assert_close(upper.logits, whole.logits)
    torch.testing.assert_close(upper.saliency, whole.saliency)
    torch.testing.assert_close(model(pixel_values).logits, whole.logits)
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_stages_are_restored_after_an_error():
    model, pixel_values = tiny_model(), torch.randn(2, 3, 32, 64)
    whole = model(pixel_values).logits
    model.classifier.weight.requires_grad_(False)  # the caller froze this one
    with pytest.raises(KeyError), bypass_frozen_stages(model, 1):
        raise KeyError
    assert torch.equal(model(pixel_values).logits, whole)
    assert [name for name, one in model.named_parameters() if not one.requires_grad] == ["classifier.weight"]


def test_views_are_reproducible_with_and_without_maps():
    augmentation, image, maps = PairedAugmentation(), torch.rand(3, 32, 64), torch.rand(3, 2, 4)
    state = torch.random.get_rng_state()
    alone, none = make_views(image, None, augmentation, 5, "1f" * 20)
    both, moved = make_views(image, maps, augmentation, 5, "1f" * 20)
    assert torch.equal(alone, both) and none is None
    assert torch.equal(both[0], image) and torch.equal(moved[0], maps)
    assert not torch.equal(both[1], both[2])
    assert not torch.equal(make_views(image, None, augmentation, 5, "20" * 20)[0], alone)
    _, of_blank = make_views(torch.zeros(3, 32, 64), maps, augmentation, 5, "1f" * 20)
    assert torch.equal(of_blank, moved)  # geometric transforms do not depend on the content
    assert torch.equal(torch.random.get_rng_state(), state)


def test_training_on_cached_features_equals_recomputing_them(tmp_path):
    dataset, augmentation = rows(), PairedAugmentation()
    weights = []
    for kind in ("stored", "recomputed"):
        model = tiny_model()
        if kind == "stored":
            features = cache_frozen_features(
                tmp_path / "features.npy", dataset, model, PROCESSOR, 2, VIEWS, augmentation
            )
            assert features.shape == (6, VIEWS, 12, 4, 8)
            collator = FrozenFeatureCollator(features, (32, 64), augmentation)
        else:
            collator = Recomputed(np.zeros((6, VIEWS)), (32, 64), augmentation)
            Recomputed.model, Recomputed.images = tiny_model(), dataset
        torch.manual_seed(0)
        args = KGLTrainingArguments(
            output_dir=str(tmp_path / kind), num_train_epochs=4, per_device_train_batch_size=2, learning_rate=0.01,
            save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        trainer = KnowledgeGuidedTrainer(model=model, args=args, train_dataset=dataset, data_collator=collator)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with bypass_frozen_stages(model, 2):
            trainer.train()
        after = model.state_dict()
        changed = {name for name in before if not torch.equal(before[name], after[name])}
        assert changed and all("stages.2" in name or "backbone" not in name for name in changed)
        weights.append(after)
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, msg=name)


def test_training_on_cached_features_equals_frozen_stages(tmp_path):
    """Frozen by hand: every image through the whole model, the lower stages in eval mode and without gradients."""
    dataset, weights = rows(), []
    features = cache_frozen_features(tmp_path / "features.npy", dataset, tiny_model(), PROCESSOR, 2, 1, None)
    for stored in (True, False):
        model = tiny_model()
        collator = FrozenFeatureCollator(features, (32, 64)) if stored else DefectCollator(PROCESSOR)
        args = KGLTrainingArguments(
            output_dir=str(tmp_path / str(stored)), num_train_epochs=4, per_device_train_batch_size=2, seed=0,
            learning_rate=0.01, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
        )  # fmt: skip
        trainer = KnowledgeGuidedTrainer(model=model, args=args, train_dataset=dataset, data_collator=collator)
        before = {name: value.clone() for name, value in model.state_dict().items()}
        with ExitStack() as stack:
            if stored:
                stack.enter_context(bypass_frozen_stages(model, 2))
            else:
                for module in kgl.training.feature_cache._frozen_modules(model, 2):
                    module.eval().requires_grad_(False)
                    module.train = lambda mode, module=module: module
            trainer.train()
        weights.append(model.state_dict())
        assert any(not torch.equal(before[name], value) for name, value in weights[-1].items())
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, msg=name)


def test_cached_features_are_reused(tmp_path):
    first = cache_frozen_features(tmp_path / "f.npy", rows(), tiny_model(), PROCESSOR, 1, 2, PairedAugmentation())
    other = cache_frozen_features(
        tmp_path / "f.npy", rows(), tiny_model(seed=1), PROCESSOR, 1, 2, PairedAugmentation()
    )
    assert np.array_equal(first, other)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["f.npy", "f.npy.lock"]
    plain = cache_frozen_features(tmp_path / "plain.npy", rows(), tiny_model(), PROCESSOR, 1, 2, None)
    assert plain.shape[1] == 1 and np.allclose(plain[:, 0], first[:, 0], atol=1e-5)


def test_too_small_disk_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(kgl.data.storage.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(1, 1, 10_000))
    with pytest.raises(InputError, match=r"frozen stages take 0\.05 MiB and 0\.01 MiB are free; make room"):
        cache_frozen_features(tmp_path / "f.npy", rows(), tiny_model(), PROCESSOR, 1, 2, PairedAugmentation())
    assert not (tmp_path / "f.npy").exists()


def test_stages_that_cannot_be_frozen_are_refused():
    with pytest.raises(
        InputError, match=r"--freeze_stages 3: it must lie in 0\.\.2: 0 freezes nothing, stage3 is trained"
    ):
        check_freezable(tiny_model(), 3)
    with pytest.raises(InputError, match="a swin backbone cannot be frozen in part, only resnet"):
        check_freezable(tiny_model("swin"), 1)
    check_freezable(tiny_model("convnextv2"), 2)
    with pytest.raises(InputError, match=r"0\.\.2: .* stage4 is trained, and the map of stage2 is needed"):
        check_freezable(stages_model(), 3)
