"""The defect-detection pipeline: outputs, boxes, and loading without kgl."""

import json
import os
import subprocess
import sys
from base64 import b64encode

import numpy as np
import pytest
import torch
from few_packages import link_packages
from PIL import Image
from tiny import tiny_model
from transformers import BaseImageProcessor, pipeline
from transformers.image_utils import load_image
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.modeling_kgl import KGLForImageClassification
from kgl.pipeline_kgl import DefectDetectionPipeline, hot_boxes, image_properties, resize_first, upright_rgb


PROCESSOR = ViTImageProcessorPil(size={"height": 48, "width": 32})
EXIF_ORIENTATION = 0x0112


def detector(**config_kwargs) -> DefectDetectionPipeline:
    return DefectDetectionPipeline(tiny_model(**config_kwargs), image_processor=PROCESSOR)


def noise(width: int = 50, height: int = 70, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def comparable(output: dict) -> dict:
    return output | {"heat_map": np.asarray(output["heat_map"]).tolist()}


def test_hot_boxes_by_hand():
    cells = torch.zeros(7, 12)
    cells[0:2, 0:3] = 0.6
    cells[2, 3] = 0.7  # touches it at a corner
    cells[1:5, 6] = 0.8  # a U: one region whose arms meet in its last row
    cells[1:5, 9] = 0.9
    cells[5, 6:10] = 0.5
    cells[6, 11] = 0.4
    first, second = (
        {"xmin": 6, "ymin": 1, "xmax": 10, "ymax": 6, "score": pytest.approx(0.9)},
        {"xmin": 0, "ymin": 0, "xmax": 4, "ymax": 3, "score": pytest.approx(0.7)},
    )
    assert hot_boxes(cells, 0.5, (7, 12)) == [first, second]
    assert hot_boxes(cells, 0.65, (7, 12)) == [
        {"xmin": 9, "ymin": 1, "xmax": 10, "ymax": 5, "score": pytest.approx(0.9)},
        {"xmin": 6, "ymin": 1, "xmax": 7, "ymax": 5, "score": pytest.approx(0.8)},
        {"xmin": 3, "ymin": 2, "xmax": 4, "ymax": 3, "score": pytest.approx(0.7)},
    ]
    assert hot_boxes(cells, 0.95, (7, 12)) == []
    assert [(box["xmax"], box["ymax"]) for box in hot_boxes(cells, 0, (7, 12))] == [(12, 7)]


def test_layout_for_cpus_changes_no_result_and_is_not_saved(tmp_path):
    pixel_values, model = torch.randn(2, 3, 48, 32), tiny_model()
    expected = model(pixel_values)
    DefectDetectionPipeline(model, image_processor=PROCESSOR)
    kernels = [weight for weight in model.parameters() if weight.ndim == 4 and weight[0, 0].numel() > 1]
    assert kernels and all(weight.is_contiguous(memory_format=torch.channels_last) for weight in kernels)
    laid_out = model(pixel_values)
    assert torch.allclose(laid_out.logits, expected.logits, atol=1e-5)
    assert torch.allclose(laid_out.saliency, expected.saliency, atol=1e-5)
    model.save_pretrained(tmp_path)
    loaded = KGLForImageClassification.from_pretrained(tmp_path).eval()
    assert all(weight.is_contiguous() for weight in loaded.parameters())
    assert torch.equal(loaded(pixel_values).logits, expected.logits)


def test_hot_boxes_hold_whole_cells():
    cells = torch.zeros(4, 3)
    cells[1, 2] = 0.75
    box = {"xmin": 66, "ymin": 12, "xmax": 100, "ymax": 25, "score": 0.75}  # 33.3 x 12.5 pixels a cell
    assert hot_boxes(cells, 0.75, (50, 100)) == [box]
    assert hot_boxes(cells, 0.75, (1, 1)) == [{"xmin": 0, "ymin": 0, "xmax": 1, "ymax": 1, "score": 0.75}]
    assert hot_boxes(cells, 0.76, (50, 100)) == []


def test_boxes_inside_another_are_merged_into_it():
    cells = torch.zeros(7, 9)
    cells[0, 0:7] = cells[6, 0:7] = 0.6
    cells[0:7, 0] = cells[0:7, 6] = 0.6  # a ring
    cells[3, 3] = 0.9  # inside, not touching
    cells[2:5, 8] = 0.7  # beside it
    assert [tuple(box.values()) for box in hot_boxes(cells, 0.5, (70, 90))] == [
        (0, 0, 70, 70, pytest.approx(0.9)), (80, 20, 90, 50, pytest.approx(0.7)),
    ]  # fmt: skip


def test_hot_boxes_are_the_outermost_that_scipy_finds():
    from scipy.ndimage import find_objects, label

    for seed in range(30):
        generator = np.random.default_rng(seed)
        cells = generator.random(generator.integers(1, 40, 2), dtype=np.float32)
        regions, _ = label(cells >= 0.6, structure=np.ones((3, 3)))
        found = [
            (*(slice_.start for slice_ in one), *(-slice_.stop for slice_ in one)) for one in find_objects(regions)
        ]
        inside = [[all(np.greater_equal(one, other)) and one != other for other in found] for one in found]
        outermost = {one for one, is_inside in zip(found, inside, strict=True) if not any(is_inside)}
        boxes = hot_boxes(torch.from_numpy(cells), 0.6, cells.shape)
        assert {(box["ymin"], box["xmin"], -box["ymax"], -box["xmax"]) for box in boxes} == outermost
        assert len(boxes) == len(outermost)
        assert [box["score"] for box in boxes] == sorted((box["score"] for box in boxes), reverse=True)
        assert not boxes or boxes[0]["score"] == cells.max()


def test_outputs_of_an_image():
    model = tiny_model()
    pipe, image = DefectDetectionPipeline(model, image_processor=PROCESSOR), noise()
    with torch.no_grad():
        expected = model(PROCESSOR(image, return_tensors="pt")["pixel_values"])
    probabilities = expected.logits.softmax(dim=1)[0].tolist()
    output = pipe(image)
    assert output["scores"] == pytest.approx(dict(zip(("good", "scratch", "pit"), probabilities, strict=True)))
    assert output["score"] == max(output["scores"].values()) == output["scores"][output["label"]]
    assert output["defect_score"] == pytest.approx(1 - probabilities[0])
    assert output["defective"] is (output["defect_score"] >= 0.5)
    assert output["heat_map"].mode == "L" and output["heat_map"].size == image.size
    heat = torch.nn.functional.interpolate(expected.saliency.sigmoid(), (70, 50), mode="bilinear")[0, 0].numpy()
    assert np.abs(np.asarray(output["heat_map"]) / 255 - heat).max() <= 0.5 / 255 + 1e-6
    cells = expected.saliency.sigmoid()[0, 0]
    threshold = cells.flatten().sort().values[-3].item()
    boxes = hot_boxes(cells, threshold, (70, 50))
    assert boxes and boxes != hot_boxes(cells, 0.5, (70, 50)) == pipe(image)["boxes"]
    assert pipe(image, box_threshold=threshold)["boxes"] == boxes
    threshold_of_the_pipeline = DefectDetectionPipeline(model, image_processor=PROCESSOR, box_threshold=threshold)
    assert threshold_of_the_pipeline(image)["boxes"] == boxes
    assert detector(saliency_threshold={"threshold": threshold})(image)["boxes"] == boxes
    with pytest.raises(ValueError, match="box_threshold=2"):
        pipe(image, box_threshold=2)


def test_untrained_saliency_head_gives_a_blank_map_and_no_boxes():
    output = detector(has_heat_map=False)(noise(), box_threshold=0)
    assert output["boxes"] == [] and output["heat_map"].getextrema() == (0, 0)
    assert output["scores"] == detector()(noise())["scores"]


def test_operating_point_decides():
    score = detector()(noise())["defect_score"]
    for threshold, defective in ((score - 1e-3, True), (score + 1e-3, False)):
        assert detector(operating_point={"threshold": threshold})(noise())["defective"] is defective
    output = detector(defect_free_label=None)(noise())
    assert output["defect_score"] is None and output["defective"] is None and output["decision"] is None


def test_images_between_two_thresholds_are_to_be_looked_at_again():
    score = detector()(noise())["defect_score"]
    for lower, threshold, decision in (
        (None, score, "defective"), (None, score + 1e-3, "good"), (score - 2e-3, score - 1e-3, "defective"),
        (score - 1e-3, score + 1e-3, "look again"), (score + 1e-3, score + 2e-3, "good"),
    ):  # fmt: skip
        point = {"threshold": threshold} | ({} if lower is None else {"look_again_threshold": lower})
        output = detector(operating_point=point)(noise())
        assert output["decision"] == decision and output["defective"] is (decision == "defective")


TRAINING_RANGE = {
    "images": 50, "groups": 50, "brightness": [100.0, 150.0], "contrast": [1.0, 300.0], "detail": [0.0, 1e4],
    "feature_distance": [0.0, 1e6], "width": [50, 60], "height": [70, 70], "expected_share": 0.14,
}  # fmt: skip


def test_unlike_images_are_named_in_words():
    image = noise()
    assert detector()(image)["unlike_training"] is None
    assert detector(training_range=TRAINING_RANGE)(image)["unlike_training"] == []
    for changed, words in (
        ({"brightness": [200.0, 255.0]}, ["darker"]),
        ({"brightness": [0.0, 10.0], "contrast": [100.0, 110.0]}, ["brighter", "less contrast"]),
        ({"contrast": [0.0, 1.0], "detail": [1e4, 1e5]}, ["more contrast", "less detail"]),
        ({"detail": [0.0, 1.0], "feature_distance": [0.0, 1e-9]}, ["more detail", "other features"]),
        ({"feature_distance": [0.0, 1e-9], "width": [51, 60]}, ["other features", "other size"]),
        ({"height": [71, 90]}, ["other size"]),
    ):
        assert detector(training_range=TRAINING_RANGE | changed)(image)["unlike_training"] == words


def test_properties_are_of_the_normalised_image_whatever_the_processor():
    """Grey levels of the image itself, by any normalisation, rescaling or none."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    grey = pixels.astype(float).mean(axis=2)
    inner = 4 * grey[1:-1, 1:-1] - grey[:-2, 1:-1] - grey[2:, 1:-1] - grey[1:-1, :-2] - grey[1:-1, 2:]
    expected = [grey.mean(), grey.std(), np.abs(inner).mean()]
    for settings in ({"image_mean": [0.4, 0.5, 0.3], "image_std": [0.2, 0.3, 0.1]}, {"do_normalize": False},
                     {"do_normalize": False, "do_rescale": False}):  # fmt: skip
        processor = ViTImageProcessorPil(do_resize=False, **settings)
        found = image_properties(processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"], processor)
        assert found.shape == (1, 3) and found[0].tolist() == pytest.approx(expected, rel=1e-4)


def test_size_is_that_of_the_upright_image(tmp_path):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6
    noise().transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    pipe = detector(training_range=TRAINING_RANGE)
    assert pipe(str(tmp_path / "turned.png"))["unlike_training"] == []
    assert pipe(noise(70, 50))["unlike_training"] == ["other size"]


def test_unlike_images_cost_no_second_pass(monkeypatch):
    pipe, calls = detector(training_range=TRAINING_RANGE), []
    pipe.model.backbone.register_forward_hook(lambda *_: calls.append(1))
    outputs = pipe([noise(seed=seed) for seed in range(6)], batch_size=3)
    assert len(calls) == 2 and [one["unlike_training"] for one in outputs] == [[]] * 6


def test_batches_paths_and_images_agree(tmp_path):
    pipe = detector()
    images = [noise(50, 70, 0), noise(40, 30, 1), noise(64, 64, 2)]
    paths = [str(tmp_path / f"{index}.png") for index in range(3)]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    single = [comparable(pipe(image)) for image in images]
    assert [comparable(pipe(path)) for path in paths] == single
    assert [comparable(output) for output in pipe(paths)] == single
    for batch_size in (2, 3):
        for output, one in zip(pipe(images, batch_size=batch_size), single, strict=True):
            assert output["scores"] == pytest.approx(one["scores"], abs=1e-6)
            assert output["label"] == one["label"] and output["defective"] == one["defective"]
            assert output["heat_map"].size == (len(one["heat_map"][0]), len(one["heat_map"]))
            difference = np.asarray(output["heat_map"]).astype(int) - np.asarray(one["heat_map"])
            assert np.abs(difference).max() <= 1


@pytest.mark.parametrize("resample", list(Image.Resampling))
@pytest.mark.parametrize("size", [{"height": 48, "width": 32}, {"height": 90, "width": 50}, {"shortest_edge": 32}])
@pytest.mark.parametrize("do_resize", [True, False])
def test_processors_see_no_difference_in_images_resized_before(size, resample, do_resize):
    processor = ViTImageProcessorPil(size=size, resample=resample, do_resize=do_resize)
    image = noise(50, 70)
    before = resize_first(image, processor)
    assert before.size == ((size["width"], size["height"]) if do_resize and "width" in size else image.size)
    expected, seen = (processor(images=one, return_tensors="pt")["pixel_values"] for one in (image, before))
    assert torch.equal(seen, expected)


def test_only_processors_of_kgl_are_anticipated():
    class Cropping(ViTImageProcessorPil):
        def resize(self, image: np.ndarray, *args: object, **kwargs: object) -> np.ndarray:
            return super().resize(image[:, :40], *args, **kwargs)

    image, by_hand = noise(), ViTImageProcessorPil()
    by_hand.size = {"height": 48, "width": 32}
    assert resize_first(image, by_hand).size == (32, 48)
    for processor in (Cropping(size=by_hand.size), BaseImageProcessor()):
        assert resize_first(image, processor) is image


@pytest.mark.parametrize("suffix", ["png", "jpg", "webp", "tif"])
@pytest.mark.parametrize("orientation", [None, *range(10)])
def test_upright_images_are_those_of_transformers(tmp_path, suffix, orientation):
    exif, path = Image.Exif(), tmp_path / f"image.{suffix}"
    if orientation is not None:
        exif[EXIF_ORIENTATION] = orientation
    noise().save(path, exif=exif)
    for mode in ("RGB", "L", "RGBA"):
        image = Image.open(path) if mode == "RGB" else noise().convert(mode)
        expected = load_image(Image.open(path) if mode == "RGB" else image)
        upright = upright_rgb(image)
        assert upright.mode == "RGB" and np.array_equal(upright, expected)
        # Pillow turns a TIFF itself, in place.
        assert (upright is image) == (mode == "RGB" and (suffix == "tif" or orientation not in range(2, 9)))


def test_exif_orientation_is_applied(tmp_path):
    upright = noise(30, 64)
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6  # to be turned by 90 degrees clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=exif)
    assert Image.open(tmp_path / "turned.png").size == (64, 30)
    pipe = detector()
    threshold = float(np.median(np.asarray(pipe(upright)["heat_map"])) / 255)
    turned = pipe(str(tmp_path / "turned.png"), box_threshold=threshold)
    assert turned["heat_map"].size == (30, 64)
    assert turned["boxes"] and comparable(turned) == comparable(pipe(upright, box_threshold=threshold))


def test_more_pixels_than_pillow_allows_are_refused_with_the_mend(tmp_path, monkeypatch):
    noise().save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(ValueError, match=r"exceeds limit of 2000 pixels.*set PIL\.Image\.MAX_IMAGE_PIXELS higher"):
        detector()(str(tmp_path / "a.png"))


def test_task_is_registered():
    pipe = pipeline("defect-detection", model=tiny_model(), image_processor=PROCESSOR)
    assert isinstance(pipe, DefectDetectionPipeline)


WITHOUT_KGL = """
import importlib.util, json, sys
assert not any(map(importlib.util.find_spec, ("kgl", "datasets", "accelerate", "scipy", "skimage", "sklearn")))
import torch
from transformers import pipeline

folder, again = sys.argv[1:]
torch.set_num_threads(1)
ordinary = pipeline("image-classification", model=folder, trust_remote_code=True)(folder + "/image.png")
detector = pipeline("defect-detection", model=folder, trust_remote_code=True)
try:
    pipeline(model=folder, trust_remote_code=True)
except RuntimeError as error:  # without a task, the error lists both
    assert "Pick one in defect-detection, image-classification" in " ".join(str(error).split())
output = detector(folder + "/image.png", box_threshold=0.1)
detector.model.save_pretrained(again + "/model")
detector.image_processor.save_pretrained(again + "/model")
detector.save_pretrained(again + "/pipeline")
for saved in (folder, again + "/model", again + "/pipeline"):
    from_there = pipeline("defect-detection", model=saved, trust_remote_code=True)
    assert from_there(folder + "/image.png", box_threshold=0.1) == output
    classifier = pipeline("image-classification", model=saved, trust_remote_code=True)
    assert classifier(folder + "/image.png") == ordinary
    for pipe in (from_there, classifier):
        try:
            pipe(folder + "/deep.png")
        except ValueError as error:
            assert folder + "/deep.png: an image of mode" in str(error)
            assert "more than 8 bits per channel; convert it to 8" in str(error)
        else:
            raise AssertionError("clipped to white")
output["heat_map"] = list(output["heat_map"].tobytes())
print(json.dumps({"ordinary": ordinary, "detector": output}))
"""


def test_saved_pipeline_needs_few_packages_and_no_kgl(tmp_path, auto_image_processor):
    (tmp_path / "packages").mkdir()
    packages = link_packages(("torch", "transformers", "safetensors", "pillow", "numpy"), tmp_path / "packages")
    folder = tmp_path / "model"
    model = tiny_model(training_range=TRAINING_RANGE | {"brightness": [200.0, 250.0]})
    model.save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)
    noise().save(folder / "image.png")
    Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20)).save(folder / "deep.png")
    process = subprocess.run(
        [sys.executable, "-S", "-c", WITHOUT_KGL, str(folder), str(tmp_path / "again")],
        capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(packages)},
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "registered" not in process.stderr and "not supported" not in process.stderr
    outputs = json.loads(process.stdout)
    here = DefectDetectionPipeline(model, image_processor=PROCESSOR)(noise(), box_threshold=0.1)
    here["heat_map"] = list(here["heat_map"].tobytes())
    assert outputs["detector"] == here and here["boxes"] and here["unlike_training"] == ["darker"]
    ordinary = {one["label"]: one["score"] for one in outputs["ordinary"]}
    assert outputs["detector"]["scores"] == pytest.approx(ordinary, abs=1e-7)
    assert (outputs["detector"]["label"], outputs["detector"]["score"]) == (
        outputs["ordinary"][0]["label"], pytest.approx(outputs["ordinary"][0]["score"]),
    )  # fmt: skip
    KGLForImageClassification.from_pretrained(tmp_path / "again" / "pipeline")  # and back with kgl


@pytest.mark.parametrize("kind", ["uint16", "int32", "float32"])
@pytest.mark.parametrize("way", ["object", "path", "base64", "data"])
def test_images_of_more_than_8_bits_are_refused(kind, way, tmp_path):
    """Converted to RGB they are clipped to white, and a defect passes as good."""
    image = Image.fromarray(np.random.default_rng(0).integers(0, 60000, (40, 40)).astype(kind))
    path = tmp_path / "part.tiff"
    image.save(path)
    text = b64encode(path.read_bytes()).decode()
    ways = {"object": image, "path": str(path), "base64": text, "data": "data:image/tiff;base64," + text}
    with pytest.raises(ValueError, match="more than 8 bits per channel; convert it to 8"):
        detector()(ways[way])


def test_images_of_8_bits_are_read_in_every_way(tmp_path):
    path = tmp_path / "part.png"
    noise().save(path)
    text = b64encode(path.read_bytes()).decode()
    inspect = detector()
    outputs = [inspect(one) for one in (noise(), str(path), text, "data:image/png;base64," + text)]
    assert all(comparable(output) == comparable(outputs[0]) for output in outputs)


@pytest.mark.parametrize("kind", ["uint16", "int32", "float32"])
def test_image_processor_refuses_more_than_8_bits(kind):
    grey = np.random.default_rng(0).integers(0, 60000, (40, 40)).astype(kind)
    for image in (Image.fromarray(grey), np.stack([grey] * 3, axis=-1)):
        with pytest.raises(ValueError, match="outside the range"):
            PROCESSOR(image, return_tensors="pt")
