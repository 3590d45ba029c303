"""Trainer callbacks: termination after a step, one progress bar, sampler epochs."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import reduce
from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..data.progress import progress_bar
from .collator import DefectCollator
from .feature_cache import FrozenFeatureCollator
from .sampler import BalancedSampler, ShardSampler


class TerminationCallback(TrainerCallback):
    """
    Save a checkpoint and stop after the step in which any process gets SIGTERM, as when a node is preempted.

    Within [`TerminationCallback.watching`] the first signal waits for the end of the step; a second one ends the
    process as without the callback.
    """

    def __init__(self) -> None:
        self.stopped = False
        self._asked = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Take SIGTERM for the callback; only the main thread of a process can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before, process = signal.getsignal(signal.SIGTERM), os.getpid()

        def ask(number: int, frame: object) -> None:
            if os.getpid() != process:  # a worker forked from it
                os._exit(128 + number)
            self._asked = True
            signal.signal(signal.SIGTERM, before)

        signal.signal(signal.SIGTERM, ask)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, before)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Stop where any process was asked to."""
        if any_process(self._asked):
            control.should_save = control.should_training_stop = self.stopped = True


def any_process(value: bool) -> bool:
    """Return whether the value is true in any process; all must call it."""
    state = PartialState()
    if state.num_processes == 1:
        return value
    return bool(reduce(torch.tensor(float(value), device=state.device)).item() > 0)


class ProgressBarCallback(TrainerCallback):
    """One progress bar per phase with the last loss, on a terminal only."""

    def __init__(self, title: str) -> None:
        self._title = title
        self._bar: tqdm | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Open the bar."""
        self._bar = progress_bar(
            title=self._title,
            total=state.max_steps,
            initial=state.global_step,
            disable=not state.is_world_process_zero,
        )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Advance the bar."""
        if self._bar is not None:
            self._bar.update(state.global_step - self._bar.n)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the last loss."""
        if self._bar is not None and logs is not None and "loss" in logs:
            self._bar.set_postfix(loss=f"{float(logs['loss']):.3f}")

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        if self._bar is not None:
            self._bar.close()


class SamplerEpochCallback(TrainerCallback):
    """
    Callback that sets the sampler's epoch at the start of every epoch.

    accelerate's data loader sets it too, except in the resumed epoch of a run with several processes.
    """

    def __init__(self, sampler: BalancedSampler | ShardSampler) -> None:
        self._sampler = sampler

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the epoch; for a resumed run, the one it was stopped in."""
        self._sampler.set_epoch(int(state.epoch))


class CollatorEpochCallback(TrainerCallback):
    """Callback that sets the epoch which a collator draws its augmentation by."""

    def __init__(self, collator: DefectCollator | FrozenFeatureCollator) -> None:
        self._collator = collator

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the epoch; for a resumed run, the one it was stopped in."""
        self._collator.epoch.fill_(int(state.epoch))


__all__ = [
    "CollatorEpochCallback",
    "ProgressBarCallback",
    "SamplerEpochCallback",
    "TerminationCallback",
    "any_process",
]
