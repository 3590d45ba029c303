"""Training with smaller batches where memory runs out."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from ..errors import InputError, format_count
from .training_args import KGLTrainingArguments


Result = TypeVar("Result")


def halve_batches(train: Callable[[KGLTrainingArguments], Result], args: KGLTrainingArguments, title: str) -> Result:
    """
    Train, and where memory runs out again with smaller batches, over which gradients are accumulated.

    A step sees as many images as before: the smaller batch is at most half the size, and divides it.

    Args:
        train: trains with the arguments that it is given, from the last checkpoint where there is one.
        args: to begin with; without `auto_find_batch_size` nothing is tried again.
        title: what the terminal calls the phase.

    Raises:
        InputError: memory runs out with one image a batch, or in one of several processes, which would no longer
            train the same batch.
    """
    size = args.per_device_train_batch_size
    try:
        return train(args)
    except RuntimeError as error:
        if not should_reduce_batch_size(error):
            raise
        if not args.auto_find_batch_size or args.world_size > 1 or size == 1:
            advice = "smaller images" if size == 1 else "a smaller one with more --gradient_accumulation_steps"
            raise InputError(
                f"--per_device_train_batch_size {size}: memory ran out; give {advice}. Saved steps are kept."
            ) from error
    clear_device_cache(garbage_collection=True)
    halved = copy.copy(args)
    halved.per_device_train_batch_size = max(part for part in range(1, size) if size % part == 0)
    halved.gradient_accumulation_steps *= size // halved.per_device_train_batch_size
    print(
        f"{title}: memory ran out with {size} images a batch. A step now accumulates the gradients of "
        f"{halved.gradient_accumulation_steps} batches of {format_count(halved.per_device_train_batch_size, 'image')}."
    )
    return halve_batches(train, halved, title)


__all__ = ["halve_batches"]
