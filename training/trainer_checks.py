"""Checks that the Trainer takes its own settings, before anything is written."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from tempfile import TemporaryDirectory

import torch
from accelerate.utils import DynamoBackend
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer

from ..errors import InputError, format_count
from ..modeling_kgl import KGLForImageClassification
from .training_args import KGLTrainingArguments


_MAX_STEPS_TRIED = 1000  # of a schedule, from both ends


def check_trainer(args: KGLTrainingArguments, model: KGLForImageClassification, count: int) -> None:
    """
    Make a Trainer with its optimizer, its schedule and a compiled module in a temporary folder.

    Args:
        args: of the job.
        model: untrained; left as it is.
        count: of the training images.

    Raises:
        InputError: settings that the Trainer does not take.
    """
    tried = copy.copy(args)
    tried.report_to, tried.push_to_hub = [], False
    mode = "" if args.torch_compile_mode is None else f" --torch_compile_mode {args.torch_compile_mode}"
    compiler = f"--torch_compile_backend {args.torch_compile_backend}{mode}"
    with TemporaryDirectory() as folder:
        tried.output_dir = folder
        with _refusals(compiler):
            DynamoBackend((args.torch_compile_backend or "no").upper())
        with _refusals("The settings of transformers.TrainingArguments cannot be used"):
            trainer = Trainer(model=copy.deepcopy(model), args=tried, train_dataset=[{}])
        with _refusals("The data loader cannot be made"):
            trainer.get_train_dataloader()
        with _refusals(f"--optim {args.optim.value}"):
            _check_optimizer_args(tried, model)
            trainer.create_optimizer()
        _check_schedule(trainer, _count_steps(args, count))
        with _refusals(compiler):
            plugin = trainer.accelerator.state.dynamo_plugin
            if plugin.backend != DynamoBackend.NO:
                torch.compile(nn.Linear(1, 1).to(args.device), **plugin.to_kwargs())(
                    torch.zeros(1, 1, device=args.device)
                )


@contextmanager
def _refusals(what: str) -> Iterator[None]:
    """Turn what transformers, accelerate and torch raise for values of settings into an [`InputError`]."""
    try:
        yield
    except InputError:
        raise
    except (ArithmeticError, ImportError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        raise InputError(f"{what}: {reason or type(error).__name__}") from error


def _check_optimizer_args(args: KGLTrainingArguments, model: KGLForImageClassification) -> None:
    if args.optim_args is None:
        return
    pairs = args.optim_args.replace(" ", "").split(",")
    if not all(pair.count("=") == 1 for pair in pairs):
        raise InputError(f"--optim_args {args.optim_args}: give pairs such as decay_rate=-0.8,beta1=0.9.")
    without = copy.copy(args)
    without.optim_args = None
    kinds = [Trainer.get_optimizer_cls_and_kwargs(one, model) for one in (args, without)]
    if str(kinds[0]) == str(kinds[1]):
        raise InputError(f"--optim_args {args.optim_args}: --optim {args.optim.value} takes none of them.")


def _count_steps(args: KGLTrainingArguments, count: int) -> int:
    """Return the number of steps that the Trainer trains on so many images."""
    if args.max_steps > 0:
        return args.max_steps
    together = args.per_device_train_batch_size * args.world_size
    batches = count // together if args.dataloader_drop_last else math.ceil(count / together)
    return math.ceil(args.num_train_epochs * max(1, math.ceil(batches / args.gradient_accumulation_steps)))


def _check_schedule(trainer: Trainer, steps: int) -> None:
    """Compute the learning rates of the first and the last steps."""
    schedule = f"--lr_scheduler_type {trainer.args.lr_scheduler_type.value}"
    warmup = trainer.args.get_warmup_steps(steps)
    tried = {*range(min(steps, _MAX_STEPS_TRIED) + 1), *range(max(0, steps - _MAX_STEPS_TRIED), steps + 1)}
    trainer.lr_scheduler = None
    with _refusals(schedule):
        scheduler = trainer.create_scheduler(steps)
        try:
            for factor in scheduler.lr_lambdas if isinstance(scheduler, LambdaLR) else ():
                for step in tried:
                    float(factor(step))
        except ZeroDivisionError as error:
            if warmup < steps:
                raise
            raise InputError(
                f"{schedule}: warm-up takes all of its {format_count(steps, 'step')}; lower --warmup_steps or train "
                "for more steps."
            ) from error


__all__ = ["check_trainer"]
