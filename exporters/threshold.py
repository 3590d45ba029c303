"""Another operating point in exported graphs: the constant that decides, and the metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from ..configuration_kgl import KGLConfig
from ..errors import InputError
from .onnx import decision_metadata, require_extra


def update_graphs(run: Path, configs: dict[str, KGLConfig]) -> tuple[dict[Path, bytes], list[Path]]:
    """
    Return what the ONNX files inside a run's folder become with new operating points; nothing is written.

    Args:
        run: its folder. Files in `primary` are taken for exports of the primary classifier, all others of the final.
        configs: `primary` and `final` configs with the new points.

    Returns:
        The new content of each file, and the files that are no exports of these classifiers.

    Raises:
        InputError: the extra `export` is missing, or a graph has no threshold where one is expected.
    """
    paths = sorted(run.rglob("*.onnx"))
    if not paths:
        return {}, []
    require_extra()
    import onnx

    updated: dict[Path, bytes] = {}
    others: list[Path] = []
    for path in paths:
        graph = onnx.load(path)
        config = configs["primary" if run / "primary" in path.parents else "final"]
        if _is_export_of(graph, config):
            _set_operating_point(graph, config, path)
            updated[path] = graph.SerializeToString()
        else:
            others.append(path)
    return updated, others


def _is_export_of(graph: Any, config: KGLConfig) -> bool:
    """Return whether the metadata of an `onnx.ModelProto` are those of a classifier, its operating point aside."""
    entries = {one.key: one.value for one in graph.metadata_props}
    expected = {
        "labels": json.dumps([config.id2label[index] for index in range(config.num_labels)]),
        "temperature": repr(config.temperature),
        "defect_free_label": config.defect_free_label,
    }
    if config.has_heat_map:
        expected["saliency_threshold"] = repr(config.heat_threshold)
    return all(entries.get(name) == value for name, value in expected.items())


def _set_operating_point(graph: Any, config: KGLConfig, path: Path) -> None:
    from onnx import helper, numpy_helper

    decisions = [node for node in graph.graph.node if "defective" in node.output]
    constants = {one.name: one for one in graph.graph.initializer}
    if len(decisions) != 1 or decisions[0].op_type != "GreaterOrEqual" or decisions[0].input[1] not in constants:
        raise InputError(f"{path}: its graph has no threshold that can be replaced; delete it and export it again.")
    constant = constants[decisions[0].input[1]]
    # The exporter rounds the threshold to single precision too: the file is the one that another export writes.
    value = numpy_helper.from_array(np.array(np.float32(config.threshold), dtype=np.float64), constant.name)
    if sum(list(node.input).count(constant.name) for node in graph.graph.node) == 1:
        constant.CopyFrom(value)
    else:  # merged with an equal constant of the resize
        value.name = f"{constant.name}_of_the_decision"
        graph.graph.initializer.append(value)
        decisions[0].input[1] = value.name
    entries = {one.key: one.value for one in graph.metadata_props}
    entries.pop("look_again_threshold", None)
    helper.set_model_props(graph, entries | decision_metadata(config))


__all__ = ["update_graphs"]
