import pytest
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
    files = [tmp_path / f"{number}.png" for number in range(4)]
    for number, path in enumerate(files):
        Image.new("RGB", (40, 20), (number, 0, 0)).save(path)
    measured = throughput.measure_jobs(pipeline, files, rounds=1)
    assert list(measured) == ["prediction 1", "control 1", "prediction 16", "control 16"]
    assert all(len(one["seconds"]) == 1 and one["seconds"][0] > 0 for one in measured.values())
    stages = throughput.measure_stages(pipeline, files)
    assert list(stages) == ["read and decode", "resize", "forward pass", "heat map and boxes", "overlay"]


def test_rates_are_inverse_times(monkeypatch):
    monkeypatch.setattr(throughput, "BATCH_SIZES", (16,))
    slow, even = {"ratio": 1.25, "quartiles": [1.0, 2.0]}, {"ratio": 1.0, "quartiles": [1.0, 1.0]}
    results = {"boards": {"prediction 16": slow, "priors": even, "control 16": even}}
    assert throughput.rates_table(results).splitlines()[-1] == (
        "| boards | 0.80 (0.50 .. 1.00) | 1.00 (1.00 .. 1.00) | 1.00 (1.00 .. 1.00) |"
    )
    modes = {"bfloat16": slow | {"change": {"class": 0.00461, "heat map": 0.017}}}
    assert throughput.modes_table(modes).splitlines()[-1] == ("| bfloat16 | 0.80 (0.50 .. 1.00) | 4.6e-03 | 1.7e-02 |")
