"""Another operating point in exported graphs."""

import json
from pathlib import Path

import numpy as np
import pytest
from tiny import tiny_model
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.data.storage import write_bytes
from kgl.errors import InputError
from kgl.exporters.onnx import metadata, write_onnx
from kgl.exporters.threshold import update_graphs


onnx = pytest.importorskip("onnx", reason="needs the extra [export]")
onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra [export]")
pytest.importorskip("onnxscript", reason="needs the extra [export]")

PROCESSOR = ViTImageProcessorPil(size={"height": 48, "width": 40})
OLD = {"threshold": 0.68, "chosen": "by hand"}
NEW = {"threshold": 0.7, "look_again_threshold": 0.25, "chosen": "by hand again"}


def write_small_graph(path: Path, decision: str = "GreaterOrEqual", **config: object) -> None:
    """A graph from a score to `defective` and `half`, whose factor is the constant of the threshold."""
    constant = onnx.numpy_helper.from_array(np.array(0.5), "constant")
    score, half, defective = (
        onnx.helper.make_tensor_value_info(name, kind, ["batch"])
        for name, kind in (("score", onnx.TensorProto.DOUBLE), ("half", onnx.TensorProto.DOUBLE),
                           ("defective", onnx.TensorProto.BOOL))
    )  # fmt: skip
    nodes = [
        onnx.helper.make_node("Mul", ["score", "constant"], ["half"]),
        onnx.helper.make_node(decision, ["score", "constant"], ["defective"]),
    ]
    graph = onnx.helper.make_graph(nodes, "small", [score], [half, defective], [constant])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=9)
    onnx.helper.set_model_props(model, metadata(tiny_model(**config), PROCESSOR))
    onnx.save(model, path)


def test_graph_is_the_one_of_another_export(tmp_path):
    (tmp_path / "final").mkdir()
    write_onnx(tiny_model(operating_point=OLD), PROCESSOR, tmp_path / "final" / "model.onnx")
    before = (tmp_path / "final" / "model.onnx").read_bytes()
    config = tiny_model(operating_point=NEW).config
    updated, others = update_graphs(tmp_path, {"primary": tiny_model().config, "final": config})
    assert (list(updated), others) == ([tmp_path / "final" / "model.onnx"], [])
    assert (tmp_path / "final" / "model.onnx").read_bytes() == before  # nothing is written yet
    write_onnx(tiny_model(operating_point=NEW), PROCESSOR, tmp_path / "fresh.onnx")
    assert updated[tmp_path / "final" / "model.onnx"] == (tmp_path / "fresh.onnx").read_bytes() != before


def test_constant_that_other_nodes_use_keeps_its_value(tmp_path):
    write_small_graph(tmp_path / "model.onnx", operating_point={"threshold": 0.5})
    configs = dict.fromkeys(("primary", "final"), tiny_model(operating_point=NEW).config)
    for _ in range(2):
        (content,) = update_graphs(tmp_path, configs)[0].values()
        write_bytes(tmp_path / "model.onnx", content)
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])
    half, defective = session.run(["half", "defective"], {"score": np.array([0.6, 0.69, 0.71])})
    np.testing.assert_allclose(half, [0.3, 0.345, 0.355])
    assert defective.tolist() == [False, False, True]
    entries = session.get_modelmeta().custom_metadata_map
    assert json.loads(entries["operating_point"]) == NEW
    assert (float(entries["threshold"]), float(entries["look_again_threshold"])) == (0.7, 0.25)
    assert list(tmp_path.iterdir()) == [tmp_path / "model.onnx"]


def test_exports_of_other_classifiers_are_named(tmp_path):
    (tmp_path / "primary").mkdir()
    write_small_graph(tmp_path / "primary" / "model.onnx", temperature=2.0)
    write_small_graph(tmp_path / "model.onnx", temperature=3.0)
    write_small_graph(tmp_path / "other.onnx", temperature=2.0)
    configs = {"primary": tiny_model(temperature=2.0).config, "final": tiny_model(temperature=3.0).config}
    updated, others = update_graphs(tmp_path, configs)
    assert set(updated) == {tmp_path / "primary" / "model.onnx", tmp_path / "model.onnx"}
    assert others == [tmp_path / "other.onnx"]


def test_graph_without_a_threshold_is_refused(tmp_path):
    write_small_graph(tmp_path / "model.onnx", decision="Greater")
    configs = dict.fromkeys(("primary", "final"), tiny_model(operating_point=NEW).config)
    with pytest.raises(InputError, match=r"model\.onnx: its graph has no threshold that can be replaced"):
        update_graphs(tmp_path, configs)
