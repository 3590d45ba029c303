"""The GPU benchmark, on tiny inputs on a CPU."""

import json
import sys

import pytest
import torch
from torch import nn

from kgl.benchmarks import gpu


def test_work_of_a_convolution_is_counted():
    model = nn.Sequential(nn.Conv2d(3, 8, 1, bias=False))
    flops, moved = gpu.count_work(model, torch.zeros(2, 3, 5, 7))
    assert flops == 2 * 2 * 3 * 8 * 35
    assert moved == 4 * (2 * 3 * 35 + 2 * 8 * 35 + 3 * 8)


def test_throughput_has_every_mode_and_float32_changes_nothing(monkeypatch):
    monkeypatch.setattr(gpu, "MODES", {name: mode for name, mode in gpu.MODES.items() if not mode[2]})
    limits = gpu.measure_limits(16, 0.001)
    results = gpu.measure_throughput(2, (32, 32), limits, 0.001)
    assert list(results) == list(gpu.MODES) and len(results) == 4
    assert results["float32"]["largest_change_of_a_probability"] == 0
    assert 0 < results["bfloat16"]["largest_change_of_a_probability"] < 0.1
    assert all(one["images_per_second"] > 0 and one["share_of_limit"] > 0 for one in results.values())
    assert results["bfloat16"]["bytes"] == results["float32"]["bytes"] / 2


def test_finished_parts_are_not_measured_again(tmp_path, monkeypatch):
    output = tmp_path / "gpu.json"
    output.write_text(json.dumps({"limits": {"bytes": 1}, "throughput": 2, "kolektorsdd": 4}))
    monkeypatch.setattr(gpu, "measure_steps", lambda *_: 3)
    monkeypatch.setattr(sys, "argv", ["gpu.py", "--smoke", "--output", str(output)])
    gpu.main()
    record = json.loads(output.read_text())
    assert (record["limits"], record["throughput"], record["step_cost"]) == ({"bytes": 1}, 2, 3)
    assert record["hardware"] and record["kolektorsdd"] == 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_only_the_smoke_run_is_allowed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "--smoke" in capsys.readouterr().err
