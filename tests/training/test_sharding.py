"""FSDP: trained like whole models where it works, refused in one sentence where it does not."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import accelerate
import pytest
from accelerate.commands.launch import _validate_launch_command, launch_command_parser
from accelerate.utils import FullyShardedDataParallelPlugin
from accelerate.utils.launch import prepare_multi_gpu_env
from jobs import write_recipe
from packaging.version import Version
from safetensors.torch import load_file
from tiny import TINY_BACKBONES, TRAIN_SCRIPT, launched, make_images, tiny_model
from torch.testing import assert_close

from kgl.cli.train import parse
from kgl.errors import InputError
from kgl.train import run
from kgl.training import sharding
from kgl.training.settings import check_settings, run_settings
from kgl.training.sharding import check_checkpoint_folders, check_shardable, check_sharding, uses_fsdp


FSDP_SCRIPT = Path(__file__).resolve().parents[1] / "fsdp_on_cpu.py"
needs_accelerate = pytest.mark.skipif(
    Version(accelerate.__version__) < Version(sharding._MIN_ACCELERATE), reason="FSDP needs a newer accelerate"
)
NOT_HERE = "shards a model over several GPUs, not on a CPU; leave it out: several processes share the images"


@pytest.fixture(autouse=True)
def _environment(monkeypatch):
    """Forget what transformers and accelerate write into the environment."""
    monkeypatch.setenv("FSDP_CPU_RAM_EFFICIENT_LOADING", "false")


def train_in_two_processes(script, recipe, output, *arguments):
    command = [*launched(2), str(script), recipe, "--output_dir", str(output), "--keep_checkpoints", "true"]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def assert_same_run(output, other, tolerance):
    for phase in ("primary", "final"):
        expected, found = (load_file(folder / phase / "model.safetensors") for folder in (output, other))
        assert_close(found, expected, rtol=0, atol=tolerance)
    config, other_config = (json.loads((one / "final" / "config.json").read_text()) for one in (output, other))
    assert other_config["architectures"] == config["architectures"]
    assert other_config["auto_map"] == config["auto_map"]


def forget_from(output, step):
    """Leave a finished run as if it had been killed in phase 2 after this step."""
    state = json.loads((output / "state.json").read_text())
    steps = {name: record for name, record in state["steps"].items() if name not in ("final", "report")}
    checkpoints = {"final": [{"step": step, "seconds": 1.0}]}
    (output / "state.json").write_text(json.dumps({"steps": steps, "checkpoints": checkpoints}))
    (output / "final" / "model.safetensors").unlink()
    for checkpoint in (output / "final").glob("checkpoint-*"):
        if checkpoint.name != f"checkpoint-{step}":
            shutil.rmtree(checkpoint)


def run_whole_and_sharded(folder, backbone, **settings):
    """Train in two processes, whole and sharded; return the recipe and both output folders."""
    recipe = write_recipe(
        folder, data_dir=str(make_images(folder / "images")), out_features=None, image_width=32,
        backbone_config=TINY_BACKBONES[backbone].to_dict(), num_train_epochs=2, save_total_limit=2, **settings,
    )  # fmt: skip
    whole, sharded = folder / "whole", folder / "sharded"
    train_in_two_processes(TRAIN_SCRIPT, recipe, whole)
    train_in_two_processes(FSDP_SCRIPT, recipe, sharded, "--fsdp", "true")
    assert_same_run(whole, sharded, 1e-5)
    assert len(list((sharded / "final").glob("checkpoint-*/pytorch_model_fsdp.bin"))) == 2
    return recipe, sharded


@needs_accelerate
def test_batch_norms_and_their_statistics_are_those_of_whole_models(tmp_path):
    run_whole_and_sharded(tmp_path, "resnet")


@needs_accelerate
def test_sharded_run_resumes_and_checkpoints_gradients(tmp_path):
    """Norms of Swin's hidden states have no gradient, so none in a checkpoint's optimizer either."""
    recipe, sharded = run_whole_and_sharded(tmp_path, "swin", gradient_checkpointing=True)
    first, last = sorted((sharded / "final").glob("checkpoint-*"), key=lambda one: int(one.name.partition("-")[2]))
    weights = [load_file(one / "model.safetensors") for one in (last, sharded / "final")]
    for of_one in weights:
        del of_one["feature_center"], of_one["feature_scale"]  # measured when the training is done
    assert_close(*weights)
    resumed = tmp_path / "resumed"
    shutil.copytree(sharded, resumed)
    forget_from(resumed, int(first.name.partition("-")[2]))
    assert "resumed from" in train_in_two_processes(FSDP_SCRIPT, recipe, resumed, "--fsdp", "true")
    assert_same_run(sharded, resumed, 0)


@pytest.mark.parametrize(
    "spelling",
    [
        ["--fsdp"], ["--fsdp", "true"], ["--fsdp", "full_shard"], ["--fsdp", "full_shard auto_wrap"],
        ["--fsdp", "true", "--fsdp_config", '{"reshard_after_forward": true}'], ["--fsdp", "--fsdp_config", "FILE"],
    ],
)  # fmt: skip
def test_fsdp_without_gpus_is_refused(spelling, tmp_path):
    (tmp_path / "fsdp.json").write_text('{"fsdp_version": 2}')
    arguments = [str(tmp_path / "fsdp.json") if one == "FILE" else one for one in spelling]
    recipe = write_recipe(tmp_path, data_dir=str(make_images(tmp_path / "images")))
    with pytest.raises(InputError, match=NOT_HERE):
        run(parse([recipe, "--output_dir", str(tmp_path / "out"), *arguments]))
    assert not (tmp_path / "out").exists()


def test_fsdp_of_a_recipe_or_of_accelerate_without_gpus_is_refused(tmp_path, monkeypatch):
    images = str(make_images(tmp_path / "images"))
    with pytest.raises(InputError, match=NOT_HERE):
        check_settings(parse([write_recipe(tmp_path, data_dir=images, fsdp=True)]))
    recipe = write_recipe(tmp_path, data_dir=images, fsdp=False)
    check_settings(parse([recipe]))
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(InputError, match=NOT_HERE):
        check_settings(parse([recipe]))


@pytest.fixture
def two_gpus(monkeypatch):
    """Let the checks believe in two processes with a GPU each."""
    monkeypatch.setattr(sharding, "shards_on", lambda device: True)
    monkeypatch.setattr("kgl.training.training_args.KGLTrainingArguments.world_size", 2)


@pytest.mark.parametrize(
    ("config", "environment", "message"),
    [
        ({"version": 1}, {}, "FSDP version 1 is not supported; take version 2"),
        ({"cpu_offload": True}, {}, "offloading to the CPU is not supported"),
        ({"cpu_ram_efficient_loading": True}, {}, "cpu_ram_efficient_loading loses the statistics"),
        ({"activation_checkpointing": True}, {}, "take --gradient_checkpointing true"),
        ({"xla": True}, {}, "xla is not supported"),
        (None, {}, "FSDP version 1 is not supported; take version 2"),
        (None, {"FSDP_VERSION": "2", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true"}, "ram_efficient_loading false"),
        (None, {"FSDP_VERSION": "2", "FSDP_OFFLOAD_PARAMS": "true"}, "offloading to the CPU is not supported"),
        (None, {"ACCELERATE_USE_PARALLELISM_CONFIG": "true"}, "--use_parallelism_config: .* leave it out"),
    ],
)  # fmt: skip
def test_kinds_of_fsdp_that_are_refused(config, environment, message, two_gpus, tmp_path, monkeypatch):
    """By `--fsdp_config`, and by what `accelerate launch --use_fsdp` writes into the environment."""
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true" if config is None else "false")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    arguments = [] if config is None else ["--fsdp", "--fsdp_config", json.dumps(config)]
    with pytest.raises(InputError, match=message):
        check_sharding(parse([write_recipe(tmp_path, data_dir="images"), *arguments]).training)


def test_weights_that_deepspeed_shards_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "is_deepspeed_zero3_enabled", lambda: True)
    with pytest.raises(InputError, match=r"DeepSpeed's stage 3 shards weights, .* take stage 2, or --fsdp true"):
        check_settings(parse([write_recipe(tmp_path, data_dir="images")]))


def test_settings_of_fsdp_go_with_training_by_steps(tmp_path):
    with pytest.raises(InputError, match=r"FSDP .* goes with --fine_tune true"):
        check_settings(parse(["images", "--fsdp", "true"]))
    with pytest.raises(InputError, match="--fsdp_config goes with --fsdp"):
        check_settings(parse([write_recipe(tmp_path, data_dir="images"), "--fsdp_config", '{"version": 2}']))


def test_model_that_cannot_be_sharded_is_refused(two_gpus, tmp_path):
    recipe = write_recipe(tmp_path, data_dir="images")
    half = parse([recipe, "--fsdp", "--bf16", "true"]).training
    with pytest.raises(InputError, match="casts batch norms, which the backbone resnet has"):
        check_shardable(half, tiny_model("resnet"))
    check_shardable(half, tiny_model("swin"))
    named = parse([recipe, "--fsdp", "--fsdp_config", '{"transformer_layer_cls_to_wrap": "SwinStage"}']).training
    check_shardable(named, tiny_model("swin"))
    with pytest.raises(InputError, match=r"Could not find the transformer layer class SwinStage .*NO_WRAP"):
        check_shardable(named, tiny_model("resnet"))


@pytest.mark.parametrize("backbone", list(TINY_BACKBONES))
def test_layers_of_the_backbone_are_the_shards(backbone):
    model = tiny_model(backbone)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="TRANSFORMER_BASED_WRAP")
    plugin.set_auto_wrap_policy(model)
    shards = plugin.auto_wrap_policy.keywords["transformer_layer_cls"]
    assert shards and all(any(type(one) is kind for one in model.backbone.modules()) for kind in shards)


@needs_accelerate
@pytest.mark.parametrize("name", ["two_hosts_ddp", "two_hosts_fsdp"])
def test_config_files_of_two_hosts_are_understood(name, two_gpus, tmp_path, monkeypatch):
    """As `accelerate launch` reads them on the second host; with them the job starts."""
    path = TRAIN_SCRIPT.parent / "recipes" / "accelerate" / f"{name}.yaml"
    flags = ["--config_file", str(path), "--machine_rank", "1", "--rdzv_backend", "c10d"]
    args = launch_command_parser().parse_args([*flags, "train.py"])
    args, _, _ = _validate_launch_command(args)
    for variable, value in prepare_multi_gpu_env(args).items():
        monkeypatch.setenv(variable, value)
    assert (args.nnodes, args.nproc_per_node, args.node_rank) == ("2", "4", 1)
    assert (args.rdzv_backend, args.rdzv_endpoint) == ("c10d", "10.0.0.1:29500")
    training = parse([write_recipe(tmp_path, data_dir="images")]).training
    check_sharding(training)
    check_checkpoint_folders(training, shared=False)
    assert uses_fsdp(training) == (name == "two_hosts_fsdp")


def test_checkpoints_in_parts_need_a_shared_folder(two_gpus, tmp_path, monkeypatch):
    kind = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "FSDP_STATE_DICT_TYPE": "SHARDED_STATE_DICT"}
    for name, value in kind.items():
        monkeypatch.setenv(name, value)
    training = parse([write_recipe(tmp_path, data_dir="images")]).training
    check_checkpoint_folders(training, shared=True)
    with pytest.raises(InputError, match=r"give a shared folder, or .* FULL_STATE_DICT"):
        check_checkpoint_folders(training, shared=False)


def test_sharded_run_is_another_run(two_gpus, tmp_path):
    recipe = write_recipe(tmp_path, data_dir="images")
    assert "fsdp" not in run_settings(parse([recipe]), {})["training"]
    assert run_settings(parse([recipe, "--fsdp"]), {})["training"]["fsdp"] is True
    assert os.environ.get("ACCELERATE_USE_FSDP", "false") == "false"
