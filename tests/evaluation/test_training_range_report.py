"""The report's section on the training images: values, table, and runs without them."""

import json

import numpy as np
import pytest
from PIL import Image
from tiny import stages_model
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.data.schema import defect_dataset
from kgl.evaluation.training_range import set_training_range
from kgl.evaluation.training_range_report import read_training_images, write_image_values, write_test_values
from kgl.pipeline_kgl import DefectDetectionPipeline


PROCESSOR = ViTImageProcessorPil(size={"height": 32, "width": 40})


def surfaces(count: int, seed: int, brightness: float):
    generator = np.random.default_rng(seed)
    pixels = generator.normal(brightness, 12, (count, 40, 50)) + generator.uniform(-20, 20, (count, 1, 1))
    images = [Image.fromarray(one.clip(0, 255).astype(np.uint8)) for one in pixels]
    names = [f"{index}.png" for index in range(count)]
    return defect_dataset(images=images, labels=["good"] * count, names=["good", "pit"], file_names=names)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """The file of 30 training and 8 brighter test images, the model, and the test images."""
    path = tmp_path_factory.mktemp("run") / "training_images.json"
    model, train, test = stages_model(), surfaces(30, 0, 100), surfaces(8, 1, 140)
    write_image_values(path, "training", set_training_range(model, train, PROCESSOR, 16))
    write_test_values(path, model, test, PROCESSOR)
    return path, model, test


def test_table_counts_what_the_pipeline_names(written):
    path, model, test = written
    found = read_training_images(path, model.config)
    answers = [
        one["unlike_training"]
        for one in DefectDetectionPipeline(model, image_processor=PROCESSOR)(list(test["image"]))
    ]
    rows = {row[0]: row for row in found.rows}
    assert int(rows["Brightness, grey levels"][3]) == sum("brighter" in one for one in answers) > 0
    assert int(rows["Distance of the features"][3]) == sum("other features" in one for one in answers)
    assert rows["Width, pixels"] == ("Width, pixels", "50 … 50", "50 … 50", "0")
    assert found.outside == sum(map(bool, answers)) and (found.training, found.test) == (30, 8)
    assert found.expected_percent == f"{100 * model.config.training_range['expected_share']:.0f}"
    assert len(found.charts) == 4 and all(chart.src.startswith("data:image/svg") for chart in found.charts)


def test_training_values_are_those_that_chose_the_limits(written):
    path, model, _ = written
    stored = json.loads(path.read_text())["training"]
    for name in ("brightness", "contrast", "detail", "feature_distance"):
        low, high = model.config.training_range[name]
        assert max(stored[name]) == pytest.approx(high, rel=1e-3)
        assert name == "feature_distance" or min(stored[name]) == pytest.approx(low, rel=1e-3)


def test_runs_without_a_range_have_no_section(tmp_path):
    path, one, model = tmp_path / "training_images.json", surfaces(1, 0, 100), stages_model()
    assert set_training_range(model, one, PROCESSOR, 16) is None
    write_test_values(path, model, one, PROCESSOR)
    assert not path.exists() and read_training_images(path, model.config) is None
