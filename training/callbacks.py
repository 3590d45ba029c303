"""Trainer callbacks: complete checkpoints and sampler epochs."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from ..data.storage import write_json
from .sampler import BalancedSampler


_MARKER = "whole.json"  # the last file written into a checkpoint, and the first one removed


def last_complete_checkpoint(folder: Path) -> tuple[Path | None, float]:
    """The newest checkpoint that was written to its end and not begun to be deleted, and the seconds up to it."""
    whole = sorted(folder.glob(f"checkpoint-*/{_MARKER}"), key=lambda path: _step_of(path.parent))
    if not whole:
        return None, 0.0
    return whole[-1].parent, json.loads(whole[-1].read_text())["seconds"]


class CompleteCheckpointCallback(TrainerCallback):
    """
    Marks every checkpoint once all of it is written, with the seconds of training up to it, and then deletes old ones.

    The Trainer would delete before the new checkpoint can be marked: a kill in between would leave none.
    """

    def __init__(self, keep: int | None, seconds_before: float) -> None:
        self._keep = keep
        self._started = time.perf_counter() - seconds_before

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Called by the Trainer after it has written a checkpoint."""
        if not state.is_world_process_zero:
            return
        folder = Path(args.output_dir)
        seconds = time.perf_counter() - self._started
        write_json(folder / f"checkpoint-{state.global_step}" / _MARKER, {"seconds": seconds})
        if self._keep is not None:
            for old in sorted(folder.glob("checkpoint-*"), key=_step_of)[: -self._keep]:
                (old / _MARKER).unlink(missing_ok=True)
                shutil.rmtree(old)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])


class SamplerEpochCallback(TrainerCallback):
    """
    Callback that sets the sampler's epoch at the start of every epoch.

    accelerate's data loader sets it too, except in the resumed epoch of a run with several processes.
    """

    def __init__(self, sampler: BalancedSampler) -> None:
        self._sampler = sampler

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Set the epoch; for a resumed run, the one it was stopped in."""
        self._sampler.set_epoch(int(state.epoch))


__all__ = ["CompleteCheckpointCallback", "SamplerEpochCallback", "last_complete_checkpoint"]
