"""The range of the training images: measures by hand, limits that few images like them pass, and saved models."""

import math

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import stages_model, tiny_model
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

import kgl.evaluation.training_range as module
from kgl.data.schema import defect_dataset
from kgl.evaluation.training_range import (
    center_and_scale,
    feature_distances,
    find_range,
    held_out_distances,
    is_outside,
    measure_images,
    set_training_range,
)
from kgl.modeling_kgl import KGLForImageClassification
from kgl.pipeline_kgl import PROPERTIES, DefectDetectionPipeline


PROCESSOR = ViTImageProcessorPil(size={"height": 32, "width": 40})
NAMES = [*PROPERTIES, "width", "height"]


def textures(count: int, size: tuple[int, int] = (50, 40)) -> list[Image.Image]:
    """Grey noise of a random brightness, in an image of this width and height."""
    generator = np.random.default_rng(0)
    pixels = generator.normal(size=(count, *size[::-1])) * 12 + generator.uniform(90, 150, (count, 1, 1))
    return [Image.fromarray(one.clip(0, 255).astype(np.uint8)) for one in pixels]


def dataset_of(images: list[Image.Image], groups: list[str] | None = None):
    names = [f"{index}.png" for index in range(len(images))]
    return defect_dataset(
        images=images, labels=["good"] * len(images), names=["good", "pit"], file_names=names, groups=groups
    )


def random_values(generator: np.random.Generator, count: int) -> dict[str, np.ndarray]:
    return {name: generator.lognormal(size=count) for name in NAMES}


def test_measures_are_of_the_image_that_the_model_sees():
    model, images = stages_model(), textures(5)
    measures = measure_images(model, [images[:3], images[3:]], PROCESSOR)
    for index, image in enumerate(images):
        grey = np.asarray(image.resize((40, 32), Image.Resampling.BILINEAR), dtype=float)
        inner = grey[1:-1, 1:-1]
        laplacian = 4 * inner - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
        expected = [grey.mean(), grey.std(), np.abs(laplacian).mean(), 50, 40]
        found = [measures.values[name][index] for name in ("brightness", "contrast", "detail", "width", "height")]
        assert found == pytest.approx(expected, rel=1e-4)
        maps, _ = model.features(PROCESSOR(image.convert("RGB"), return_tensors="pt")["pixel_values"])
        means = np.concatenate([one[0].detach().numpy().mean(axis=(1, 2)) for one in maps])
        np.testing.assert_allclose(measures.features[index], means, atol=1e-5)


def test_image_is_measured_upright():
    image = textures(1)[0]
    image.getexif()[0x0112] = 6  # to be turned by 90 degrees
    values = measure_images(tiny_model(), [[image]], PROCESSOR).values
    assert (values["width"][0], values["height"][0]) == (40, 50)


def test_features_that_hardly_vary_do_not_decide():
    features = np.array([[0.0, 0.0, 1.0], [2.0, 4.0, 1.0]])
    center, scale = center_and_scale(features)
    assert center.tolist() == [1, 2, 1]
    np.testing.assert_allclose(scale, [math.sqrt(1.25), math.sqrt(4.25), 0.5])
    distances = feature_distances(np.array([[1.0, 2.0, 2.0]]), center, scale)
    np.testing.assert_allclose(distances, [2 / math.sqrt(3)])
    assert np.isfinite(feature_distances(features, *center_and_scale(np.zeros((4, 3))))).all()


def test_distances_are_from_images_of_other_groups():
    features = np.random.default_rng(0).normal(size=(6, 8))
    features[4:] = features[0] + 100  # of the first image's group, and far from the others
    groups = ["a", "b", "c", "d", "a", "a"]
    rest = features[1:4]
    expected = feature_distances(features[[0, 4, 5]], *center_and_scale(rest))
    np.testing.assert_allclose(held_out_distances(features, groups)[[0, 4, 5]], expected)
    alone = held_out_distances(features, ["a"] * 6)  # one group: each image is its own
    np.testing.assert_allclose(
        alone[2], feature_distances(features[[2]], *center_and_scale(np.delete(features, 2, 0)))
    )


def test_limits_by_hand():
    values = {name: np.random.default_rng(0).permutation(np.arange(1.0, 200.0)) for name in NAMES}
    values["height"] = np.full(199, 7.0)
    found = find_range(values, range(199))  # 198 = ceil(200 * 0.99): the second largest and the second smallest
    for name in ("brightness", "contrast", "detail"):
        assert found[name] == pytest.approx([2, 198], rel=2e-4)
    assert found["feature_distance"] == pytest.approx([0, 198], rel=2e-4)
    assert (found["width"], found["height"], found["images"], found["groups"]) == ([1, 199], [7, 7], 199, 199)
    few = find_range({name: one[:40] for name, one in values.items()}, range(40))
    assert few["detail"] == pytest.approx([values["detail"][:40].min(), values["detail"][:40].max()], rel=2e-4)
    assert find_range({name: one[:2] for name, one in values.items()}, ["a", "b"])["expected_share"] == 1


def test_expected_share_is_of_images_outside_of_the_range_of_other_groups():
    values = {name: np.full(40, 5.0) for name in NAMES}
    values["detail"] = np.repeat(np.arange(10.0), 4)  # ten parts, the first and the last are the extremes
    values["width"] = np.r_[np.full(36, 5), 6, np.full(3, 5)]  # and one image of the last has another width
    parts = [f"part {row // 4}" for row in range(40)]
    assert find_range(values, parts)["expected_share"] == 8 / 40
    assert find_range(values, range(40))["expected_share"] == 1 / 40  # exposures of a part vouch for each other
    values["height"] = np.r_[np.full(20, 5), 9, np.full(19, 5)]
    assert find_range(values, parts)["expected_share"] == 9 / 40


def test_groups_count_once_with_their_extremes():
    """Three images of each of 250 groups: 249 = ceil(251 * 0.99)."""
    values = {name: np.arange(750.0) for name in NAMES}
    found = find_range(values, [f"part {row // 3}" for row in range(750)])
    assert (found["images"], found["groups"]) == (750, 250)
    assert found["detail"] == pytest.approx([3, 746], rel=2e-4)  # of the second group the lowest, of the last but one


def test_few_images_of_further_groups_lie_outside():
    """Images of one part are alike: limits of many exposures of few parts say less than their number."""
    generator, outside, expected = np.random.default_rng(0), [], []
    for _ in range(100):
        parts = {name: generator.normal(10, 1, (80, 1)) + generator.normal(0, 0.1, (80, 6)) for name in NAMES}
        training, others = ({name: one[rows].ravel() for name, one in parts.items()}
                            for rows in (slice(0, 20), slice(20, None)))  # fmt: skip
        found = find_range(training, np.repeat(np.arange(20), 6))
        outside.append(is_outside(others, found).mean())
        expected.append(found["expected_share"])
    assert np.mean(outside) > 3 * 11 / 121  # what as many independent images would give at most
    assert 0.85 * np.mean(outside) < np.mean(expected) < 1.3 * np.mean(outside)


@pytest.mark.parametrize("count", [20, 99, 150, 512])
def test_few_images_like_the_training_ones_lie_outside(count):
    """The nominal share holds on average over training sets, for each limit and for all together."""
    generator, below, above, outside, expected = np.random.default_rng(count), [], [], [], []
    for _ in range(200):
        training, others = random_values(generator, count), random_values(generator, 200)
        found = find_range(training, range(count))
        limits = np.array([found[name] for name in NAMES])
        new = np.array([others[name] for name in NAMES])
        below.append((new < limits[:, :1]).mean(axis=1))
        above.append((new > limits[:, 1:]).mean(axis=1))
        outside.append(is_outside(others, found).mean())
        expected.append(found["expected_share"])
    nominal = max(0.01, 1 / (count + 1))
    for shares in (np.mean(below, axis=0), np.mean(above, axis=0)):
        properties = shares[: len(PROPERTIES)]
        assert (properties <= 1.15 * nominal).all()
    assert np.mean(above, axis=0)[: len(PROPERTIES)].mean() > 0.5 * nominal  # and it is not far below
    assert 0.85 * np.mean(outside) < np.mean(expected) < 1.3 * np.mean(outside)


@pytest.mark.parametrize("make", [tiny_model, stages_model])
def test_model_knows_its_training_images_when_it_is_saved(make, tmp_path):
    images = textures(30)
    model = make().train()
    set_training_range(model, dataset_of(images, [f"lot {index // 2}" for index in range(30)]), PROCESSOR, 8)
    assert model.training and model.config.training_range["images"] == 30
    model.save_pretrained(tmp_path)
    loaded = KGLForImageClassification.from_pretrained(tmp_path)
    assert loaded.config.training_range == model.config.training_range
    for name in ("feature_center", "feature_scale"):
        torch.testing.assert_close(getattr(loaded, name), getattr(model, name), rtol=0, atol=0)
    pipe = DefectDetectionPipeline(loaded, image_processor=PROCESSOR)
    # Of fewer than 99 images none lies outside, in any batch.
    assert [one["unlike_training"] for one in pipe(images, batch_size=7)] == [[]] * 30
    dark = [Image.fromarray(np.asarray(one) // 4) for one in images[:3]]
    for output in pipe(dark):
        assert output["unlike_training"][:3] == ["darker", "less contrast", "less detail"]
    assert pipe(images[0].resize((60, 40)))["unlike_training"][-1] == "other size"


def test_distances_of_the_pipeline_are_those_of_the_range(tmp_path):
    images, model = textures(12), stages_model()
    set_training_range(model, dataset_of(images), PROCESSOR, 8)
    measures = measure_images(model, [images], PROCESSOR)
    with torch.no_grad():
        maps, _ = model.features(
            PROCESSOR([one.convert("RGB") for one in images], return_tensors="pt")["pixel_values"]
        )
        found = model.feature_distance(maps).numpy()
    expected = feature_distances(measures.features, *center_and_scale(measures.features))
    np.testing.assert_allclose(found, expected, rtol=1e-3)


def test_number_of_images_is_limited_and_the_choice_is_the_same(monkeypatch):
    monkeypatch.setattr(module, "MAX_IMAGES", 9)
    images = textures(20)
    models = [tiny_model() for _ in range(2)]
    for model in models:
        set_training_range(model, dataset_of(images), PROCESSOR, 4)
    assert models[0].config.training_range == models[1].config.training_range
    assert models[0].config.training_range["images"] == 9


def test_range_of_one_image_stays_unknown():
    model = tiny_model()
    set_training_range(model, dataset_of(textures(1)), PROCESSOR, 4)
    assert model.config.training_range is None and not model.feature_center.any()
