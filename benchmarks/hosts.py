"""
Train, make priors and predict on two hosts, and compare with one process.

    python benchmarks/hosts.py [--only NAME ...] [--into docs/hosts.md]

Hosts are network namespaces of this machine (`benchmarks/network.py`). Each way of starting the job is one line of
the results: by `torchrun` or `accelerate launch`, with one or two processes per host, in a folder that both hosts
share or in one of their own, each with its own copy of images and models and its own Hugging Face cache. Models are
tiny, without batch norms, whose statistics are those of a process's own images. Lines that the results file already
holds are skipped.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from datasets import load_from_disk
from safetensors.torch import load_file
from transformers import ConvNextV2Config, ConvNextV2Model
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.benchmarks.evidence.formatting import markdown_table, write_block
from kgl.benchmarks.evidence.records import append_lines, stored_lines
from kgl.benchmarks.measure import RESULTS, hardware
from kgl.benchmarks.network import Host, network
from kgl.data.synthetic import generate_surfaces


ROOT = Path(__file__).resolve().parents[1]
OUTPUT = RESULTS / "hosts.jsonl"
GLOBAL_BATCH = 8
WAYS = {  # launcher, processes per host, whether the hosts share the folder
    "torchrun, 2 x 1, own folders": ("torchrun", 1, False),
    "torchrun, 2 x 2, shared folder": ("torchrun", 2, True),
    "accelerate, 2 x 2, own folders": ("accelerate", 2, False),
    "accelerate, 2 x 1, shared folder": ("accelerate", 1, True),
}
_SIZE = ["--image_height", "64", "--image_width", "64"]
_DATA = ["images", "--num_folds", "2", "--validation_share", "0"]
_TRAIN = ["train", *_DATA, *_SIZE, "--backbone", "backbone", "--use_cpu", "true"]
_GUIDED = ["--fine_tune", "true", "--head", "avg_max", "--prior_source", "both", "--augment", "false"]
_GUIDED += ["--max_steps", "20", "--save_strategy", "steps", "--save_steps", "8"]


def commands(processes: int) -> dict[str, list[str]]:
    """Return the arguments of `kgl` of every task, with so many processes in all."""
    batch = ["--per_device_train_batch_size", str(GLOBAL_BATCH // processes)]
    return {
        "heads": [*_TRAIN, "--output_dir", "heads"],
        "guided": [*_TRAIN, *_GUIDED, *batch, "--output_dir", "guided"],
        "priors": ["prior", *_DATA, "--model", "model", "--output_dir", "priors"],
        "predicted": ["predict", "images", "--model", "model", "--output", "predicted", "--batch_size", "5"],
    }


def make_inputs(folder: Path) -> None:
    """Write 16 good and 16 defective images, half of which train, and a tiny backbone without batch norms."""
    for index, row in enumerate(generate_surfaces(32, 64, 0).splits["train"]):
        path = folder / "images" / ("good" if row["label"] == 0 else "defect") / f"{index:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        row["image"].save(path)
    torch.manual_seed(0)
    config = ConvNextV2Config(depths=[1] * 4, hidden_sizes=[8, 12, 16, 20], drop_path_rate=0.0)
    ConvNextV2Model(config).save_pretrained(folder / "backbone")
    ViTImageProcessorPil().save_pretrained(folder / "backbone")


def launch(launcher: str, host: int, hosts: list[Host], processes: int) -> list[str]:
    """Return the start of a command on one of two hosts, up to the arguments of `kgl`."""
    first = hosts[0].address
    if launcher == "accelerate":
        start = ["accelerate.commands.launch", "--config_file", str(ROOT / "recipes/accelerate/two_hosts_ddp.yaml")]
        start += ["--machine_rank", str(host), "--main_process_ip", first, "--num_processes", str(2 * processes)]
    else:
        start = ["torch.distributed.run", "--nnodes", "2", "--nproc-per-node", str(processes)]
        start += ["--rdzv-backend", "c10d", "--rdzv-endpoint", f"{first}:29400", "--rdzv-id", "kgl"]
    return [sys.executable, "-m", *start, "-m", "kgl.cli.main"]


def environment(cache: Path) -> dict[str, str]:
    """Return the variables of a job, with a Hugging Face cache of its own."""
    return {"OMP_NUM_THREADS": "1", "HF_HOME": str(cache), "PYTHONPATH": os.environ.get("PYTHONPATH", "")}


def run_alone(folder: Path, names: list[str]) -> None:
    """Run tasks in one process."""
    for name in names:
        command = [sys.executable, "-m", "kgl.cli.main", *commands(1)[name]]
        variables = os.environ | environment(folder / "hf")
        subprocess.run(command, cwd=folder, env=variables, check=True, capture_output=True)


def run_on_hosts(way: str, inputs: Path, folder: Path) -> tuple[Path, dict[str, float]]:
    """Run all tasks on two hosts; return the folder of the first host and the seconds of each task."""
    launcher, processes, shared = WAYS[way]
    folder.mkdir()
    disks = [folder / "disk-1", folder / "disk-1" if shared else folder / "disk-2"]
    for disk in {*disks}:
        shutil.copytree(inputs, disk)
    seconds = {}
    with network(2) as hosts:
        for host, disk in zip(hosts, disks, strict=True):
            host.mount(disk, folder / "work")  # the same path everywhere
        for name, arguments in commands(2 * processes).items():
            started, jobs = time.perf_counter(), []
            for index, host in enumerate(hosts):
                with (folder / f"{name}-{host.name}.txt").open("w") as log:
                    command = [*launch(launcher, index, hosts, processes), *arguments]
                    variables = environment(folder / f"hf-{host.name}")
                    jobs.append(host.start(command, folder / "work", env=variables, stdout=log, stderr=log))
            if any([job.wait() for job in jobs]):
                logs = [path.read_text(encoding="utf-8") for path in sorted(folder.glob(f"{name}-*.txt"))]
                raise RuntimeError("".join(line for log in logs for line in log.splitlines(True) if "rror" in line))
            seconds[name] = time.perf_counter() - started
    left = [path.name for path in disks[1].iterdir() if not shared and path.name in commands(2)]
    if left:
        raise RuntimeError(f"the second host keeps {left}")
    return disks[0], seconds


def largest_difference(folder: Path, other: Path) -> float:
    """Return the largest difference between any weights of both phases of two runs."""
    phases = [f"{phase}/model.safetensors" for phase in ("primary", "final")]
    pairs = [(load_file(folder / phase), load_file(other / phase)) for phase in phases]
    return max(float((one[name] - two[name]).abs().max()) for one, two in pairs for name in one)


def compare(alone: Path, together: Path) -> dict[str, Any]:
    """Return how the results of two hosts differ from those of one process."""
    maps = [load_from_disk(folder / "priors" / "priors") for folder in (alone, together)]
    tables = [(folder / "predicted" / "predictions.csv").read_bytes().split(b",") for folder in (alone, together)]
    overlays = [{path.name: path.read_bytes() for path in folder.rglob("overlays/*/*.jpg")}
                for folder in (alone / "predicted", together / "predicted")]  # fmt: skip
    return {
        "heads": largest_difference(alone / "heads", together / "heads"),
        "guided": largest_difference(alone / "guided", together / "guided"),
        "priors equal": maps[0][:] == maps[1][:],
        "predictions equal": _without_times(tables[0]) == _without_times(tables[1]) and overlays[0] == overlays[1],
    }


def _without_times(cells: list[bytes]) -> list[bytes]:
    """Leave out the times of the files, which are copies."""
    return [cell for cell in cells if not (cell[:2] == b"20" and cell.endswith(b"+00:00"))]


def prepare(folder: Path) -> tuple[Path, Path]:
    """Make the inputs of all ways, and run all tasks on them in one process; return the folders of both."""
    inputs, alone = folder / "inputs", folder / "alone"
    make_inputs(inputs)
    shutil.copytree(inputs, alone)
    run_alone(alone, ["guided"])
    for disk in (inputs, alone):
        shutil.copytree(alone / "guided" / "final", disk / "model")
    run_alone(alone, ["heads", "priors", "predicted"])
    return inputs, alone


def table(lines: list[dict[str, Any]]) -> str:
    """Return a Markdown table of the differences from one process."""
    rows = []
    for line in sorted(lines, key=lambda line: list(WAYS).index(line["way"])):
        equal = {name: "the same bytes" if line[f"{name} equal"] else "others" for name in ("priors", "predictions")}
        row = {
            "started by": line["way"],
            "heads": f"{line['heads']:.1g}",
            "fine-tuned, guided": f"{line['guided']:.1g}",
        }
        rows.append(row | equal)
    return markdown_table(rows)


def main() -> None:
    """Run what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=WAYS, default=list(WAYS))
    parser.add_argument("--into", type=Path, help="a page with the marker `hosts`")
    options = parser.parse_args()
    lines = stored_lines(OUTPUT)
    done = {line["way"] for line in lines}
    ways = [way for way in options.only if way not in done]
    for way in set(options.only) & done:
        print(f"{way}: {OUTPUT} has its line; remove it there to run it again.")
    with tempfile.TemporaryDirectory() as folder:
        inputs, alone = prepare(Path(folder)) if ways else (None, None)
        for number, way in enumerate(ways):
            together, seconds = run_on_hosts(way, inputs, Path(folder) / str(number))
            lines.append({"way": way, **compare(alone, together), "seconds": seconds, "hardware": hardware()})
            print(lines[-1], flush=True)
            append_lines(OUTPUT, lines[-1])
    if options.into is not None:
        write_block(options.into, "hosts", table(lines))


if __name__ == "__main__":
    main()
