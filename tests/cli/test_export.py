"""The command that exports: what it prints."""

from pathlib import Path

import pytest

from kgl.cli.export import main
from kgl.errors import InputError
from kgl.exporters.export import ExportResult


def test_differences_are_printed(tmp_path, monkeypatch, capsys):
    pytest.importorskip("onnxruntime", reason="needs the extra [export]")
    from kgl.exporters.quantization import QuantizationLoss

    def export(model, output, int8_folder):
        assert (model, output) == (str(tmp_path), tmp_path / "model.onnx")
        if int8_folder is None:
            return ExportResult(output, 2e-6, 3)
        assert int8_folder == tmp_path
        loss = QuantizationLoss(images=18, max_difference=0.125, mean_difference=0.0625, changed_decisions=0.5)
        return ExportResult(output, 2e-6, 11, Path("model_int8.onnx"), loss)

    monkeypatch.setattr("kgl.exporters.export.export_onnx", export)
    main([str(tmp_path)])
    line = f"{tmp_path / 'model.onnx'}: differs from PyTorch by 2.0e-06 at most on 3 images\n"
    assert capsys.readouterr().out == line
    main([str(tmp_path), "--int8", str(tmp_path)])
    assert capsys.readouterr().out.splitlines()[1] == (
        "model_int8.onnx: probabilities differ from the float graph's by 0.0625 on average and 0.1250 at most, 50.0% "
        "of the decisions, on 18 calibration images"
    )


def test_refusal_is_one_sentence_and_exit_code_2(tmp_path, monkeypatch, capsys):
    def refuse(*args):
        raise InputError("onnx is not installed; install it.")

    monkeypatch.setattr("kgl.exporters.export.export_onnx", refuse)
    with pytest.raises(SystemExit, match="2"):
        main([str(tmp_path)])
    assert capsys.readouterr().err.endswith("error: onnx is not installed; install it.\n")
