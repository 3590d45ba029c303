"""Priors: whose map, on which grid, and what takes its place."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, Value, load_from_disk
from PIL import Image as PILImage
from tiny import TINY_BACKBONES, launched, tiny_model
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.data.arguments import DataArguments
from kgl.data.images import to_pixel_values
from kgl.data.loading import load_defect_dataset
from kgl.data.synthetic import CLASSES
from kgl.errors import InputError
from kgl.knowledge.arguments import PriorArguments
from kgl.knowledge.saliency_priors import add_saliency_priors, with_priors, write_saliency_priors
from kgl.modeling_kgl import KGLForImageClassification
from kgl.prior import PriorPassArguments, main
from kgl.saliency.compute import compute_saliency
from kgl.saliency.maps import to_uint8
from kgl.saliency.methods import METHODS
from kgl.training.augmentation import PairedAugmentation
from kgl.training.collator import DefectCollator
from kgl.training.losses import otsu_threshold
from kgl.training.model_init import load_classifier


PROCESSOR = ViTImageProcessorPil(size={"height": 32, "width": 64})


def rows(names=("good", "scratch", "pit"), masks=(None, None, None, None)):
    generator = np.random.default_rng(0)
    images = [PILImage.fromarray(generator.integers(0, 255, (40, 70), dtype=np.uint8)) for _ in range(4)]
    features = Features(image=Image(), label=ClassLabel(names=list(names)), mask=Image())
    labels = [names.index(name) for name in ("scratch", "good", "pit", "scratch")]
    return Dataset.from_dict({"image": images, "label": labels, "mask": list(masks)}, features=features)


def test_priors_are_the_true_class_s_maps_and_blank_where_there_is_no_defect():
    model, dataset = tiny_model(), rows()
    with_priors = add_saliency_priors(dataset, model, PROCESSOR, batch_size=3)
    assert with_priors.column_names == ["image", "label", "mask", "saliency_prior", "prior_weight"]
    stored = np.asarray(with_priors["saliency_prior"], dtype=np.uint8)
    pixel_values = to_pixel_values(dataset["image"], PROCESSOR)
    expected = to_uint8(compute_saliency(model, pixel_values, torch.tensor([1, 0, 2, 1]), "gradcam++"))
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


def test_an_empty_mask_of_a_defect_says_nothing():
    empty = PILImage.fromarray(np.zeros((40, 70), dtype=np.uint8))
    dataset = add_saliency_priors(rows(masks=(empty, empty, None, None)), tiny_model(), PROCESSOR)  # scratch, good
    assert not np.any(dataset["saliency_prior"][:2]) and dataset["prior_weight"] == [0, 1, 1, 1]


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
        "pseudo_mask": (4, 1, 2, 4), "known": (4, 1, 2, 4),
    }  # fmt: skip
    stored = np.asarray(with_priors["saliency_prior"], dtype=np.uint8)
    assert torch.equal((batch["saliency_prior"] * 255).round()[:, 0], torch.from_numpy(stored).float())
    expected = np.stack([prior > otsu_threshold(prior) for prior in stored])
    assert np.array_equal(batch["pseudo_mask"][:, 0].numpy(), expected)
    assert not expected[1].any() and expected[0].any()  # the blank one stays blank
    assert batch["known"].all()


def test_a_moved_mask_keeps_its_size():
    """Otsu's threshold of a 0 / 255 mask is 0: applied after the move, it would take every cell the mask touches."""
    mask = np.zeros((8, 8), dtype=np.uint8)
    mask[3:5, 3:6] = 255
    image = PILImage.new("L", (64, 64))
    row = {"image": image, "label": 1, "saliency_prior": mask, "prior_weight": 1.0}
    torch.manual_seed(0)
    processor = ViTImageProcessorPil(size={"height": 64, "width": 64})
    moved = DefectCollator(processor, PairedAugmentation())([row] * 200)["pseudo_mask"]
    sizes = moved.sum(dim=(1, 2, 3)).float()
    assert abs(sizes.mean() - 6) < 0.3 and sizes.max() <= 9 and sizes.std() > 0


def test_the_command_with_one_process_and_with_two(tmp_path, monkeypatch):
    """146 images are three shards: two processes have to share them."""
    tiny_model(id2label=dict(enumerate(CLASSES))).save_pretrained(tmp_path / "model")
    PROCESSOR.save_pretrained(tmp_path / "model")
    settings = ["--dataset", "surfaces", "--num_surfaces", "219", "--surface_size", "32", "--validation_share", "0"]

    def command(model="model", output="one", method="gradcam"):
        return ["kgl-prior", "--model", str(tmp_path / model), "--output_dir", str(tmp_path / output),
                "--prior_method", method, *settings]  # fmt: skip

    def outputs(launcher, output):
        arguments = [*launcher, "-m", "kgl.prior", *command(output=output)[1:]]
        done = subprocess.run(arguments, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return load_from_disk(tmp_path / output / "priors"), done.stderr

    one, told = outputs([sys.executable], "one")
    two, told_by_two = outputs(launched(2), "two")
    assert one.column_names == ["file_name", "digest", "saliency_prior", "prior_weight"] and len(one) == 146
    assert two[:] == one[:]
    assert "images/s" in told and "Saliency priors, process 2: 100%" in told_by_two
    assert sorted(path.name for path in (tmp_path / "two").iterdir()) == ["priors", "priors.json"]
    before = (tmp_path / "one" / "priors" / "state.json").stat().st_mtime_ns
    monkeypatch.setattr(sys, "argv", command())
    main()
    assert (tmp_path / "one" / "priors" / "state.json").stat().st_mtime_ns == before


def test_the_command_s_refusals(tmp_path, image_folder, monkeypatch, capsys):
    (tmp_path / "file").write_text("")
    tiny_model(id2label={0: "good", 1: "scratch"}).save_pretrained(tmp_path / "model")
    PROCESSOR.save_pretrained(tmp_path / "model")
    (tmp_path / "run" / "primary").mkdir(parents=True)
    (tmp_path / "damaged" / "priors").mkdir(parents=True)
    (tmp_path / "damaged" / "priors.json").write_text("[")
    given = ["kgl-prior", "--data_dir", str(image_folder), "--model", str(tmp_path / "model"), "--output_dir"]
    for arguments, message in (
        (["--model", str(image_folder)], "no classifier that kgl-train saved"),
        (["--model", str(tmp_path / "run")], f"a run's folder; take {tmp_path / 'run' / 'primary'}."),
        (["--output_dir", str(tmp_path / "damaged")], "priors.json is damaged"),
        (["--prior_method", "lrp"], "invalid choice: 'lrp'"),
        (["--prior_layers", "nowhere", "--prior_method", "gradcam"], "no layer nowhere; the layers with maps are"),
        (["--output_dir", str(tmp_path / "file" / "below")], "cannot be used as a folder"),
    ):
        monkeypatch.setattr(sys, "argv", [*given, str(tmp_path / "out"), *arguments])
        with pytest.raises(SystemExit) as stopped:
            main()
        assert stopped.value.code == 2 and message in capsys.readouterr().err


@pytest.mark.parametrize("method", METHODS)
def test_every_method_s_prior_is_on_the_grid_of_the_features(method):
    model = tiny_model()
    priors = np.asarray(add_saliency_priors(rows(), model, PROCESSOR, args=PriorArguments(method))["saliency_prior"])
    assert priors.shape == (4, 2, 4) and priors[1].max() == 0
    if method in ("fullgrad", "inputgrad"):
        pixel_values = to_pixel_values(rows()["image"], PROCESSOR)
        maps = compute_saliency(model, pixel_values, torch.tensor([1, 0, 2, 1]), method)
        cells = maps.unflatten(1, (2, 16)).unflatten(3, (4, 16)).mean(dim=(2, 4))
        expected = to_uint8(cells)
        assert np.abs(priors[[0, 2, 3]].astype(int) - expected[[0, 2, 3]].astype(int)).max() <= 1


def test_what_a_prior_counts():
    """Class 1 is the answer to every image, with a probability of 0.5: that of 0 is 0.2, that of 2 is 0.3."""
    model = tiny_model()
    with torch.no_grad():
        model.classifier.weight.mul_(1e-9)
        model.classifier.bias.copy_(torch.tensor([0.2, 0.5, 0.3]).log())
    mask = PILImage.fromarray(np.full((40, 70), 255, dtype=np.uint8))
    dataset = rows(masks=(None, None, None, mask))  # scratch, good, pit, scratch

    def weights(weighting):
        args = PriorArguments(prior_weighting=weighting)
        return add_saliency_priors(dataset, model, PROCESSOR, args=args)["prior_weight"]

    assert weights("keep_all") == [1, 1, 1, 1]
    assert weights("drop_wrong") == [1, 1, 0, 1]  # good ones and masks count whatever the primary thinks
    assert weights("confidence") == pytest.approx([0.5, 1, 0.3, 1], abs=1e-4)
    with torch.no_grad():
        model.classifier.weight[2] = 0  # nothing in an image speaks for class 2: its map is empty, not blank
    assert weights("keep_all") == [1, 1, 0, 1]
    with pytest.raises(InputError, match="--prior_weighting none: choose one of keep_all"):
        PriorArguments(prior_weighting="none")


def test_written_priors_are_the_added_ones(tmp_path):
    args = PriorArguments("hirescam", prior_weighting="confidence")
    model = tiny_model()
    mask = PILImage.fromarray(np.eye(40, 70, dtype=np.uint8) * 255)
    dataset = rows(masks=(mask, None, None, None))
    expected = add_saliency_priors(dataset, model, PROCESSOR, 4, args)
    written = write_saliency_priors(dataset, model, PROCESSOR, tmp_path / "priors", 4, args)
    assert with_priors(dataset, written)["saliency_prior"] == expected["saliency_prior"]
    assert with_priors(dataset, written)["prior_weight"] == expected["prior_weight"]
    stream = write_saliency_priors(dataset.to_iterable_dataset(), model, PROCESSOR, tmp_path / "stream", 4, args)
    assert stream[:] == written[:]
    for wrong in (dataset.select([0, 1]), dataset.select([1, 0, 2, 3])):
        with pytest.raises(InputError, match="other images"):
            with_priors(wrong, written)


def test_images_in_an_archive_are_read_where_they_are(tmp_path, image_folder):
    archive = shutil.make_archive(tmp_path / "images", "zip", image_folder)
    paths = [f"zip://scratch/{index}.png::{archive}" for index in range(3)]
    features = Features(image=Image(), label=ClassLabel(names=["good", "scratch", "pit"]))
    stream = IterableDataset.from_generator(
        lambda: ({"image": {"path": path, "bytes": None}, "label": 1} for path in paths), features=features
    )
    priors = write_saliency_priors(stream, tiny_model(), PROCESSOR, tmp_path / "priors")
    assert len(set(priors["digest"])) == 3 and np.asarray(priors["saliency_prior"]).max() == 255


def test_priors_of_two_models_are_two_data_sets(tmp_path):
    """To datasets' cache too, which goes by fingerprints."""
    rows().save_to_disk(tmp_path / "rows")
    one, other = (
        add_saliency_priors(load_from_disk(tmp_path / "rows"), tiny_model(seed=seed), PROCESSOR) for seed in (0, 1)
    )
    assert one["saliency_prior"] != other["saliency_prior"] and one._fingerprint != other._fingerprint


def test_what_decides_a_prior_decides_whether_it_is_made_again(tmp_path):
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
        {"args": PriorArguments(prior_weighting="confidence")},
        {"dataset": rows().select([1, 0, 2, 3])},
        {"dataset": rows(masks=(PILImage.new("L", (70, 40), 255), None, None, None))},
        {"dataset": rows(names=("scratch", "good", "pit"))},
    ):
        if "dataset" in other and other["dataset"].features["label"].names != ["good", "scratch", "pit"]:
            assert write(**other)[:] == priors[:]  # the same classes by other numbers
            continue
        with pytest.raises(InputError, match="another model, other settings or other images"):
            write(**other)


def test_bad_priors_are_one_sentence(tmp_path):
    named = rows().add_column("file_name", ["a.png", "b.png", "c.png", "d.png"])
    broken = tiny_model()
    with torch.no_grad():
        broken.classifier.weight[2] = torch.nan  # the class of image c
    with pytest.raises(InputError, match=r"hold NaN or infinity: c\.png\."):
        write_saliency_priors(named, broken, PROCESSOR, tmp_path / "broken", args=PriorArguments("layercam"))
    assert not (tmp_path / "broken").exists()
    named = r"--prior_method gradcam --prior_layers nowhere: there is no layer nowhere; .* backbone\."
    with pytest.raises(InputError, match=named):
        add_saliency_priors(rows(), tiny_model(), PROCESSOR, args=PriorArguments("gradcam", ["nowhere"]))
    with pytest.raises(InputError, match="layers are for the CAM methods"):
        add_saliency_priors(rows(), tiny_model(), PROCESSOR, args=PriorArguments("fullgrad", ["backbone"]))
    with pytest.raises(InputError, match="--prior_method lrp: choose one of cam, gradcam"):
        PriorArguments("lrp")
    untyped = IterableDataset.from_generator(lambda: iter([{"image": None}]))
    numbers = rows().cast_column("label", Value("int64"))
    for wrong in (untyped, numbers):
        with pytest.raises(InputError, match="no columns image and label of the types"):
            write_saliency_priors(wrong, tiny_model(), PROCESSOR, tmp_path / "untyped")


def test_a_model_of_another_kind_makes_no_priors(tmp_path):
    TINY_BACKBONES["resnet"].save_pretrained(tmp_path / "resnet")
    with pytest.raises(InputError, match="no classifier that kgl-train saved"):
        load_classifier(str(tmp_path / "resnet"))
    with pytest.raises(InputError, match="--batch_size 0"):
        PriorPassArguments(model="m", output_dir="o", batch_size=0)


def test_the_temperature_has_no_say_in_priors(image_folder):
    images = load_defect_dataset(DataArguments(data_dir=str(image_folder), validation_share=0))["train"]
    model = tiny_model(id2label={0: "good", 1: "scratch"})
    made = []
    for temperature in (1.0, 7.0):
        model.config.temperature = temperature
        made.append(add_saliency_priors(images, model, PROCESSOR, args=PriorArguments(prior_weighting="confidence")))
        assert model.config.temperature == temperature
    assert made[0]["saliency_prior"][:] == made[1]["saliency_prior"][:]
    assert made[0]["prior_weight"][:] == made[1]["prior_weight"][:]
