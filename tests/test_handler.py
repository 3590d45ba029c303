"""The handler of Inference Endpoints: requests, limits, errors, and loading from a model's folder without kgl."""

import json
import os
import subprocess
import sys
from base64 import b64decode, b64encode, encodebytes
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from few_packages import link_packages
from PIL import Image
from space_server import encode, make_png, noise, save_model

import quotas
from kgl import handler
from kgl.handler import EndpointHandler
from kgl.pipeline_kgl import DefectDetectionPipeline


EXIF_ORIENTATION = 0x0112


def base64_of(raw: bytes) -> str:
    return b64encode(raw).decode()


def request(*raw: bytes) -> dict:
    return {"inputs": [base64_of(one) for one in raw]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model's folder, as a run writes it."""
    return save_model(tmp_path_factory.mktemp("handler") / "model")


@pytest.fixture(scope="module")
def endpoint(folder) -> EndpointHandler:
    try:
        return EndpointHandler(str(folder))
    except ImportError:
        pytest.skip("this transformers needs torchvision for AutoImageProcessor")


def png_pixels(text: str) -> np.ndarray:
    image = Image.open(BytesIO(b64decode(text)))
    assert image.format == "PNG" and image.mode == "L"
    return np.asarray(image)


def assert_equal_up_to_rounding(answer: dict, other: dict) -> None:
    """Batches of other sizes round otherwise."""
    assert answer.keys() == other.keys()
    assert answer["scores"] == pytest.approx(other["scores"], abs=1e-6)
    assert answer["defect_score"] == pytest.approx(other["defect_score"], abs=1e-6)
    assert (answer["label"], answer["decision"]) == (other["label"], other["decision"])
    assert [box["xmin"] for box in answer["boxes"]] == [box["xmin"] for box in other["boxes"]]
    difference = png_pixels(answer["heat_map"]).astype(int) - png_pixels(other["heat_map"])
    assert np.abs(difference).max() <= 1


def test_answer_is_the_pipelines_as_json(endpoint):
    image = noise(50, 70)
    answer = endpoint({"inputs": base64_of(encode(image)), "parameters": {"box_threshold": 0.1}})
    assert json.loads(json.dumps(answer)) == answer
    expected = DefectDetectionPipeline(endpoint.pipeline.model, image_processor=endpoint.pipeline.image_processor)(
        image, box_threshold=0.1
    )
    assert answer["boxes"] and np.array_equal(png_pixels(answer["heat_map"]), np.asarray(expected["heat_map"]))
    assert answer == expected | {"heat_map": answer["heat_map"]}


def test_answer_names_images_unlike_the_training_ones(tmp_path, endpoint):
    assert endpoint({"inputs": base64_of(encode(noise()))})["unlike_training"] is None  # the model does not know
    limits = {name: [0.0, 1e6] for name in ("brightness", "contrast", "detail", "feature_distance", "width", "height")}
    training_range = limits | {"brightness": [254.0, 255.0], "images": 9, "groups": 9, "expected_share": 0.7}
    knowing = EndpointHandler(str(save_model(tmp_path / "model", training_range=training_range)))
    answer = knowing({"inputs": base64_of(encode(noise()))})
    assert json.loads(json.dumps(answer))["unlike_training"] == ["darker"]


def test_every_kind_of_input_has_the_same_answer(endpoint):
    raw = encode(noise())
    text = base64_of(raw)
    answer = endpoint({"inputs": text})
    as_the_server_opens_it = Image.open(BytesIO(raw)).convert("RGB")
    for same in (raw, "data:image/png;base64," + text, encodebytes(raw).decode(), as_the_server_opens_it):
        assert endpoint({"inputs": same}) == answer
    assert endpoint({"inputs": [text]}) == [answer]
    assert endpoint({"inputs": text, "parameters": None}) == answer


@pytest.mark.parametrize("format", handler.FORMATS)
def test_every_format_is_read(endpoint, format):
    assert endpoint({"inputs": encode(noise(), format)})["label"] in endpoint.pipeline.model.config.label2id


def test_batches_equal_singles(endpoint):
    count = handler.BATCH_SIZE + 2
    files = [encode(noise(30 + 3 * index, 40, seed=index)) for index in range(count)]
    answers = endpoint(request(*files))
    assert len(answers) == count
    for answer, file in zip(answers, files, strict=True):
        assert_equal_up_to_rounding(answer, endpoint({"inputs": base64_of(file)}))


def test_images_are_upright_however_they_come(endpoint):
    exif = Image.Exif()
    exif[EXIF_ORIENTATION] = 6  # to be turned by 90 degrees clockwise
    turned = encode(noise(60, 40).transpose(Image.Transpose.ROTATE_90), exif=exif)
    answer = endpoint({"inputs": encode(noise(60, 40))})
    assert endpoint({"inputs": turned}) == answer
    assert endpoint({"inputs": Image.open(BytesIO(turned)).convert("RGB")}) == answer  # as the server opens it


def test_box_threshold_of_an_address_is_text(endpoint):
    text = base64_of(encode(noise()))
    for value in ("0", "0.1", 0, 0.1, 1):
        answer = endpoint({"inputs": text, "parameters": {"box_threshold": value}})
        assert answer["boxes"] == endpoint.pipeline(noise(), box_threshold=float(value))["boxes"]


SIXTEEN_BITS = make_png(16, 16, bits=16, pixels=bytes(16 * (1 + 16 * 6)))  # Pillow opens it as 8


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", r"the file is not a readable image; use one of PNG, JPEG, BMP, TIFF, WEBP\."),
        (encode(noise(), "GIF"), r"the file is not a readable image; use one of PNG, JPEG, BMP, TIFF, WEBP\."),
        (encode(noise())[:900], r"the file is damaged; save it again\."),
        (make_png(30_000, 30_000), r"the image has more than 50 million pixels; resize or crop it\."),
        (make_png(8_000, 8_000), r"the image has more than 50 million pixels; resize or crop it\."),
        (SIXTEEN_BITS, r"the image has more than 8 bits per channel; convert it to 8\."),
        (
            encode(Image.fromarray(np.zeros((16, 16), dtype=np.uint16))),
            r"the image has more than 8 bits per channel; convert it to 8\.",
        ),
        (bytes(handler.MAX_FILE_BYTES + 1), r"the file is larger than 20 MB; compress or crop it\."),
    ],
    ids=["empty", "gif", "cut off", "bomb", "too many pixels", "16-bit colours", "16-bit grey", "too many bytes"],
)
def test_unusable_images_are_refused_by_place(endpoint, raw, message):
    with pytest.raises(ValueError, match=rf"^inputs: {message}$"):
        endpoint({"inputs": base64_of(raw)})
    with pytest.raises(ValueError, match=rf"^inputs\[1\]: {message}$"):
        endpoint(request(encode(noise()), raw))


def test_images_that_the_server_opened_have_limits_too(endpoint, monkeypatch):
    with pytest.raises(ValueError, match=r"^inputs: the image has more than 8 bits per channel; convert it to 8\.$"):
        endpoint({"inputs": Image.fromarray(np.zeros((16, 16), dtype=np.uint16))})
    monkeypatch.setattr(handler, "MAX_IMAGE_PIXELS", 60 * 40 - 1)
    with pytest.raises(ValueError, match=r"^inputs: the image has more than 0 million pixels; resize or crop it\.$"):
        endpoint({"inputs": noise(60, 40)})


def test_headers_of_all_images_are_checked_before_one_is_decoded(endpoint, monkeypatch):
    data = request(encode(noise()), make_png(8_000, 8_000))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(ValueError, match=r"^inputs\[1\]: .* million pixels"):
        endpoint(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "inputs: NoneType in place of an image; send the file as base64 text."),
        ({"inputs": []}, "inputs: 0 images; send 1 to 32 in one request."),
        ({"inputs": ["x"] * 33}, "inputs: 33 images; send 1 to 32 in one request."),
        ({"inputs": [["x"]]}, "inputs[0]: list in place of an image; send the file as base64 text."),
        ({"inputs": {"image": "x"}}, "inputs: dict in place of an image; send the file as base64 text."),
        ({"inputs": "x", "box_threshold": 0.7},
         "the request: 'box_threshold' is unknown; leave it out, known is inputs and parameters."),
        ({"inputs": "x", "parameters": {"timeout": 1}},
         "parameters: 'timeout' is unknown; leave it out, known is box_threshold."),
        ({"inputs": "x", "parameters": [1]},
         "parameters: list in place of an object; send box_threshold by name."),
        (["x"], "the request: list in place of an object; send inputs and parameters by name."),
        *(({"inputs": "x", "parameters": {"box_threshold": value}},
           f"parameters: box_threshold is {value!r}; it must be a number in 0..1.")
          for value in (1.5, -1, "high", True, [0.5], float("nan"))),
    ],
)  # fmt: skip
def test_unusable_requests_are_refused_in_one_sentence(endpoint, data, message):
    with pytest.raises(ValueError) as refused:
        endpoint(data)
    assert str(refused.value) == message


@pytest.mark.parametrize("where", ["path", "address", "file address"])
def test_no_path_or_address_is_read(endpoint, where, tmp_path):
    (tmp_path / "a.png").write_bytes(encode(noise()))
    path = str(tmp_path / "a.png")
    text = {"path": path, "address": "http://127.0.0.1:9/a.png", "file address": f"file://{path}"}[where]
    with pytest.raises(ValueError, match=r"^inputs: the text is not base64; encode the image file \(paths and "):
        endpoint({"inputs": text})


def test_limits_are_those_of_the_space():
    for name in ("MAX_IMAGES_PER_REQUEST", "MAX_FILE_BYTES", "MAX_IMAGE_PIXELS"):
        assert getattr(handler, name) == getattr(quotas, name)


def test_weights_are_never_read_from_a_pickle(tmp_path):
    folder = save_model(tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no file named model\.safetensors"):
        EndpointHandler(str(folder))


SERVER = """
import importlib.util, json, sys
assert not any(map(importlib.util.find_spec, ("kgl", "datasets", "accelerate", "scipy", "skimage", "sklearn")))
import torch
torch.set_num_threads(1)
folder, again, given = sys.argv[1:]

def load(folder):  # as huggingface-inference-toolkit does
    spec = importlib.util.spec_from_file_location("handler.EndpointHandler", folder + "/handler.py")
    sys.path.insert(0, folder)
    sys.modules["handler.EndpointHandler"] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.EndpointHandler

data = json.loads(sys.stdin.read())
handler = load(folder)(folder if given == "path" else "")
answers = handler(data)
handler.pipeline.model.save_pretrained(again)
handler.pipeline.image_processor.save_pretrained(again)
assert load(again)(again)(data) == answers
try:
    handler({"inputs": "part.png"})
except ValueError as error:
    assert str(error).startswith("inputs: the text is not base64"), error
else:
    raise AssertionError("read a path")
print(json.dumps(answers))
"""


@pytest.mark.parametrize("given", ["path", "no path"])
def test_handler_of_a_saved_model_needs_few_packages_and_no_kgl(folder, endpoint, tmp_path, given):
    (tmp_path / "packages").mkdir()
    packages = link_packages(("torch", "transformers", "safetensors", "pillow", "numpy"), tmp_path / "packages")
    data = request(encode(noise(50, 70)), encode(noise(40, 30), "JPEG")) | {"parameters": {"box_threshold": 0.1}}
    process = subprocess.run(
        [sys.executable, "-S", "-c", SERVER, str(folder), str(tmp_path / "again"), given],
        capture_output=True, text=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(packages)},
        input=json.dumps(data),
    )  # fmt: skip
    assert process.returncode == 0, process.stderr
    assert json.loads(process.stdout) == endpoint(data)


def test_handler_file_is_the_modules(folder):
    assert (folder / "handler.py").read_bytes() == Path(handler.__file__).read_bytes()
