"""Two hosts, made of network namespaces: trained like one process, and a host that is cut off ends the job."""

import shutil
import subprocess
import sys

import pytest
import torch
from datasets import load_from_disk
from safetensors.torch import load_file
from tiny import TRAIN_SCRIPT, make_images
from transformers import ConvNextV2Config, ConvNextV2Model
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.benchmarks.network import NoNamespacesError, network
from kgl.cli.train import parse
from kgl.train import run


PACKAGE = TRAIN_SCRIPT.parent
# Sums over two processes are made in another order than over one.
TOLERANCE = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture(scope="module")
def hosts():
    try:
        with network(2) as made:
            yield made
    except NoNamespacesError as error:
        pytest.skip(f"no network namespaces here: {error}")


def start(hosts, cwd, command, **options):
    """Start a command on every host as one of its processes, as Slurm's srun does."""
    jobs = []
    for number, host in enumerate(hosts):
        variables = {
            "RANK": str(number), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1",
            "MASTER_ADDR": hosts[0].address, "MASTER_PORT": "29500", "PYTHONPATH": str(PACKAGE.parent),
        }  # fmt: skip
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
        jobs.append(host.start([sys.executable, *map(str, command)], cwd, env=variables, **pipes))
    return jobs


def own_disks(hosts, folder, content):
    """Give each host a copy of a folder at one and the same path; return the path and the copies."""
    disks = [folder / host.name for host in hosts]
    for host, disk in zip(hosts, disks, strict=True):
        shutil.copytree(content, disk)
        host.mount(disk, folder / "disk")
    return folder / "disk", disks


def save_inputs(folder):
    """Save images, and a pretrained backbone without batch norms, whose statistics are those of a process's images."""
    make_images(folder / "images", good=12, scratched=4)  # half of them train: whole batches of 4
    torch.manual_seed(0)
    config = ConvNextV2Config(depths=[1] * 4, hidden_sizes=[8, 12, 16, 20], drop_path_rate=0.0)
    ConvNextV2Model(config).save_pretrained(folder / "backbone")
    ViTImageProcessorPil().save_pretrained(folder / "backbone")


def test_two_hosts_train_like_one_process(hosts, tmp_path, monkeypatch, few_draws):
    """With no folder in common; the second host keeps nothing."""
    save_inputs(tmp_path / "inputs")
    settings = [
        "images", "--backbone", "backbone", "--image_height", "64", "--image_width", "64", "--num_folds", "2",
        "--validation_share", "0", "--fine_tune", "true", "--head", "avg_max", "--prior_source",
        "both", "--augment", "false", "--max_steps", "6", "--save_strategy", "steps", "--save_steps", "3",
        "--keep_checkpoints", "true", "--output_dir", "out",
    ]  # fmt: skip
    cwd, (first, second) = own_disks(hosts, tmp_path, tmp_path / "inputs")
    jobs = start(hosts, cwd, [TRAIN_SCRIPT, *settings, "--per_device_train_batch_size", "2"])
    monkeypatch.chdir(tmp_path / "inputs")
    run(parse([*settings, "--per_device_train_batch_size", "4"]))
    for job in jobs:
        _, errors = job.communicate(timeout=300)
        assert job.returncode == 0, errors
    one, two = tmp_path / "inputs" / "out", first / "out"
    for phase in ("primary", "final"):
        expected, found = (load_file(out / phase / "model.safetensors") for out in (one, two))
        torch.testing.assert_close(found, expected, **TOLERANCE)
    priors = [load_from_disk(out / "priors_good_parts") for out in (one, two)]
    assert priors[0][:] == priors[1][:]
    assert sorted(path.name for path in (two / "final" / "checkpoint-6").iterdir() if "rng" in path.name) == [
        "rng_state_0.pth"
    ]
    assert (two / "report.html").exists() and not (second / "out").exists()


WAITING = """
import sys
from datetime import timedelta
from accelerate import PartialState
from kgl.cli.parser import run_command
from kgl.data import processes

processes._SILENCE, processes._INTERVAL = timedelta(seconds=3), 0.5

def job():
    PartialState(cpu=True)
    processes.HostWatch.start("kgl train")
    print("started", flush=True)
    if PartialState().is_main_process:
        processes.share_from_main_process(lambda: sys.stdin.read())  # for ever
    processes.share_from_main_process(lambda: None)

run_command("kgl train", job)
"""


def test_host_that_is_cut_off_ends_the_job(hosts, tmp_path):
    """No connection is closed; without the watch both would wait for half an hour."""
    (tmp_path / "job.py").write_text(WAITING)
    jobs = start(hosts, tmp_path, [tmp_path / "job.py"], stdin=subprocess.PIPE)
    assert [job.stdout.readline() for job in jobs] == ["started\n"] * 2
    hosts[1].cut_off()
    try:
        for job, other in zip(jobs, ("process 1 on host-2", "process 0 on host-1"), strict=True):
            assert job.wait(timeout=60) == 1
            assert f"{other} has ended or cannot be reached" in job.stderr.read()
    finally:
        hosts[1].reconnect()
