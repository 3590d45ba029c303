"""Trainer callbacks: complete checkpoints, one progress bar, sampler epochs."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..data.progress import progress_bar
from .run_dir import RunState
from .sampler import BalancedSampler, ShardSampler


class CompleteCheckpointCallback(TrainerCallback):
    """
    List every checkpoint in the run's state once all of it is written, and delete old ones afterwards.

    The Trainer would delete before the new checkpoint is known to be complete: a kill in between would leave none.

    Args:
        state: of the run.
        phase: the phase that is trained.
        keep: how many checkpoints to keep, None for all.
        seconds_before: training time before the checkpoint that this process resumed from.
    """

    def __init__(self, state: RunState, phase: str, keep: int | None, seconds_before: float) -> None:
        self._state, self._phase, self._keep = state, phase, keep
        self._started = time.perf_counter() - seconds_before

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """List the checkpoint that the Trainer has written."""
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir)
        checkpoint = {"step": state.global_step, "seconds": time.perf_counter() - self._started}
        earlier = [one for one in self._state.checkpoints(self._phase) if one["step"] < state.global_step]
        listed = [*earlier, checkpoint]
        kept = listed if self._keep is None else listed[-max(self._keep, 1) :]
        self._state.set_checkpoints(self._phase, kept)
        if self._keep is not None:
            delete_checkpoints(folder, keep=[one["step"] for one in kept])


def delete_checkpoints(folder: Path, keep: list[int]) -> None:
    """Delete the checkpoints of a phase's folder but the steps in `keep`."""
    for checkpoint in folder.glob("checkpoint-*"):
        if int(checkpoint.name.rpartition("-")[2]) not in keep:
            shutil.rmtree(checkpoint)


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


__all__ = ["CompleteCheckpointCallback", "ProgressBarCallback", "SamplerEpochCallback", "delete_checkpoints"]
