"""
How much faster two processes make priors than one, one thread each.

    python benchmarks/prior_pass.py [--rounds 3] [--images 512] [--size 224]

Both are started in turns on the same generated images; what is reported is the median of the rounds' ratios of
images a second in the pass itself: reading, decoding, LayerCAM, shards and the final table, but not the start of
Python and the model. Needs as many idle cores as processes; a *control* runs two passes of one process each at once,
so that what the machine's memory and clock allow is known.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from accelerate import PartialState
from datasets import load_from_disk
from measure import BACKBONE, hardware, store
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.configuration_kgl import KGLConfig
from kgl.data.arguments import DataArguments
from kgl.data.loading import load_defect_dataset
from kgl.knowledge.saliency_priors import write_saliency_priors
from kgl.modeling_kgl import KGLForImageClassification


def one_pass(folder: Path) -> None:
    """What each process does: its share of the pass over the images in `folder`; the first says how long it took."""
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
        # All processes of a pass write to one place; passes beside each other must not.
        output = folder / "priors" if state.num_processes > 1 else Path(own) / "priors"
        write_saliency_priors(images, model, image_processor, output)
    if state.is_main_process:
        print(f"seconds {time.perf_counter() - started}")
    state.destroy_process_group()


def started(folder: Path, processes: int) -> subprocess.Popen:
    """A pass in so many processes."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *launcher, __file__, "--folder", str(folder)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def seconds_of(process: subprocess.Popen, folder: Path) -> float:
    """What a pass took."""
    output, errors = process.communicate()
    if process.returncode != 0:
        raise RuntimeError(errors)
    for left in folder.glob("priors*"):
        subprocess.run(["rm", "-r", left], check=True)
    return float(output.split()[-1])


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=512)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)  # the processes of a pass
    options = parser.parse_args()
    if options.folder is not None:
        one_pass(options.folder)
        return
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        count = options.images * 3 // 2  # a third of them is held out
        data = DataArguments("surfaces", num_surfaces=count, surface_size=options.size)
        load_defect_dataset(data)["train"].save_to_disk(folder / "images")
        size = {"height": options.size, "width": options.size}
        ViTImageProcessorPil(size=size).save_pretrained(folder)
        times: dict[str, list[float]] = {"one": [], "two": [], "two beside each other": []}
        for _ in range(options.rounds):
            times["one"].append(seconds_of(started(folder, 1), folder))
            times["two"].append(seconds_of(started(folder, 2), folder))
            pair = [started(folder, 1), started(folder, 1)]
            times["two beside each other"].append(float(np.mean([seconds_of(one, folder) for one in pair])))
            print({kind: round(seconds[-1], 1) for kind, seconds in times.items()}, flush=True)
    one, two, beside = (np.asarray(seconds) for seconds in times.values())
    ratios = {
        "two over one": float(np.median(one / two)),
        "what the machine allows": float(np.median(2 * one / beside)),
    }
    print(f"{hardware()}: {ratios}")
    options.folder = None
    store("prior_pass_cpu", vars(options), {"ratios": ratios, "seconds": times})


if __name__ == "__main__":
    main()
