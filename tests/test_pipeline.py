"""The pipeline that travels with the weights: what it says of an image, and that strangers can use it."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_model
from transformers import pipeline
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.modeling_kgl import KGLForImageClassification
from kgl.pipeline_kgl import DefectDetectionPipeline, hot_boxes


PROCESSOR = ViTImageProcessorPil(size={"height": 48, "width": 32})
EXIF_ORIENTATION = 0x0112


def detector(**config_kwargs) -> DefectDetectionPipeline:
    return DefectDetectionPipeline(tiny_model(**config_kwargs), image_processor=PROCESSOR)


def noise(width: int = 50, height: int = 70, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def comparable(said: dict) -> dict:
    return said | {"heat_map": np.asarray(said["heat_map"]).tolist()}


def test_boxes_of_a_map():
    heat = np.zeros((7, 12), dtype=np.float32)
    heat[0:2, 0:3] = 0.6
    heat[2, 3] = 0.7  # touches it at a corner
    heat[1:5, 6] = 0.8  # a U: one region, though its arms meet last
    heat[1:5, 9] = 0.9
    heat[5, 6:10] = 0.5
    heat[6, 11] = 0.4
    first, second = (
        {"xmin": 6, "ymin": 1, "xmax": 10, "ymax": 6, "score": pytest.approx(0.9)},
        {"xmin": 0, "ymin": 0, "xmax": 4, "ymax": 3, "score": pytest.approx(0.7)},
    )
    assert hot_boxes(heat, 0.5) == [first, second]
    assert hot_boxes(heat, 0.65) == [
        {"xmin": 9, "ymin": 1, "xmax": 10, "ymax": 5, "score": pytest.approx(0.9)},
        {"xmin": 6, "ymin": 1, "xmax": 7, "ymax": 5, "score": pytest.approx(0.8)},
        {"xmin": 3, "ymin": 2, "xmax": 4, "ymax": 3, "score": pytest.approx(0.7)},
    ]
    assert hot_boxes(heat, 0.95) == []
    assert [(box["xmax"], box["ymax"]) for box in hot_boxes(heat, 0)] == [(12, 7)]


def test_boxes_are_those_of_scipy_s_labels():
    from scipy.ndimage import find_objects, label

    for seed in range(20):
        generator = np.random.default_rng(seed)
        heat = generator.random(generator.integers(1, 30, 2))
        regions, _ = label(heat >= 0.6, structure=np.ones((3, 3)))
        expected = {
            (columns.start, rows.start, columns.stop, rows.stop, heat[regions == index].max())
            for index, (rows, columns) in enumerate(find_objects(regions), 1)
        }
        boxes = hot_boxes(heat, 0.6)
        assert {tuple(box.values()) for box in boxes} == expected and len(boxes) == len(expected)


def test_what_is_said_of_a_image():
    model = tiny_model()
    pipe, image = DefectDetectionPipeline(model, image_processor=PROCESSOR), noise()
    with torch.no_grad():
        output = model(PROCESSOR(image, return_tensors="pt")["pixel_values"])
    probabilities = output.logits.softmax(dim=1)[0].tolist()
    said = pipe(image)
    assert said["scores"] == pytest.approx(dict(zip(("good", "scratch", "pit"), probabilities, strict=True)))
    assert said["score"] == max(said["scores"].values()) == said["scores"][said["label"]]
    assert said["defect_score"] == pytest.approx(1 - probabilities[0])
    assert said["defective"] is (said["defect_score"] >= 0.5)
    assert said["heat_map"].mode == "L" and said["heat_map"].size == image.size
    heat = torch.nn.functional.interpolate(output.saliency.sigmoid(), (70, 50), mode="bilinear")[0, 0].numpy()
    assert np.abs(np.asarray(said["heat_map"]) / 255 - heat).max() <= 0.5 / 255 + 1e-6
    threshold = float(np.median(heat))
    assert pipe(image, box_threshold=threshold)["boxes"] == hot_boxes(heat, threshold)
    threshold_of_the_pipeline = DefectDetectionPipeline(model, image_processor=PROCESSOR, box_threshold=threshold)
    assert threshold_of_the_pipeline(image)["boxes"] == hot_boxes(heat, threshold)
    with pytest.raises(ValueError, match="box_threshold=2"):
        pipe(image, box_threshold=2)


def test_the_stored_operating_point_decides():
    score = detector()(noise())["defect_score"]
    for threshold, defective in ((score - 1e-3, True), (score + 1e-3, False)):
        assert detector(operating_point={"threshold": threshold})(noise())["defective"] is defective
    said = detector(defect_free_label=None)(noise())
    assert said["defect_score"] is None and said["defective"] is None


def test_every_label_has_its_own_probability_where_several_may_hold():
    said = detector(problem_type="multi_label_classification", defect_free_label=None)(noise())
    logits = tiny_model()(PROCESSOR(noise(), return_tensors="pt")["pixel_values"]).logits
    assert list(said["scores"].values()) == pytest.approx(logits.sigmoid()[0].tolist())


def test_batches_paths_and_images_give_the_same(tmp_path):
    pipe = detector()
    images = [noise(50, 70, 0), noise(40, 30, 1), noise(64, 64, 2)]
    paths = [str(tmp_path / f"{index}.png") for index in range(3)]
    for image, path in zip(images, paths, strict=True):
        image.save(path)
    single = [comparable(pipe(image)) for image in images]
    assert [comparable(pipe(path)) for path in paths] == single
    assert [comparable(said) for said in pipe(paths)] == single
    for batch_size in (2, 3):
        for said, one in zip(pipe(images, batch_size=batch_size), single, strict=True):
            assert said["scores"] == pytest.approx(one["scores"], abs=1e-6)
            assert said["label"] == one["label"] and said["defective"] == one["defective"]
            assert said["heat_map"].size == (len(one["heat_map"][0]), len(one["heat_map"]))
            difference = np.asarray(said["heat_map"]).astype(int) - np.asarray(one["heat_map"])
            assert np.abs(difference).max() <= 1


def test_a_image_turned_by_its_exif_tag_is_looked_at_upright(tmp_path):
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


def test_the_task_is_known_where_kgl_is():
    pipe = pipeline("defect-detection", model=tiny_model(), image_processor=PROCESSOR)
    assert isinstance(pipe, DefectDetectionPipeline)


IN_A_STRANGER_S_PROCESS = """
import json, sys
for missing in ("kgl", "scipy", "skimage", "sklearn", "matplotlib", "datasets"):
    sys.modules[missing] = None  # importing it fails from here on
import torch
from transformers import pipeline

folder, again = sys.argv[1:]
torch.set_num_threads(1)
ordinary = pipeline("image-classification", model=folder, trust_remote_code=True)(folder + "/image.png")
detector = pipeline("defect-detection", model=folder, trust_remote_code=True)
assert type(pipeline(model=folder, trust_remote_code=True)) is type(detector)  # the task need not be named
said = detector(folder + "/image.png", box_threshold=0.1)
detector.model.save_pretrained(again + "/model")
detector.image_processor.save_pretrained(again + "/model")
detector.save_pretrained(again + "/pipeline")
for saved in (again + "/model", again + "/pipeline"):
    from_there = pipeline("defect-detection", model=saved, trust_remote_code=True)
    assert from_there(folder + "/image.png", box_threshold=0.1) == said
said["heat_map"] = list(said["heat_map"].tobytes())
print(json.dumps({"ordinary": ordinary, "detector": said}))
"""


def test_it_travels_with_the_weights(tmp_path, auto_image_processor):
    folder = tmp_path / "model"
    model = tiny_model()
    model.save_pretrained(folder)
    PROCESSOR.save_pretrained(folder)
    noise().save(folder / "image.png")
    process = subprocess.run(
        [sys.executable, "-c", IN_A_STRANGER_S_PROCESS, str(folder), str(tmp_path / "again")],
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert "registered" not in process.stderr and "not supported" not in process.stderr
    stranger = json.loads(process.stdout)
    here = DefectDetectionPipeline(model, image_processor=PROCESSOR)(noise(), box_threshold=0.1)
    here["heat_map"] = list(here["heat_map"].tobytes())
    assert stranger["detector"] == here and here["boxes"]
    ordinary = {one["label"]: one["score"] for one in stranger["ordinary"]}
    assert stranger["detector"]["scores"] == pytest.approx(ordinary, abs=1e-7)
    assert (stranger["detector"]["label"], stranger["detector"]["score"]) == (
        stranger["ordinary"][0]["label"], pytest.approx(stranger["ordinary"][0]["score"]),
    )  # fmt: skip
    KGLForImageClassification.from_pretrained(tmp_path / "again" / "pipeline")  # and back with kgl
