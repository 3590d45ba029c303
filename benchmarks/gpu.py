"""
Measure on a GPU what a CPU cannot show, and keep every figure with the name of the hardware.

    python benchmarks/gpu.py --data_dir ../shared/data/kolektorsdd

Parts: cost of a guided step and of the heat map; images per second of the default model in float32, bfloat16,
channels_last and compiled, with the largest change of a probability and the share of what arithmetic and memory of
this device allow; and fold 0 of KolektorSDD by the paper's protocol at its resolution (`recipes/ksdd.yaml`, fewer
epochs). Every part is written when it is finished; started again, finished parts are skipped and the training goes
on. `--smoke` runs all of it on any device, on tiny inputs: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.benchmarks.measure import BACKBONE, RESULTS, hardware, in_mode
from kgl.benchmarks.step_cost import DEFAULT_BACKBONE, measure_inference, measure_training, random_rows
from kgl.configuration_kgl import KGLConfig
from kgl.modeling_kgl import KGLForImageClassification


ROOT = Path(__file__).resolve().parents[1]
MODES = {  # name: dtype, channels_last, compiled
    "float32": (torch.float32, False, False),
    "float32, channels_last": (torch.float32, True, False),
    "bfloat16": (torch.bfloat16, False, False),
    "bfloat16, channels_last": (torch.bfloat16, True, False),
    "bfloat16, channels_last, compiled": (torch.bfloat16, True, True),
}


def device() -> str:
    """Return the device that is measured."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def seconds_per_call(call: Callable[[], object], at_least: float) -> float:
    """Return the seconds of one call, repeated for `at_least` seconds after three calls that do not count."""
    for _ in range(3):
        call()
    _wait()
    started, calls = time.perf_counter(), 0
    while time.perf_counter() - started < at_least:
        call()
        calls += 1
        _wait()
    return (time.perf_counter() - started) / calls


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def measure_limits(side: int, at_least: float) -> dict[str, float]:
    """Return what the device reaches at best: matrix products in FLOP/s per dtype, and copying in bytes/s."""
    limits = {}
    for dtype in (torch.float32, torch.bfloat16):
        one = torch.randn(side, side, device=device(), dtype=dtype)
        limits[f"flops {dtype}"] = 2 * side**3 / seconds_per_call(lambda one=one: one @ one, at_least)
    block = torch.empty(4 * side * side, device=device())
    limits["bytes"] = 2 * block.numel() * 4 / seconds_per_call(lambda: block.clone(), at_least)
    return limits


def count_work(model: nn.Module, images: torch.Tensor) -> tuple[int, int]:
    """Return the FLOPs of a forward pass, and the bytes that its leaf modules read and write, parameters included."""
    moved = 0

    def count_bytes(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        nonlocal moved
        tensors = [one for one in (*inputs, output, *module.parameters()) if isinstance(one, torch.Tensor)]
        moved += sum(one.numel() * one.element_size() for one in tensors)

    leaves = [module for module in model.modules() if not list(module.children())]
    hooks = [module.register_forward_hook(count_bytes) for module in leaves]
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(images)
    for hook in hooks:
        hook.remove()
    return counter.get_total_flops(), moved


@torch.no_grad()
def measure_throughput(
    batch_size: int, size: tuple[int, int], limits: dict[str, float], at_least: float
) -> dict[str, Any]:
    """
    Return images per second of the default model in each mode, beside the device's limits.

    `share_of_limit` is the time that the slower of arithmetic and memory needs at best over the time measured, with
    every layer reading and writing memory; fused layers can exceed 1 of the memory's part.
    """
    torch.manual_seed(0)
    config = KGLConfig(backbone_config=DEFAULT_BACKBONE.to_dict(), num_labels=2, head="stages")
    model = KGLForImageClassification(config).to(device()).eval()
    images = torch.rand(batch_size, 3, *size, device=device())
    expected = model(images).logits.softmax(dim=1)
    results = {}
    for name, mode in MODES.items():
        call, batch = in_mode(model, images, *mode)
        flops, moved = count_work(model, batch)
        seconds = seconds_per_call(lambda call=call, batch=batch: call(batch), at_least)
        best = max(flops / limits[f"flops {mode[0]}"], moved / limits["bytes"])
        results[name] = {
            "images_per_second": batch_size / seconds,
            "largest_change_of_a_probability": float(
                (call(batch).logits.float().softmax(dim=1) - expected).abs().max()
            ),
            "flops": flops,
            "bytes": moved,
            "share_of_limit": best / seconds,
        }
        model = model.float()
    return results


def measure_steps(batch_size: int, size: tuple[int, int], rounds: int) -> dict[str, Any]:
    """Return the ratios of `step_cost.py`."""
    model = KGLForImageClassification(KGLConfig(backbone_config=BACKBONE.to_dict(), num_labels=2)).to(device())
    image_processor = ViTImageProcessorPil(size={"height": size[0], "width": size[1]})
    rows = random_rows(batch_size, size, model.saliency_grid(size))
    results = measure_training(model, rows, image_processor, rounds)
    return results | measure_inference(model, torch.rand(batch_size, 3, *size, device=device()), rounds)


def train_fold(command: list[str], folder: Path) -> dict[str, Any]:
    """
    Train a fold and return its results; a run that was stopped goes on.

    Raises:
        RuntimeError: the training failed.
    """
    one_process = "--quiet --num_processes 1 --num_machines 1 --mixed_precision no --dynamo_backend no"
    launch = [sys.executable, "-m", "accelerate.commands.launch", *one_process.split(), "train.py", *command]
    if subprocess.run([*launch, "--output_dir", str(folder)], cwd=ROOT, check=False).returncode != 0:
        raise RuntimeError(f"train.py {' '.join(command)} failed; its output is above.")
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    return {name: metrics[name] for name in ("results", "differences", "seconds", "settings")}


def fold_command(data_dir: Path, epochs: int, smoke: bool) -> list[str]:
    """Return the arguments of `train.py`: fold 0 of KolektorSDD, or a few generated surfaces."""
    if not smoke:
        return ["recipes/ksdd.yaml", "--data_dir", str(data_dir), "--num_train_epochs", str(epochs), "--bf16", "true"]
    backbone = json.dumps({"model_type": "resnet", "layer_type": "basic", "hidden_sizes": [8], "depths": [1]})
    return [
        "--dataset", "surfaces", "--num_surfaces", "36", "--surface_size", "32", "--backbone_config", backbone,
        "--image_height", "32", "--image_width", "32", "--fine_tune", "true", "--max_steps", "2", "--use_cpu", "true",
    ]  # fmt: skip


def main() -> None:
    """Measure the parts that the results file lacks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=Path("../shared/data/kolektorsdd"))
    parser.add_argument("--epochs", type=int, default=20, help="of each phase on KolektorSDD")
    parser.add_argument("--output", type=Path, help="by default benchmarks/results/gpu_HARDWARE.json")
    parser.add_argument("--run_dir", type=Path, default=Path("runs/gpu_ksdd"), help="of the training")
    parser.add_argument("--smoke", action="store_true", help="tiny inputs, on any device")
    options = parser.parse_args()
    if not options.smoke and not torch.cuda.is_available():
        parser.error("there is no GPU here; --smoke tries the script on a CPU.")
    output = options.output or RESULTS / f"gpu_{hardware().replace(' ', '_')}.json"
    batch_size, size, rounds, at_least = (2, (32, 32), 1, 0.01) if options.smoke else (64, (224, 224), 15, 2.0)
    done = json.loads(output.read_text(encoding="utf-8")) if output.exists() else {}
    limits = done.get("limits") or measure_limits(64 if options.smoke else 8192, at_least)
    parts: dict[str, Callable[[], Any]] = {
        "limits": lambda: limits,
        "throughput": lambda: measure_throughput(batch_size, size, limits, at_least),
        "step_cost": lambda: measure_steps(batch_size, size, rounds),
        "kolektorsdd": lambda: train_fold(
            fold_command(options.data_dir.resolve(), options.epochs, options.smoke), options.run_dir.resolve()
        ),
    }
    record = {"hardware": hardware(), "torch": torch.__version__, "batch_size": batch_size, "size": size} | done
    for name, measure in parts.items():
        if name in done:
            continue
        record[name] = measure()
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"{name}: written to {output}", flush=True)


if __name__ == "__main__":
    main()
