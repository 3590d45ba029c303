"""Make the saliency priors of a dataset's training split with a saved classifier."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from accelerate import PartialState
from datasets import Dataset

from kgl.cli.parser import parse_settings, run_command
from kgl.data.arguments import DataArguments
from kgl.data.loading import load_defect_dataset
from kgl.errors import InputError
from kgl.knowledge.arguments import PriorArguments
from kgl.knowledge.saliency_priors import write_saliency_priors
from kgl.training.model_init import load_classifier


@dataclass
class PriorPassArguments:
    """Which model makes the priors, and where they go."""

    model: str = field(metadata={"help": "A classifier saved by kgl-train: a folder or a Hub id."})
    output_dir: str = field(metadata={"help": "Gets priors/, the table of priors (datasets.load_from_disk)."})
    batch_size: int = field(default=16, metadata={"help": "Images a forward pass."})

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"--batch_size {self.batch_size}: it must be at least 1.")


def run(pass_args: PriorPassArguments, prior_args: PriorArguments, data_args: DataArguments) -> Dataset:
    """
    Write the priors of a dataset's training split to `output_dir/priors`, or go on with writing them.

    Where several processes do it, their group ends with it.
    """
    state = PartialState(cpu=not torch.cuda.is_available())
    folder = Path(pass_args.output_dir) / "priors"
    model, image_processor = load_classifier(pass_args.model)
    train = load_defect_dataset(data_args)["train"]
    priors = write_saliency_priors(
        train, model.to(state.device), image_processor, folder, pass_args.batch_size, prior_args
    )
    state.destroy_process_group()
    if state.is_main_process:
        print(f"Priors of {len(priors)} images in {folder}")
    return priors


def main() -> None:
    """The command `kgl-prior`."""
    dataclasses = (PriorPassArguments, PriorArguments, DataArguments)
    run_command("kgl-prior", lambda: run(*parse_settings("kgl-prior", dataclasses, sys.argv[1:])))


__all__ = ["PriorPassArguments", "main", "run"]


if __name__ == "__main__":
    main()
