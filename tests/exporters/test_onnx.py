"""The exported graph does what PyTorch does, image in, decision out."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_model
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.cli.export import ExportArguments, load_sample_images, main, run
from kgl.data.images import to_pixel_values
from kgl.errors import InputError
from kgl.exporters.onnx import write_onnx
from kgl.exporters.resize import resize_as_pillow
from kgl.exporters.wrapper import ExportWrapper


onnx = pytest.importorskip("onnx", reason="needs the extra [export]")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra [export]")
pytest.importorskip("onnxscript", reason="needs the extra [export]")

POINT = {"threshold": 0.68, "chosen": "by hand"}  # the tiny model's scores lie on both sides of it


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model's folder with its graph in it."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model(operating_point=POINT, temperature=0.1).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 48, "width": 40}).save_pretrained(folder)
    run(ExportArguments(model=str(folder)))
    return folder


def session_of(path: Path) -> "onnxruntime.InferenceSession":
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def answers_of_pytorch(folder: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    model = tiny_model(operating_point=POINT, temperature=0.1)
    image_processor = ViTImageProcessorPil.from_pretrained(folder)
    with torch.no_grad():
        output = model(to_pixel_values([Image.fromarray(image) for image in images], image_processor))
    return {
        "probabilities": output.logits.softmax(dim=1).numpy(),
        "heat_map": output.saliency[:, 0].sigmoid().numpy(),
        "defective": model.decide(output.logits)[1].numpy(),
    }


def test_resize_is_pillows_to_the_grey_level():
    generator = np.random.default_rng(0)
    sizes = [tuple(int(side) for side in generator.integers(1, 100, 4)) for _ in range(60)]
    sizes += [(6 * 7, 3 * 9, 7, 9), (20, 20, 20, 20), (20, 50, 20, 33), (50, 20, 33, 20)]  # ties, and sides that stay
    sizes += [(300, 211, 33, 17), (2, 3, 150, 90)]  # far fewer, far more
    sizes += [(50 + 2 * 9 + more, 29, 50, 20) for more in (-1, 0, 1)]  # where Pillow turns the order of its passes
    for height, width, new_height, new_width in sizes:
        image = noise(height, width)
        expected = np.asarray(Image.fromarray(image).resize((new_width, new_height), Image.Resampling.BILINEAR))
        resized = resize_as_pillow(torch.from_numpy(image).permute(2, 0, 1)[None], (new_height, new_width))
        np.testing.assert_array_equal(
            resized[0].permute(1, 2, 0).numpy(), expected, err_msg=f"{height} {width} {new_height} {new_width}"
        )


@pytest.mark.parametrize(
    ("batch", "height", "width"), [(1, 48, 40), (3, 32, 64), (2, 97, 41), (1, 200, 30), (4, 31, 120), (1, 1, 1)]
)
def test_graph_and_pytorch_agree(exported, batch, height, width):
    images = np.stack([noise(height, width, seed) // (seed + 1) for seed in range(batch)])
    session = session_of(exported / "model.onnx")
    names = [output.name for output in session.get_outputs()]
    assert names == ["probabilities", "heat_map", "defective"]
    answers = dict(zip(names, session.run(names, {"image": images}), strict=True))
    expected = answers_of_pytorch(exported, images)
    assert answers["probabilities"].shape == (batch, 3)
    np.testing.assert_allclose(answers["probabilities"], expected["probabilities"], atol=1e-5)
    np.testing.assert_allclose(answers["heat_map"], expected["heat_map"], atol=1e-5)
    np.testing.assert_array_equal(answers["defective"], expected["defective"])


def test_decisions_are_those_of_the_operating_point(exported):
    images = np.stack([np.full((40, 40, 3), grey, dtype=np.uint8) for grey in range(0, 256, 15)])
    probabilities, defective = session_of(exported / "model.onnx").run(
        ["probabilities", "defective"], {"image": images}
    )
    np.testing.assert_array_equal(defective, 1 - probabilities[:, 0] >= POINT["threshold"])
    assert 0 < defective.sum() < len(defective)


def test_metadata_says_what_the_graph_needs_said(exported):
    graph = onnx.load(exported / "model.onnx")
    said = {one.key: one.value for one in graph.metadata_props}
    assert json.loads(said["labels"]) == ["good", "scratch", "pit"]
    assert json.loads(said["operating_point"]) == POINT
    assert json.loads(said["size"]) == {"height": 48, "width": 40}
    assert (float(said["threshold"]), float(said["temperature"])) == (0.68, 0.1)
    assert (said["defect_free_label"], said["kgl_version"]) == ("good", "0.1.0")
    dimensions = [one.dim_param or one.dim_value for one in graph.graph.input[0].type.tensor_type.shape.dim]
    assert dimensions == ["batch", "height", "width", 3]
    assert graph.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert str(Path(__file__).resolve().parents[2]).encode() not in graph.SerializeToString()


def test_without_a_defect_free_class_there_is_no_decision(tmp_path):
    model = tiny_model("convnextv2", defect_free_label=None)
    write_onnx(model, ViTImageProcessorPil(size={"height": 32, "width": 32}), tmp_path / "model.onnx")
    session = session_of(tmp_path / "model.onnx")
    assert [output.name for output in session.get_outputs()] == ["probabilities", "heat_map"]
    assert not {"threshold", "operating_point"} & set(session.get_modelmeta().custom_metadata_map)
    probabilities = session.run(["probabilities"], {"image": noise(50, 60)[None]})[0]
    pixel_values = to_pixel_values(
        [Image.fromarray(noise(50, 60))], ViTImageProcessorPil(size={"height": 32, "width": 32})
    )
    with torch.no_grad():
        expected = model(pixel_values).logits.softmax(dim=1)
    np.testing.assert_allclose(probabilities, expected.numpy(), atol=1e-5)


def test_a_graph_in_8_bits_and_its_loss(exported, tmp_path, image_folder, capsys):
    output = tmp_path / "line.onnx"
    run(ExportArguments(model=str(exported), output=str(output), int8=str(image_folder)))
    assert output.read_bytes() == (exported / "model.onnx").read_bytes()
    said = capsys.readouterr().out
    assert "line_int8.onnx: probabilities differ" in said and "on the 18 calibration images" in said
    graph = onnx.load(tmp_path / "line_int8.onnx")
    kinds = [node.op_type for node in graph.graph.node]
    assert kinds.count("Conv") > 5
    weights = {one.name: one.data_type for one in graph.graph.initializer}
    dequantised = {node.output[0]: node.input[0] for node in graph.graph.node if node.op_type == "DequantizeLinear"}
    for node in graph.graph.node:
        if node.op_type == "Conv":
            assert weights[dequantised[node.input[1]]] == onnx.TensorProto.INT8
    images = np.stack(load_sample_images(image_folder, 4))
    exact, coarse = (session_of(path).run(None, {"image": images})[0] for path in tmp_path.glob("line*.onnx"))
    largest = np.abs(exact - coarse).max()
    assert 0 < largest < 0.2
    assert float(said.split(" on average and ")[1].split()[0]) >= largest - 1e-4
    assert {one.key for one in graph.metadata_props} >= {"labels", "operating_point", "threshold"}


def test_the_same_graph_may_be_there_but_no_other(exported, tmp_path, monkeypatch, capsys):
    graph = (exported / "model.onnx").read_bytes()
    monkeypatch.setattr("kgl.cli.export.write_onnx", lambda model, image_processor, path: path.write_bytes(graph))
    monkeypatch.setattr(sys, "argv", ["kgl-export", str(exported), "--format", "onnx"])
    main()
    assert "differs from PyTorch by" in capsys.readouterr().out
    (tmp_path / "other.onnx").write_bytes(b"of another")
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--output", str(tmp_path / "other.onnx")])
    with pytest.raises(SystemExit, match="2"):
        main()
    assert "other.onnx: it exists already and holds another graph" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["other.onnx"]
    assert (tmp_path / "other.onnx").read_bytes() == b"of another"


def test_a_graph_that_disagrees_is_not_written(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "kgl.exporters.wrapper.resize_as_pillow",
        lambda images, size: torch.nn.functional.interpolate(images.float(), size, mode="bilinear"),
    )
    with pytest.raises(InputError, match="answers differ from PyTorch's by"):
        run(ExportArguments(model=str(exported), output=str(tmp_path / "model.onnx")))
    assert not list(tmp_path.iterdir())


def test_bad_settings_are_named(tmp_path):
    for settings, message in (
        ({"model": str(tmp_path), "format": "tflite"}, "--format tflite: choose one of onnx"),
        ({"model": str(tmp_path), "output": "graph.pb"}, r"--output graph\.pb: its name must end in \.onnx"),
        ({"model": "OWNER/NAME"}, "--model OWNER/NAME: it is no folder here; say where"),
        ({"model": str(tmp_path), "output": "nowhere/m.onnx"}, "--output nowhere/m.onnx: there is no such folder"),
        ({"model": str(tmp_path), "int8": "nowhere"}, "--int8 nowhere: there is no such folder"),
    ):
        with pytest.raises(InputError, match=message):
            ExportArguments(**settings)
    with pytest.raises(InputError, match="there are no images below it"):
        load_sample_images(tmp_path, 3)
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"broken\.png cannot be used"):
        load_sample_images(tmp_path, 3)


def test_what_cannot_be_exported_is_said(tmp_path, monkeypatch):
    several = tiny_model(problem_type="multi_label_classification")
    with pytest.raises(InputError, match="multi_label_classification"):
        ExportWrapper(several, ViTImageProcessorPil())
    with pytest.raises(InputError, match="does not resize bilinearly"):
        ExportWrapper(tiny_model(), ViTImageProcessorPil(resample=3))
    with pytest.raises(InputError, match="does not resize bilinearly"):
        ExportWrapper(tiny_model(), ViTImageProcessorPil(do_normalize=False))

    def fail(*args, **kwargs):
        raise torch.onnx.OnnxExporterError("Step 2/3\nNext steps: ...") from ValueError(
            "no such view\nWhile executing"
        )

    monkeypatch.setattr("torch.onnx.export", fail)
    with pytest.raises(InputError, match=r"A model with a resnet backbone cannot be exported: no such view$"):
        write_onnx(tiny_model(), ViTImageProcessorPil(), tmp_path / "model.onnx")


def test_a_missing_extra_is_one_sentence(exported):
    script = (
        "import sys\n"
        "from kgl.cli.export import main\n"
        f"sys.argv = ['kgl-export', {str(exported)!r}]\n"
        "for name in ('onnx', 'onnxruntime', 'onnxscript'):\n"
        "    sys.modules[name] = None\n"
        "    try:\n"
        "        main()\n"
        "    except SystemExit as stop:\n"
        "        assert stop.code == 2\n"
        "    sys.modules.pop(name)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stderr.splitlines() == [
        f'kgl-export: error: {name} is not installed; run: pip install -e ".[export]"'
        for name in ("onnx", "onnxruntime", "onnxscript")
    ]
