"""The export: files, graph against PyTorch, decision, metadata, 8-bit graphs, refusals."""

import json
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import stages_model, tiny_model
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.data.images import to_pixel_values
from kgl.errors import InputError
from kgl.exporters.export import TOLERANCE, ExportResult, export_onnx, load_sample_images
from kgl.exporters.onnx import write_onnx
from kgl.exporters.wrapper import ExportWrapper


onnx = pytest.importorskip("onnx", reason="needs the extra [export]")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra [export]")
pytest.importorskip("onnxscript", reason="needs the extra [export]")


POINT = {"threshold": 0.68, "chosen": "by hand"}  # the tiny model's scores lie on both sides of it
CONFIG = {"operating_point": POINT, "temperature": 0.1, "saliency_threshold": {"threshold": 0.37}}


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> ExportResult:
    """The result of exporting a model to its own folder."""
    folder = tmp_path_factory.mktemp("model")
    tiny_model(**CONFIG).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 48, "width": 40}).save_pretrained(folder)
    return export_onnx(str(folder), folder / "model.onnx")


def session_of(path: Path) -> "onnxruntime.InferenceSession":
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def pytorch_outputs(folder: Path, images: np.ndarray) -> dict[str, np.ndarray]:
    model = tiny_model(**CONFIG)
    image_processor = ViTImageProcessorPil.from_pretrained(folder)
    with torch.no_grad():
        output = model(to_pixel_values([Image.fromarray(image) for image in images], image_processor))
    return {
        "probabilities": output.logits.softmax(dim=1).numpy(),
        "heat_map": output.saliency[:, 0].sigmoid().numpy(),
        "defective": model.decide(output.logits)[1].numpy(),
    }


def test_result_names_the_graph_and_its_difference(exported):
    assert [path.name for path in exported.path.parent.glob("*.onnx*")] == [exported.path.name] == ["model.onnx"]
    assert 0 <= exported.max_difference <= TOLERANCE and exported.compared_images == 3
    assert exported.int8_path is None and exported.int8_loss is None


@pytest.mark.parametrize(
    ("batch", "height", "width"), [(1, 48, 40), (3, 32, 64), (2, 97, 41), (1, 200, 30), (4, 31, 120), (1, 1, 1)]
)
def test_graph_and_pytorch_agree(exported, batch, height, width):
    images = np.stack([noise(height, width, seed) // (seed + 1) for seed in range(batch)])
    session = session_of(exported.path)
    names = [output.name for output in session.get_outputs()]
    assert names == ["probabilities", "heat_map", "defective"]
    outputs = dict(zip(names, session.run(names, {"image": images}), strict=True))
    expected = pytorch_outputs(exported.path.parent, images)
    assert outputs["probabilities"].shape == (batch, 3)
    np.testing.assert_allclose(outputs["probabilities"], expected["probabilities"], atol=1e-5)
    np.testing.assert_allclose(outputs["heat_map"], expected["heat_map"], atol=1e-5)
    np.testing.assert_array_equal(outputs["defective"], expected["defective"])


def test_operating_point_decides(exported):
    images = np.stack([np.full((40, 40, 3), grey, dtype=np.uint8) for grey in range(0, 256, 15)])
    probabilities, defective = session_of(exported.path).run(["probabilities", "defective"], {"image": images})
    np.testing.assert_array_equal(defective, 1 - probabilities[:, 0] >= POINT["threshold"])
    assert 0 < defective.sum() < len(defective)


def test_metadata(exported):
    graph = onnx.load(exported.path)
    entries = {one.key: one.value for one in graph.metadata_props}
    assert json.loads(entries["labels"]) == ["good", "scratch", "pit"]
    assert json.loads(entries["operating_point"]) == POINT
    assert json.loads(entries["size"]) == {"height": 48, "width": 40}
    assert (float(entries["threshold"]), float(entries["temperature"])) == (0.68, 0.1)
    assert float(entries["saliency_threshold"]) == 0.37
    assert (entries["defect_free_label"], entries["kgl_version"]) == ("good", version("kgl-defects"))
    dimensions = [one.dim_param or one.dim_value for one in graph.graph.input[0].type.tensor_type.shape.dim]
    assert dimensions == ["batch", "height", "width", 3]
    assert graph.graph.output[0].type.tensor_type.shape.dim[0].dim_param == "batch"
    assert str(Path(__file__).resolve().parents[2]).encode() not in graph.SerializeToString()


def test_features_of_the_training_images_are_not_in_the_graph(exported):
    graph = onnx.load(exported.path).graph
    names = [one.name for one in (*graph.initializer, *graph.input)]
    assert names and not [name for name in names if "feature_center" in name or "feature_scale" in name]


def test_no_decision_without_defect_free_class(tmp_path):
    model = tiny_model("convnextv2", defect_free_label=None, has_heat_map=False)
    write_onnx(model, ViTImageProcessorPil(size={"height": 32, "width": 32}), tmp_path / "model.onnx")
    session = session_of(tmp_path / "model.onnx")
    assert [output.name for output in session.get_outputs()] == ["probabilities", "heat_map"]
    assert not {"threshold", "operating_point", "saliency_threshold"} & set(
        session.get_modelmeta().custom_metadata_map
    )
    probabilities, heat_map = session.run(["probabilities", "heat_map"], {"image": noise(50, 60)[None]})
    assert heat_map.shape[1:] == (2, 2) and not heat_map.any()  # the head was not trained
    pixel_values = to_pixel_values(
        [Image.fromarray(noise(50, 60))], ViTImageProcessorPil(size={"height": 32, "width": 32})
    )
    with torch.no_grad():
        expected = model(pixel_values).logits.softmax(dim=1)
    np.testing.assert_allclose(probabilities, expected.numpy(), atol=1e-5)


def test_models_that_cannot_be_exported_are_refused(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="must resize bilinearly"):
        ExportWrapper(tiny_model(), ViTImageProcessorPil(resample=3))
    with pytest.raises(InputError, match="must resize bilinearly"):
        ExportWrapper(tiny_model(), ViTImageProcessorPil(do_normalize=False))

    def fail(*args, **kwargs):
        raise torch.onnx.OnnxExporterError("Step 2/3\nNext steps: ...") from ValueError(
            "no such view\nWhile executing"
        )

    monkeypatch.setattr("torch.onnx.export", fail)
    with pytest.raises(InputError, match=r"A model with a resnet backbone cannot be exported: no such view$"):
        write_onnx(tiny_model(), ViTImageProcessorPil(), tmp_path / "model.onnx")


def test_8_bit_graph_and_its_loss(exported, tmp_path, image_folder):
    result = export_onnx(str(exported.path.parent), tmp_path / "line.onnx", image_folder)
    assert result.path.read_bytes() == exported.path.read_bytes()
    assert result.int8_path == tmp_path / "line_int8.onnx"
    assert result.compared_images == 3 + 8 and result.int8_loss.images == 18
    graph = onnx.load(result.int8_path)
    assert [node.op_type for node in graph.graph.node].count("Conv") > 5
    weights = {one.name: one.data_type for one in graph.graph.initializer}
    dequantized = {node.output[0]: node.input[0] for node in graph.graph.node if node.op_type == "DequantizeLinear"}
    for node in graph.graph.node:
        if node.op_type == "Conv":
            assert weights[dequantized[node.input[1]]] == onnx.TensorProto.INT8
    assert {one.key for one in graph.metadata_props} >= {"labels", "operating_point", "threshold"}

    images = np.stack(load_sample_images(image_folder, 4))
    exact, quantized = (session_of(path).run(None, {"image": images})[0] for path in (result.path, result.int8_path))
    largest = np.abs(exact - quantized).max()
    assert 0 < largest < 0.2 and result.int8_loss.max_difference >= largest - 1e-4
    assert result.int8_loss.mean_difference <= result.int8_loss.max_difference


def test_equal_file_is_kept_and_another_refused(exported, tmp_path, monkeypatch):
    graph = exported.path.read_bytes()
    monkeypatch.setattr("kgl.exporters.export.write_onnx", lambda model, processor, path: path.write_bytes(graph))
    folder = exported.path.parent
    assert export_onnx(str(folder), exported.path) == exported
    (tmp_path / "other.onnx").write_bytes(b"of another")
    with pytest.raises(InputError, match=r"other\.onnx exists already and holds another graph"):
        export_onnx(str(folder), tmp_path / "other.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["other.onnx"]
    assert (tmp_path / "other.onnx").read_bytes() == b"of another"


def test_graph_that_disagrees_is_not_written(exported, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "kgl.exporters.wrapper.resize_as_pillow",
        lambda images, size: torch.nn.functional.interpolate(images.float(), size, mode="bilinear"),
    )
    with pytest.raises(InputError, match="outputs differ from PyTorch's by"):
        export_onnx(str(exported.path.parent), tmp_path / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_sample_images_are_upright_rgb_and_evenly_spaced(image_folder):
    images = load_sample_images(image_folder, 4)
    assert len(images) == 4 and all(image.shape == (40, 48, 3) and image.dtype == np.uint8 for image in images)
    assert len(load_sample_images(image_folder, 100)) == 18


def test_folders_without_usable_images_are_refused(tmp_path):
    with pytest.raises(InputError, match="there are no images below it"):
        load_sample_images(tmp_path, 3)
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"broken\.png cannot be used"):
        load_sample_images(tmp_path, 3)


@pytest.mark.parametrize("name", ["onnx", "onnxruntime", "onnxscript"])
def test_missing_extra_is_refused(exported, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, name, None)  # importing it fails
    with pytest.raises(InputError, match=f"{name} is not installed; run: pip install"):
        export_onnx(str(exported.path.parent), tmp_path / "model.onnx")


@pytest.mark.parametrize("tuned_stage", [False, True])
def test_graph_of_the_head_of_stages(tuned_stage, tmp_path):
    model, processor = stages_model(tuned_stage=tuned_stage), ViTImageProcessorPil(size={"height": 64, "width": 96})
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    result = export_onnx(str(tmp_path), tmp_path / "model.onnx")
    assert result.max_difference <= TOLERANCE
    images = np.stack([noise(50, 120, seed) for seed in range(2)])
    probabilities, heat_map = session_of(result.path).run(["probabilities", "heat_map"], {"image": images})
    with torch.no_grad():
        output = model(to_pixel_values([Image.fromarray(image) for image in images], processor))
    assert heat_map.shape == (2, 8, 12)
    np.testing.assert_allclose(probabilities, output.logits.softmax(dim=1).numpy(), atol=1e-4)
    np.testing.assert_allclose(heat_map, output.saliency[:, 0].sigmoid().numpy(), atol=1e-4)
