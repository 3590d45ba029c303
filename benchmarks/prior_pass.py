"""
Measure how much faster two processes make priors than one, one thread each.

    python benchmarks/prior_pass.py [--rounds 3] [--images 512] [--size 224]

Both run in turns on the same synthetic images; the result is the median of the rounds' ratios of the time of the pass:
reading, decoding, saliency maps, shards and the final table, without the start of Python and the model. It needs as
many idle cores as processes. A control runs two passes of one process each at once, which shows what memory and clock
of the machine allow.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from datasets import disable_progress_bars, load_from_disk
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.benchmarks.measure import BACKBONE, hardware, store
from kgl.configuration_kgl import KGLConfig
from kgl.data.arguments import DataArguments
from kgl.data.loading import load_defect_dataset
from kgl.knowledge.saliency_priors import write_saliency_priors
from kgl.modeling_kgl import KGLForImageClassification


def run_pass(folder: Path) -> None:
    """Run this process's share of the pass over the images in `folder`; the main process prints its seconds."""
    torch.set_num_threads(1)
    state = PartialState(cpu=True)
    images = load_from_disk(folder / "images")
    names = images.features["label"].names
    torch.manual_seed(0)
    config = KGLConfig(backbone_config=BACKBONE.to_dict(), id2label=dict(enumerate(names)), defect_free_label=names[0])
    model = KGLForImageClassification(config).eval()
    image_processor = ViTImageProcessorPil.from_pretrained(folder)
    state.wait_for_everyone()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as own:
        # The processes of one pass share a folder; concurrent passes must not.
        output = folder / "priors" if state.num_processes > 1 else Path(own) / "priors"
        write_saliency_priors(images, model, image_processor, output)
    if state.is_main_process:
        print(f"seconds {time.perf_counter() - started}")
    state.destroy_process_group()


def start_pass(folder: Path, processes: int) -> subprocess.Popen:
    """Start a pass in a number of processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *launcher, __file__, "--folder", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_pass(process: subprocess.Popen, folder: Path) -> float:
    """
    Return the seconds of a pass and delete what it wrote.

    Raises:
        RuntimeError: the pass failed.
    """
    output, errors = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(errors)
    for path in folder.glob("priors*"):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    return float(output.split()[-1])


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=512, help="number of images")
    parser.add_argument("--size", type=int, default=224, help="height and width in pixels")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # in the processes of a pass
    options = parser.parse_args()
    if options.folder is not None:
        run_pass(options.folder)
        return
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = options.images * 3 // 2  # a third is held out for testing
        data = DataArguments("surfaces", num_surfaces=count, surface_size=options.size)
        load_defect_dataset(data)["train"].save_to_disk(folder / "images")
        size = {"height": options.size, "width": options.size}
        ViTImageProcessorPil(size=size).save_pretrained(folder)
        seconds: dict[str, list[float]] = {"one_process": [], "two_processes": [], "two_concurrent_passes": []}
        for _ in range(options.rounds):
            seconds["one_process"].append(wait_for_pass(start_pass(folder, 1), folder))
            seconds["two_processes"].append(wait_for_pass(start_pass(folder, 2), folder))
            pair = [start_pass(folder, 1), start_pass(folder, 1)]
            seconds["two_concurrent_passes"].append(float(np.mean([wait_for_pass(one, folder) for one in pair])))
            print({kind: round(values[-1], 1) for kind, values in seconds.items()}, flush=True)
    one, two, concurrent = (np.asarray(values) for values in seconds.values())
    ratios = {
        "two_processes_over_one": float(np.median(one / two)),
        "machine_limit": float(np.median(2 * one / concurrent)),
    }
    print(f"{hardware()}: {ratios}")
    settings = {"rounds": options.rounds, "images": options.images, "size": options.size}
    store("prior_pass_cpu", settings, {"ratios": ratios, "seconds": seconds})


if __name__ == "__main__":
    main()
