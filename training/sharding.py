"""Sharded training by FSDP: what of it is supported, and the whole weights of a sharded model."""

from __future__ import annotations

import copy
import os

import accelerate
import torch
from accelerate.utils import FullyShardedDataParallelPlugin
from packaging.version import Version
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import CPUOffloadPolicy, StateDictType
from transformers.integrations import is_deepspeed_zero3_enabled

from ..errors import InputError
from ..modeling_kgl import KGLForImageClassification
from ..saliency.activations import eval_mode
from .training_args import KGLTrainingArguments


# The oldest that the job was run with under FSDP; accelerate 1.6 cannot save batch norms that FSDP shards.
_MIN_ACCELERATE = "1.15"


def uses_fsdp(args: KGLTrainingArguments) -> bool:
    """Return whether models are sharded: by `--fsdp`, or by `accelerate launch --use_fsdp`."""
    return bool(args.fsdp) or os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"


def check_sharding(args: KGLTrainingArguments) -> None:
    """
    Check the settings of FSDP, before anything is read or written.

    Raises:
        InputError: settings of FSDP without it, or FSDP where or in a way that it cannot train these models.
    """
    if os.environ.get("ACCELERATE_USE_PARALLELISM_CONFIG", "false").lower() == "true":
        raise InputError("accelerate launch --use_parallelism_config: only whole images are shared; leave it out.")
    if is_deepspeed_zero3_enabled():
        raise InputError("DeepSpeed's stage 3 shards weights, which are not gathered; take stage 2, or --fsdp true.")
    if args.fsdp_config and not args.fsdp:
        raise InputError("--fsdp_config goes with --fsdp.")
    if not uses_fsdp(args):
        return
    if not shards_on(args.device) or args.world_size == 1:
        devices = "on a CPU" if args.device.type == "cpu" else "with one process"
        raise InputError(
            f"FSDP (--fsdp or accelerate launch --use_fsdp) shards a model over several GPUs, not {devices}; leave it "
            "out: several processes share the images without it."
        )
    if (args.fsdp_config or {}).get("xla"):
        raise InputError("--fsdp_config: xla is not supported; leave it out.")
    versions = {"fsdp_version": int(os.environ.get("FSDP_VERSION", "1"))} | (args.fsdp_plugin_args or {})
    if versions["fsdp_version"] != 2:
        raise InputError(
            "FSDP version 1 is not supported; take version 2: --fsdp without accelerate's --use_fsdp, or "
            "accelerate launch --use_fsdp --fsdp_version 2."
        )
    plugin = _plugin(args)
    if plugin.cpu_ram_efficient_loading:
        raise InputError(
            "FSDP's cpu_ram_efficient_loading loses the statistics of batch norms; give accelerate launch "
            "--fsdp_cpu_ram_efficient_loading false, or leave it out of --fsdp_config."
        )
    if isinstance(plugin.cpu_offload, CPUOffloadPolicy):
        raise InputError("FSDP's offloading to the CPU is not supported; leave it out.")
    if plugin.activation_checkpointing:
        raise InputError(
            "FSDP's activation_checkpointing computes other random numbers the second time; take "
            "--gradient_checkpointing true."
        )
    if Version(accelerate.__version__) < Version(_MIN_ACCELERATE):
        raise InputError(f"FSDP needs accelerate {_MIN_ACCELERATE} or later: pip install --upgrade accelerate.")


def check_checkpoint_folders(args: KGLTrainingArguments, shared: bool) -> None:
    """
    Check that a checkpoint can be resumed from the folders of several hosts.

    Args:
        args: of the run.
        shared: whether all hosts share its folder.

    Raises:
        InputError: each host would have a part of the checkpoint.
    """
    if not shared and uses_fsdp(args) and _plugin(args).state_dict_type == StateDictType.SHARDED_STATE_DICT:
        raise InputError(
            "FSDP's SHARDED_STATE_DICT leaves a part of each checkpoint on every host, and they do not share "
            "--output_dir; give a shared folder, or accelerate launch --fsdp_state_dict_type FULL_STATE_DICT."
        )


def shards_on(device: torch.device) -> bool:
    """Return whether accelerate shards models on this kind of device; on CPUs it trains whole ones."""
    return device.type != "cpu"


def check_shardable(args: KGLTrainingArguments, model: KGLForImageClassification) -> None:
    """
    Check that FSDP can shard and train this model.

    Raises:
        InputError: half precision with batch norms, or no module to shard by.
    """
    if not uses_fsdp(args):
        return
    half = args.bf16 or args.fp16 or os.environ.get("ACCELERATE_MIXED_PRECISION", "no") != "no"
    if half and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        raise InputError(
            f"FSDP in half precision casts batch norms, which the backbone {model.config.backbone_config.model_type} "
            "has, and they cannot be; leave out either FSDP or --bf16, --fp16 and --mixed_precision."
        )
    try:
        copy.deepcopy(_plugin(args)).set_auto_wrap_policy(model)
    except ValueError as error:
        raise InputError(
            f'FSDP: {error} Shard the model as one with --fsdp_config \'{{"auto_wrap_policy": "NO_WRAP"}}\'.'
        ) from error


def _plugin(args: KGLTrainingArguments) -> FullyShardedDataParallelPlugin:
    """Return the settings of FSDP as the Trainer makes them."""
    return FullyShardedDataParallelPlugin(**(args.fsdp_plugin_args or {}))


def freeze_unused(model: KGLForImageClassification, size: tuple[int, int]) -> None:
    """
    Freeze parameters that no gradient reaches, such as the last norm of a Swin backbone.

    Without a gradient they have no state in the optimizer, and FSDP resumes only where every trained one has.

    Args:
        model: whole.
        size: height and width of the images.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    with eval_mode(model):
        output = model(torch.zeros(1, 3, *size, device=model.device))
        total = output.logits.sum() + output.saliency.sum()
        gradients = torch.autograd.grad(total, parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is not None)


def gather_model(model: KGLForImageClassification, device: torch.device) -> KGLForImageClassification | None:
    """
    Return a copy with all weights of a model that FSDP shards, None in other processes than the main one.

    All processes must call it.
    """
    weights = get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    if torch.distributed.get_rank() != 0:
        return None
    whole = KGLForImageClassification(model.config)
    whole.load_state_dict(weights)
    return whole.to(device)


__all__ = [
    "check_checkpoint_folders",
    "check_shardable",
    "check_sharding",
    "freeze_unused",
    "gather_model",
    "shards_on",
    "uses_fsdp",
]
