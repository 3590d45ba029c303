"""Checkpoints of a phase: listed in the run's state once complete, checked before one is resumed from."""

from __future__ import annotations

import hashlib
import shutil
import time
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .run_dir import RunState


_PIECE = 2**20


class CompleteCheckpointCallback(TrainerCallback):
    """
    List every checkpoint in the run's state once all of it is written, and delete old ones afterwards.

    The Trainer would delete before the new checkpoint is known to be complete: a kill in between would leave none.

    Args:
        state: of the run.
        phase: the phase that is trained.
        keep: how many checkpoints to keep, None for all.
        seconds_before: training time before the checkpoint that this process resumed from.
        deletes: whether this process deletes old checkpoints: one on each host that has a folder of its own.
    """

    def __init__(
        self, state: RunState, phase: str, keep: int | None, seconds_before: float, deletes: bool = True
    ) -> None:
        self._state, self._phase, self._keep, self._deletes = state, phase, keep, deletes
        self._started = time.perf_counter() - seconds_before

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """List the checkpoint once the Trainers of all processes have written their files of it."""
        PartialState().wait_for_everyone()
        folder = Path(args.output_dir)
        checkpoint = {"step": state.global_step, "seconds": time.perf_counter() - self._started}
        if state.is_world_process_zero:  # whose list is the one on the disk
            checkpoint["files"] = file_digests(folder / f"checkpoint-{state.global_step}")
        earlier = [one for one in self._state.checkpoints(self._phase) if one["step"] < state.global_step]
        listed = [*earlier, checkpoint]
        kept = listed if self._keep is None else listed[-max(self._keep, 1) :]
        self._state.set_checkpoints(self._phase, kept)
        if self._keep is not None and self._deletes:
            delete_checkpoints(folder, keep=[one["step"] for one in kept])


def delete_checkpoints(folder: Path, keep: list[int]) -> None:
    """Delete the checkpoints of a phase's folder but the steps in `keep`."""
    for checkpoint in folder.glob("checkpoint-*"):
        if int(checkpoint.name.rpartition("-")[2]) not in keep:
            shutil.rmtree(checkpoint)


def file_digests(folder: Path) -> dict[str, str]:
    """Return the digest of each file of a folder by its relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): _file_digest(path) for path in files}


def _file_digest(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
    return digest.hexdigest()


def last_good_checkpoint(state: RunState, phase: str, folder: Path) -> dict[str, Any] | None:
    """
    Return the last listed checkpoint of a phase whose files are all as they were written, None without one.

    The main process checks, and says which ones are damaged; all processes return the same.

    Args:
        state: of the run.
        phase: the phase that is trained.
        folder: of the phase.
    """
    found = [None]
    if PartialState().is_main_process:
        for number, checkpoint in reversed(list(enumerate(state.checkpoints(phase)))):
            path = folder / f"checkpoint-{checkpoint['step']}"
            damage = _find_damage(path, checkpoint.get("files", {}))  # earlier versions stored no digests
            if damage is None:
                found = [checkpoint]
                break
            instead = "the checkpoint before it is taken" if number > 0 else "training begins anew"
            print(f"{path}: {damage}; {instead}.")
    broadcast_object_list(found)
    return found[0]


def _find_damage(checkpoint: Path, digests: dict[str, str]) -> str | None:
    if not checkpoint.is_dir():
        return "the checkpoint is missing"
    for name, digest in digests.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if _file_digest(path) != digest:
            return f"{name} is damaged"
    return None


__all__ = ["CompleteCheckpointCallback", "delete_checkpoints", "file_digests", "last_good_checkpoint"]
