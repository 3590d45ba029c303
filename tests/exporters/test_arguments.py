"""Settings of the export."""

import subprocess
import sys
from pathlib import Path

import pytest

from kgl.errors import InputError
from kgl.exporters.arguments import ExportArguments


def test_default_file_is_in_the_model_folder(tmp_path):
    assert ExportArguments(model=str(tmp_path)).path == tmp_path / "model.onnx"
    assert ExportArguments(model="OWNER/NAME", output="graph.onnx").path == Path("graph.onnx")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output": "graph.pb"}, r"--output graph\.pb: its name must end in \.onnx"),
        ({"model": "OWNER/NAME"}, "--model OWNER/NAME: it is not a folder here; name the file"),
        ({"output": "nowhere/m.onnx"}, "--output nowhere/m.onnx: the folder does not exist"),
        ({"int8": "nowhere"}, "--int8 nowhere: the folder does not exist"),
    ],
)
def test_bad_settings_are_refused(tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        ExportArguments(**{"model": str(tmp_path), **settings}).check_paths()


@pytest.mark.parametrize("module", ["kgl.exporters.arguments", "kgl.knowledge.arguments"])
def test_arguments_import_nothing_heavy(module):
    script = f"import sys, {module}; print({{'torch', 'transformers', 'datasets', 'numpy'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "set()", done.stderr
