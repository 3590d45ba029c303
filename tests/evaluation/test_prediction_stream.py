import threading
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny import tiny_model
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.evaluation.prediction_stream import LoadedImage, UnusableImage, predict_stream
from kgl.pipeline_kgl import DefectDetectionPipeline


@pytest.fixture
def pipeline() -> DefectDetectionPipeline:
    processor = ViTImageProcessorPil(size={"height": 32, "width": 32})
    return DefectDetectionPipeline(tiny_model().eval(), image_processor=processor)


def load(number: int) -> LoadedImage | UnusableImage:
    if number % 5 == 3:
        return UnusableImage(Path(f"{number}.png"), "broken")
    return LoadedImage(str(number), ("0", "0"), Image.new("RGB", (30 + number, 20), (number, 2 * number, 200)))


def finish(loaded: LoadedImage, prediction: dict) -> tuple[str, dict, str]:
    return loaded.name, prediction, threading.current_thread().name


def test_stream_predicts_like_the_pipeline_in_order(pipeline):
    batches = list(predict_stream(pipeline, iter(range(18)), load, finish, batch_size=4, box_threshold=0.3))
    usable = [[one for one in batch if not isinstance(one, UnusableImage)] for batch in batches]
    assert [len(batch) for batch in usable] == [4, 4, 4, 3]
    flat = [one for batch in batches for one in batch]
    names = [one.path.stem if isinstance(one, UnusableImage) else one[0] for one in flat]
    assert names == [str(number) for number in range(18)]
    images = [load(number) for number in range(18) if number % 5 != 3]
    expected = pipeline([one.image for one in images], batch_size=4, box_threshold=0.3)
    found = [prediction for batch in usable for _, prediction, _ in batch]
    for one, other in zip(found, expected, strict=True):
        assert (
            one["heat_map"].tobytes() == other["heat_map"].tobytes() and one["heat_map"].size == other["heat_map"].size
        )
        assert {**one, "heat_map": None} == {**other, "heat_map": None}


def test_images_are_drawn_while_the_next_batch_is_predicted(pipeline, monkeypatch):
    loaded, finished, held, second = [], [], [], threading.Event()
    forward = pipeline.forward

    def count_held(inputs):
        held.append(len(loaded) - len(finished))
        if len(held) == 2:
            second.set()
        return forward(inputs)

    def counted_load(number):
        loaded.append(number)
        return LoadedImage(str(number), ("0", "0"), Image.new("RGB", (32, 32)))

    def counted_finish(one, prediction):
        assert second.wait(20)  # the second forward pass begins before the first batch is drawn
        finished.append(one.name)
        return threading.current_thread()

    monkeypatch.setattr(pipeline, "forward", count_held)
    batches = list(predict_stream(pipeline, iter(range(40)), counted_load, counted_finish, 4, 0.5))
    assert len(finished) == 40 and max(held) <= 3 * 4
    assert {thread for batch in batches for thread in batch} - {threading.main_thread()}


def test_failure_of_a_thread_ends_the_stream(pipeline):
    def fail(loaded, prediction):
        raise OSError("the disk is full")

    started = threading.active_count()
    with pytest.raises(OSError, match="the disk is full"):
        list(predict_stream(pipeline, iter([0, 1, 2]), load, fail, 2, 0.5))
    assert threading.active_count() == started


def test_no_usable_image_gives_no_forward_pass(pipeline, monkeypatch):
    monkeypatch.setattr(pipeline, "forward", lambda inputs: torch.zeros(())[1])
    batches = list(predict_stream(pipeline, iter([3, 8]), load, finish, 2, 0.5))
    assert [[one.reason for one in batch] for batch in batches] == [["broken", "broken"]]
