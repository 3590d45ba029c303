"""Make the saliency priors of a dataset's training split with a saved classifier."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from datasets import Dataset

from kgl.data.arguments import DataArguments
from kgl.data.loading import load_defect_dataset
from kgl.data.processes import join_processes, leave_process_group, run_on_all_processes
from kgl.data.schema import dataset_fingerprint
from kgl.data.storage import full_disk_as_input_error
from kgl.errors import format_count
from kgl.knowledge.arguments import PriorArguments, PriorPassArguments
from kgl.knowledge.saliency_priors import model_digest, write_saliency_priors
from kgl.training.model_init import load_classifier
from kgl.training.run_dir import claim_on_hosts, leave_host


def run(pass_args: PriorPassArguments, prior_args: PriorArguments, data_args: DataArguments) -> Dataset:
    """
    Write the priors of a dataset's training split to `output_dir/priors`, or resume writing them.

    With several processes, their group ends with it.

    Returns:
        The table of priors.

    Raises:
        InputError: an input that cannot be used, or an output folder that holds something else.
    """
    state = join_processes("kgl prior")
    output = Path(pass_args.output_dir)
    model, image_processor = run_on_all_processes(lambda: load_classifier(pass_args.model))
    train = run_on_all_processes(lambda: load_defect_dataset(data_args)["train"])
    settings = {
        "model": model_digest(model),
        "image_processor": image_processor.to_dict(),
        "images": dataset_fingerprint(train),
        **asdict(prior_args),
    }
    held = claim_on_hosts(output, {"priors": settings})
    with full_disk_as_input_error(output):
        priors = write_saliency_priors(
            train, model.to(state.device), image_processor, output / "priors", pass_args.batch_size, prior_args
        )
    leave_process_group()
    leave_host(output, held)
    if state.is_main_process:
        print(f"Priors of {format_count(len(priors), 'image')} in {output / 'priors'}")
        held.release()
    return priors


def main(argv: Sequence[str] | None = None) -> None:
    """Run `kgl prior`, also as `accelerate launch prior.py`."""
    from kgl.cli import prior as command

    command.main(sys.argv[1:] if argv is None else argv)


__all__ = ["main", "run"]


if __name__ == "__main__":
    main()
