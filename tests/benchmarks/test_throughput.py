import datasets
import pytest
from datasets import ClassLabel, Dataset, Features, Value
from PIL import Image
from tiny import tiny_model
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.benchmarks import throughput
from kgl.pipeline_kgl import DefectDetectionPipeline


@pytest.fixture
def pipeline() -> DefectDetectionPipeline:
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    return DefectDetectionPipeline(tiny_model().eval(), image_processor=processor)


def test_every_job_and_step_is_measured(tmp_path, pipeline, monkeypatch):
    monkeypatch.setattr(throughput, "BATCH_SIZES", (1, 16))
    monkeypatch.setattr(throughput, "BATCHES", 2)
    files = [tmp_path / f"{number}.png" for number in range(4)]
    for number, path in enumerate(files):
        Image.new("RGB", (40, 20), (number, 0, 0)).save(path)
    measured = throughput.measure_jobs(pipeline, files, count=12, rounds=1)
    assert list(measured) == [f"{job} {size}" for size in (1, 16) for job in ("prediction", "busy")] + ["control"]
    images = Dataset.from_dict(
        {"image": [str(path) for path in files] * 8, "label": [0, 1] * 16, "digest": [str(one) for one in range(32)]},
        features=Features(
            image=datasets.Image(), label=ClassLabel(names=["good", "scratch", "pit"]), digest=Value("string")
        ),
    )
    measured["priors"], measured["maps"] = throughput.measure_priors(pipeline, images, rounds=1)
    measured["steps"], measured["epoch"] = throughput.measure_training(pipeline, images, rounds=1)
    assert all(len(one["seconds"]) == 1 and one["seconds"][0] > 0 for one in measured.values())
    stages = throughput.measure_stages(pipeline, files)
    assert list(stages) == ["read and decode", "resize", "forward pass", "heat map and boxes", "overlay"]


def test_rates_are_inverse_times(monkeypatch):
    monkeypatch.setattr(throughput, "BATCH_SIZES", (16,))
    slow, even = {"ratio": 1.25, "quartiles": [1.0, 2.0]}, {"ratio": 1.0, "quartiles": [1.0, 1.0]}
    results = {"boards": {"prediction 16": slow, "busy 16": even}}
    assert throughput.rates_table(results).splitlines()[2:] == [
        "| boards | 0.80 (0.50 .. 1.00) |",
        "| forward passes beside a busy thread | 1.00 (1.00 .. 1.00) |",
    ]
    results = {"boards": {"control": slow, "priors": slow, "maps": even, "steps": even, "epoch": even}}
    assert (
        throughput.passes_table(results)
        .splitlines()[2]
        .startswith("| boards | 0.80 (0.50 .. 1.00) | 0.80 (0.50 .. 1.00) | 1.00 (1.00")
    )
    modes = {"bfloat16": slow | {"change": {"class": 0.00461, "heat map": 0.017}}}
    assert throughput.modes_table(modes).splitlines()[-1] == ("| bfloat16 | 0.80 (0.50 .. 1.00) | 4.6e-03 | 1.7e-02 |")
