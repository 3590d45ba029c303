"""Saliency priors: which map, on which grid, with which weight; masks in its place; resuming."""

import shutil

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, Value, load_from_disk
from PIL import Image as PILImage
from tiny import tiny_model
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.data.arguments import DataArguments
from kgl.data.images import to_pixel_values
from kgl.data.loading import load_defect_dataset
from kgl.errors import InputError
from kgl.knowledge.arguments import PriorArguments
from kgl.knowledge.prior_columns import PRIOR_COLUMNS, with_priors
from kgl.knowledge.saliency_priors import add_saliency_priors, write_saliency_priors
from kgl.knowledge.thresholds import NO_CELL, otsu_threshold
from kgl.modeling_kgl import KGLForImageClassification
from kgl.saliency.compute import compute_saliency
from kgl.saliency.maps import to_uint8
from kgl.saliency.methods import METHODS


PROCESSOR = ViTImageProcessorPil(size={"height": 32, "width": 64})


def rows(names=("good", "scratch", "pit"), masks=(None, None, None, None)):
    generator = np.random.default_rng(0)
    images = [PILImage.fromarray(generator.integers(0, 255, (40, 70), dtype=np.uint8)) for _ in range(4)]
    features = Features(image=Image(), label=ClassLabel(names=list(names)), mask=Image())
    labels = [names.index(name) for name in ("scratch", "good", "pit", "scratch")]
    return Dataset.from_dict({"image": images, "label": labels, "mask": list(masks)}, features=features)


def test_priors_are_maps_of_the_true_class_and_blank_for_good_images():
    model, dataset = tiny_model(), rows()
    guided = add_saliency_priors(dataset, model, PROCESSOR, batch_size=3)
    assert guided.column_names == ["image", "label", "mask", *PRIOR_COLUMNS]
    stored = np.asarray(guided["saliency_prior"], dtype=np.uint8)
    pixel_values = to_pixel_values(dataset["image"], PROCESSOR)
    expected = to_uint8(compute_saliency(model, pixel_values, torch.tensor([1, 0, 2, 1]), "gradcam++"))
    expected[1] = 0
    assert stored.shape == (4, 2, 4)
    assert np.abs(stored.astype(int) - expected.astype(int)).max() <= 1  # batches of 3 and 1 sum in another order
    assert stored[[0, 2, 3]].max(axis=(1, 2)).tolist() == [255, 255, 255]
    assert guided["prior_threshold"] == [otsu_threshold(prior) for prior in stored]
    assert guided["prior_weight"] == [1.0] * 4
    assert guided.features["prior_threshold"] == Value("uint8")


def test_every_image_has_a_map_without_defect_free_class():
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


def test_mask_replaces_prior():
    mask = np.zeros((40, 70), dtype=np.uint8)
    mask[30, 5] = 255  # one pixel, in the lower left cell of 2 x 4
    dataset = rows(masks=(PILImage.fromarray(mask), None, None, None))
    guided = add_saliency_priors(dataset, tiny_model(), PROCESSOR)
    stored = guided["saliency_prior"]
    assert stored[0] == [[0, 0, 0, 0], [255, 0, 0, 0]] and guided["prior_threshold"][0] == 0
    assert stored[3] == add_saliency_priors(rows(), tiny_model(), PROCESSOR)["saliency_prior"][3]


def test_empty_mask_of_defective_image_counts_zero():
    empty = PILImage.fromarray(np.zeros((40, 70), dtype=np.uint8))
    dataset = add_saliency_priors(rows(masks=(empty, empty, None, None)), tiny_model(), PROCESSOR)  # scratch, good
    assert not np.any(dataset["saliency_prior"][:2]) and dataset["prior_weight"] == [0, 1, 1, 1]
    assert dataset["prior_threshold"][:2] == [NO_CELL, NO_CELL]


def test_model_is_left_unchanged():
    model = tiny_model().train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    add_saliency_priors(rows(), model, PROCESSOR)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_prior_is_small():
    stored = add_saliency_priors(rows(), tiny_model(), ViTImageProcessorPil(size={"height": 704, "width": 256}))
    priors = stored.select_columns(list(PRIOR_COLUMNS))
    assert np.asarray(priors["saliency_prior"]).shape == (4, 44, 16)
    assert priors.data.nbytes / 4 <= 1000


@pytest.mark.parametrize("method", METHODS)
def test_priors_of_every_method_are_on_the_grid_of_the_features(method):
    model = tiny_model()
    priors = np.asarray(add_saliency_priors(rows(), model, PROCESSOR, args=PriorArguments(method))["saliency_prior"])
    assert priors.shape == (4, 2, 4) and priors[1].max() == 0
    if method in ("fullgrad", "inputgrad"):
        pixel_values = to_pixel_values(rows()["image"], PROCESSOR)
        maps = compute_saliency(model, pixel_values, torch.tensor([1, 0, 2, 1]), method)
        cells = maps.unflatten(1, (2, 16)).unflatten(3, (4, 16)).mean(dim=(2, 4))
        expected = to_uint8(cells)
        assert np.abs(priors[[0, 2, 3]].astype(int) - expected[[0, 2, 3]].astype(int)).max() <= 1


def test_empty_map_of_defective_image_counts_zero():
    model = tiny_model()
    with torch.no_grad():
        model.classifier.weight[2] = 0  # an empty map of class 2
    mask = PILImage.fromarray(np.full((40, 70), 255, dtype=np.uint8))
    dataset = rows(masks=(None, None, None, mask))  # scratch, good, pit, scratch
    assert add_saliency_priors(dataset, model, PROCESSOR)["prior_weight"] == [1, 1, 0, 1]


def test_written_priors_equal_added_ones(tmp_path):
    args = PriorArguments("hirescam")
    model = tiny_model()
    mask = PILImage.fromarray(np.eye(40, 70, dtype=np.uint8) * 255)
    dataset = rows(masks=(mask, None, None, None))
    expected = add_saliency_priors(dataset, model, PROCESSOR, 4, args)
    written = write_saliency_priors(dataset, model, PROCESSOR, tmp_path / "priors", 4, args)
    joined = with_priors(dataset, written)
    assert joined.column_names == expected.column_names and joined.features == expected.features
    assert joined.select_columns(list(PRIOR_COLUMNS))[:] == expected.select_columns(list(PRIOR_COLUMNS))[:]
    stream = write_saliency_priors(dataset.to_iterable_dataset(), model, PROCESSOR, tmp_path / "stream", 4, args)
    assert stream[:] == written[:]
    for wrong in (dataset.select([0, 1]), dataset.select([1, 0, 2, 3])):
        with pytest.raises(InputError, match="other images"):
            with_priors(wrong, written)


def test_images_in_an_archive(tmp_path, image_folder):
    archive = shutil.make_archive(tmp_path / "images", "zip", image_folder)
    paths = [f"zip://scratch/{index}.png::{archive}" for index in range(3)]
    features = Features(image=Image(), label=ClassLabel(names=["good", "scratch", "pit"]))
    stream = IterableDataset.from_generator(
        lambda: ({"image": {"path": path, "bytes": None}, "label": 1} for path in paths), features=features
    )
    priors = write_saliency_priors(stream, tiny_model(), PROCESSOR, tmp_path / "priors")
    assert len(set(priors["digest"])) == 3 and np.asarray(priors["saliency_prior"]).max() == 255


def test_priors_of_two_models_have_different_fingerprints(tmp_path):
    """The cache of datasets identifies data by fingerprints."""
    rows().save_to_disk(tmp_path / "rows")
    one, other = (
        add_saliency_priors(load_from_disk(tmp_path / "rows"), tiny_model(seed=seed), PROCESSOR) for seed in (0, 1)
    )
    assert one["saliency_prior"] != other["saliency_prior"] and one._fingerprint != other._fingerprint


def test_priors_of_other_models_settings_or_images_are_not_reused(tmp_path):
    def write(dataset=None, model=None, processor=PROCESSOR, args=None, batch_size=4):
        return write_saliency_priors(
            rows() if dataset is None else dataset, model or tiny_model(), processor, tmp_path / "p", batch_size, args
        )

    priors = write()
    saved = tmp_path / "saved"
    tiny_model().save_pretrained(saved)
    assert write(model=KGLForImageClassification.from_pretrained(saved))[:] == priors[:]
    for other in (
        {"model": tiny_model(seed=1)},
        {"model": tiny_model(defect_free_label="pit")},
        {"processor": ViTImageProcessorPil(size={"height": 64, "width": 64})},
        {"args": PriorArguments("gradcam")},
        {"dataset": rows().select([1, 0, 2, 3])},
        {"dataset": rows(masks=(PILImage.new("L", (70, 40), 255), None, None, None))},
        {"dataset": rows(names=("scratch", "good", "pit"))},
    ):
        if "dataset" in other and other["dataset"].features["label"].names != ["good", "scratch", "pit"]:
            assert write(**other)[:] == priors[:]  # the same classes in another order
            continue
        with pytest.raises(InputError, match="another model, other settings or other images"):
            write(**other)


def test_bad_input_is_refused(tmp_path):
    named = rows().add_column("file_name", ["a.png", "b.png", "c.png", "d.png"])
    broken = tiny_model()
    with torch.no_grad():
        broken.classifier.weight[2] = torch.nan  # the class of image c
    with pytest.raises(InputError, match=r"hold NaN or infinity: c\.png\."):
        write_saliency_priors(named, broken, PROCESSOR, tmp_path / "broken", args=PriorArguments("layercam"))
    assert not (tmp_path / "broken").exists()
    message = r"--prior_method gradcam --prior_layers nowhere: the model has no layer nowhere; .* backbone\."
    with pytest.raises(InputError, match=message):
        add_saliency_priors(rows(), tiny_model(), PROCESSOR, args=PriorArguments("gradcam", ["nowhere"]))
    with pytest.raises(InputError, match="layers are for the CAM methods"):
        add_saliency_priors(rows(), tiny_model(), PROCESSOR, args=PriorArguments("fullgrad", ["backbone"]))
    with pytest.raises(InputError, match="--prior_method lrp: choose one of cam, gradcam"):
        PriorArguments("lrp")
    untyped = IterableDataset.from_generator(lambda: iter([{"image": None}]))
    numbers = rows().cast_column("label", Value("int64"))
    for wrong in (untyped, numbers):
        with pytest.raises(InputError, match="needs columns image and label of the types"):
            write_saliency_priors(wrong, tiny_model(), PROCESSOR, tmp_path / "untyped")


def test_priors_do_not_depend_on_the_temperature(image_folder):
    images = load_defect_dataset(DataArguments(data_dir=str(image_folder), validation_share=0))["train"]
    model = tiny_model(id2label={0: "good", 1: "scratch"})
    made = []
    for temperature in (1.0, 7.0):
        model.config.temperature = temperature
        made.append(add_saliency_priors(images, model, PROCESSOR))
        assert model.config.temperature == temperature
    assert made[0]["saliency_prior"][:] == made[1]["saliency_prior"][:]
