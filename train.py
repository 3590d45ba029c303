"""The two-phase training job: primary classifier, priors, final classifier, evaluation."""

from __future__ import annotations

import copy
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from kgl.data.loading import LoadedDataset, read_defect_dataset
from kgl.data.processes import HostWatch, leave_process_group, run_on_all_processes, share_from_main_process
from kgl.data.progress import disable_progress_bars
from kgl.data.storage import full_disk_as_input_error, write_json
from kgl.data.summary import print_loaded_dataset
from kgl.errors import format_count
from kgl.evaluation.advice import missing_threshold
from kgl.evaluation.calibration import calibrate_model, without_scores
from kgl.evaluation.run_outputs import Evaluation, evaluate_models, print_results, write_outputs
from kgl.evaluation.training_range import set_training_range
from kgl.evaluation.training_range_report import TRAINING_IMAGES_FILE, write_image_values
from kgl.evaluation.validation_scores import VALIDATION_FILE, write_validation_scores
from kgl.hub.model_card import write_card
from kgl.hub.push import check_login, push
from kgl.knowledge.prior_columns import with_priors
from kgl.knowledge.priors import resolve_source
from kgl.modeling_kgl import KGLForImageClassification
from kgl.training.checkpoints import delete_checkpoints
from kgl.training.frozen_features import CELLS_FILE, fit_cells
from kgl.training.frozen_phases import FrozenInputs, cache_features, fit_phase
from kgl.training.model_init import (
    build_model,
    check_model,
    make_image_processor,
    resolve_freeze_stages,
    resolve_out_features,
    with_cells,
)
from kgl.training.run_dir import CACHE_FOLDER, RunState, claim_on_hosts, leave_host, read_state, strip_paths
from kgl.training.settings import (
    UNDECIDING,
    check_settings,
    check_trainable,
    default_output_dir,
    installed_versions,
    repository_name,
    run_settings,
)
from kgl.training.training_args import Settings
from kgl.training.tuned_stage import check_tunable, tune_stage, tuned_model_args
from kgl.training.two_phase import (
    Inputs,
    Priors,
    Recipe,
    TrainedPhase,
    cache_inputs,
    make_priors,
    run_phase_1,
    run_phase_2,
)


Phases = tuple[Inputs | FrozenInputs, TrainedPhase, Priors, TrainedPhase]


@dataclass(frozen=True)
class Job:
    """
    A checked job.

    Attributes:
        settings: all of them, with what was recognised filled in.
        data: the splits.
        recipe: how both classifiers are trained.
        stored: the settings and the data's fingerprints, as `run.json` and `metrics.json` hold them.
        new_cell_model: builds the pretrained model whose cells good parts are learned from.
        new_tuned_model: builds the classifier whose stage is fine-tuned for the final one.
    """

    settings: Settings
    data: LoadedDataset
    recipe: Recipe
    stored: dict[str, dict[str, Any]]
    new_cell_model: Callable[[], KGLForImageClassification]
    new_tuned_model: Callable[[], KGLForImageClassification]

    @property
    def output_dir(self) -> Path:
        """The run's folder."""
        return self.recipe.output_dir

    @property
    def is_main_process(self) -> bool:
        """Whether this process prints and writes."""
        return self.settings.training.process_index == 0


def run(settings: Settings) -> dict[str, Any]:
    """
    Train a primary classifier, make its priors, train the final classifier, and evaluate both.

    Steps that are finished in the output folder are not done again. With several processes, the group ends with the
    last training step; the main process goes on alone.

    Returns:
        The content of `metrics.json`: `results` of `primary` and `final`, their differences, settings and versions.
        Nothing in other processes than the main one.

    Raises:
        InputError: an input that cannot be used, or an output folder that holds another run.
    """
    HostWatch.start("kgl train")
    job = run_on_all_processes(lambda: prepare(settings))
    state, held = open_run(job)
    if is_finished(job, state):
        return reopen(job, held)
    with full_disk_as_input_error(job.output_dir):
        return run_steps(job, state, held)


def run_steps(job: Job, state: RunState, held: FileLock | None) -> dict[str, Any]:
    """Run the steps of a job that are not finished, and return the content of `metrics.json`."""
    if job.is_main_process:
        print_loaded_dataset(job.data, job.settings.model.size)
    by_steps = job.settings.model.fine_tune and not job.settings.model.tunes_stage
    inputs, primary, priors, final = (train_phases if by_steps else fit_phases)(job, state)
    # A process that ends with its group standing may abort, and end the others' work.
    leave_process_group()
    if not job.is_main_process:
        leave_host(job.output_dir, held)
        return {}
    print(f"Evaluation on {format_count(len(job.data.splits['test']), 'test image')}, and the report ...")
    evaluation = evaluate(job, primary, final)
    report = write_run(job, inputs, primary, priors, final, evaluation)
    state.finish("report")
    finish(job, report, held)
    return report


def prepare(settings: Settings) -> Job:
    """
    Read and check everything before anything is written.

    Raises:
        InputError: an input that cannot be used.
    """
    training = copy.copy(settings.training)
    if training.output_dir == "trainer_output":  # transformers' name where none is given
        training.output_dir = default_output_dir(settings.data)
    settings = settings._replace(training=training)
    check_settings(settings)
    if training.push_to_hub and training.process_index == 0:
        check_login(training.hub_token)
    if training.disable_tqdm:
        disable_progress_bars()
    data = read_defect_dataset(settings.data)
    train = data.splits["train"]
    # What is recognised is part of the run like what is given.
    data_args = replace(settings.data, dataset=data.dataset, defect_free_label=data.defect_free_label)
    model_args = replace(settings.model, out_features=resolve_out_features(settings.model))
    image_processor = make_image_processor(model_args)

    def new_model() -> KGLForImageClassification:
        return build_model(model_args, data.class_names, data.defect_free_label)

    def new_cell_model() -> KGLForImageClassification:
        return build_model(with_cells(model_args), data.class_names, data.defect_free_label)

    def new_tuned_model() -> KGLForImageClassification:
        return build_model(tuned_model_args(model_args), data.class_names, data.defect_free_label)

    source = resolve_source(
        settings.prior.prior_source, train, data.defect_free_label, settings.model.backbone is not None
    )
    settings = settings._replace(prior=replace(settings.prior, prior_source=source))
    model = new_model()
    check_model(model, model_args.size, settings.prior)
    if model_args.fine_tune:
        if model_args.tunes_stage:
            check_tunable(model)
            model = new_tuned_model()
        if settings.data.streaming:  # features of frozen stages would be kept on the disk
            model_args = replace(model_args, freeze_stages=0)
        model_args = replace(model_args, freeze_stages=resolve_freeze_stages(model, model_args))
        check_trainable(training, model, model_args.size, len(train))
    settings = settings._replace(data=data_args, model=model_args)

    def calibrate(model: KGLForImageClassification) -> dict[str, Any] | None:
        batch_size, validation = training.per_device_eval_batch_size, data.splits.get("validation")
        values = set_training_range(model, train, image_processor, batch_size)
        if values is not None:  # the final classifier's replace the primary's
            write_image_values(Path(training.output_dir) / TRAINING_IMAGES_FILE, "training", values)
        if not validation:
            return None
        return calibrate_model(model, validation, image_processor, batch_size, settings.operating)

    recipe = Recipe(new_model, image_processor, training, calibrate)
    return Job(settings, data, recipe, run_settings(settings, data.splits), new_cell_model, new_tuned_model)


def open_run(job: Job) -> tuple[RunState, FileLock | None]:
    """
    Claim the output folder, and return the state of its steps and the lock of a process that writes.

    Raises:
        InputError: the folder holds another run or other files, another process uses it, or it cannot be written to;
            or hosts have other images or settings.
    """
    held = claim_on_hosts(job.output_dir, job.stored, ignored=UNDECIDING)
    return read_state(job.output_dir), held


def is_finished(job: Job, state: RunState) -> bool:
    """Return whether the run has its report; a deleted `metrics.json` is made again."""
    return share_from_main_process(
        lambda: state.record("report") is not None and (job.output_dir / "metrics.json").exists()
    )


def reopen(job: Job, held: FileLock | None) -> dict[str, Any]:
    """Print the results of a finished run, and push it where asked."""
    leave_process_group()
    if not job.is_main_process:
        leave_host(job.output_dir, held)
        return {}
    report = json.loads((job.output_dir / "metrics.json").read_text(encoding="utf-8"))
    print(f"{job.output_dir} holds this run, finished before.")
    finish(job, report, held)
    return report


def fit_phases(job: Job, state: RunState) -> Phases:
    """Fit both classifiers' heads to frozen features; with --fine_tune true the final one gets a tuned stage."""
    train, model_args = job.data.splits["train"], job.settings.model
    inputs = cache_features(train, job.recipe, state)
    primary = fit_phase("primary", "Phase 1, primary classifier", inputs, job.recipe, state)
    priors = make_priors(inputs.rows, primary, job.recipe, state, job.settings.prior, lambda: inputs.model)
    if job.is_main_process:
        print_priors(job, priors)
    tuned = None
    if model_args.tunes_stage:
        tuned = tune_stage(train, job.recipe, state, model_args, job.new_tuned_model)
    final = fit_phase("final", "Phase 2, final classifier", inputs, job.recipe, state, priors, tuned)
    return inputs, primary, priors, final if tuned is None else replace(final, seconds=final.seconds + tuned.seconds)


def train_phases(job: Job, state: RunState) -> Phases:
    """Train both classifiers by steps."""
    train, settings, recipe = job.data.splits["train"], job.settings, job.recipe
    inputs = cache(job, state)
    primary = run_phase_1(inputs, recipe, state)

    def new_cell_model() -> KGLForImageClassification:
        model = replace(recipe, new_model=job.new_cell_model).initial_model().to(recipe.args.device)
        batch_size, file = recipe.args.per_device_eval_batch_size, job.output_dir / CACHE_FOLDER / CELLS_FILE
        fit_cells(model, train, recipe.image_processor, batch_size, recipe.args.seed, file)
        return model

    priors = make_priors(train, primary, recipe, state, settings.prior, new_cell_model)
    if job.is_main_process:
        print_priors(job, priors)
    return inputs, primary, priors, run_phase_2(inputs, priors, recipe, state)


def cache(job: Job, state: RunState) -> Inputs:
    """Cache what both phases train on."""
    model_args = job.settings.model
    return cache_inputs(
        job.data.splits["train"],
        job.recipe,
        state,
        phases=["primary", "final"],
        augment=model_args.augment,
        freeze_stages=model_args.freeze_stages,
        views=model_args.frozen_views,
        resize_once=job.settings.data.decode_once and not job.settings.data.streaming,
    )


def print_priors(job: Job, priors: Priors) -> None:
    """Print how the priors were made."""
    prior = job.settings.prior
    source = {
        "saliency": f"{prior.prior_method} maps of the primary",
        "good_parts": "distances from good parts",
        "both": f"agreement of {prior.prior_method} maps and distances from good parts",
    }[prior.prior_source]
    print(f"Priors: {source}, {format_count(len(priors.table), 'training image')}.")


def evaluate(job: Job, primary: TrainedPhase, final: TrainedPhase) -> Evaluation:
    """Load both classifiers and evaluate them on the test images."""
    models = {
        name: KGLForImageClassification.from_pretrained(phase.folder).to(job.recipe.args.device)
        for name, phase in (("primary", primary), ("final", final))
    }
    batch_size = job.recipe.args.per_device_eval_batch_size
    return evaluate_models(
        models, job.data.splits["test"], job.recipe.image_processor, job.settings.model.size, batch_size
    )


def write_run(
    job: Job,
    inputs: Inputs | FrozenInputs,
    primary: TrainedPhase,
    priors: Priors,
    final: TrainedPhase,
    evaluation: Evaluation,
) -> dict[str, Any]:
    """Write metrics, scores, predictions, image grids, report and model card; return `metrics.json`'s content."""
    phases = {"primary": primary, "final": final}
    seconds = {
        "feature_cache": inputs.seconds,
        "primary": primary.seconds,
        "priors": priors.seconds,
        "final": final.seconds,
    }
    results = evaluation.results
    results["primary"]["seconds"] = seconds["feature_cache"] + seconds["primary"]
    results["final"]["seconds"] = sum(seconds.values())
    report = {
        "results": results,
        "differences": evaluation.differences,
        "validation": {name: without_scores(phase.validation) for name, phase in phases.items()},
        "seconds": seconds,
        "images": {name: len(split) for name, split in job.data.splits.items()},
        "issues": [asdict(issue) for issue in job.data.issues],
        "settings": strip_paths(job.stored),
        "licenses": asdict(job.settings.licenses),
        "versions": installed_versions(),
    }
    scores = {name: (phase.validation or {}).get("defect_scores") for name, phase in phases.items()}
    if None not in scores.values():  # of a phase that an earlier version trained there are none
        write_validation_scores(job.output_dir / VALIDATION_FILE, job.data.splits["validation"], scores)
    write_outputs(  # the report reads the validation scores
        job.output_dir,
        report,
        evaluation,
        with_priors(inputs.rows, priors.table),
        job.data.splits["test"],
        job.recipe.image_processor,
        job.settings.prior,
        job.data.source_groups,
    )
    write_card(job.output_dir, report)
    write_json(job.output_dir / "metrics.json", report)
    return report


def finish(job: Job, report: dict[str, Any], held: FileLock) -> None:
    """Delete what only an unfinished run needs, print the results, release the folder, and push where asked."""
    shutil.rmtree(job.output_dir / CACHE_FOLDER, ignore_errors=True)
    training = job.settings.training
    if not training.keep_checkpoints:
        for phase in job.output_dir.iterdir():
            if phase.is_dir():
                delete_checkpoints(phase, keep=[])
    print_results(report, job.output_dir)
    if sentence := missing_threshold(report):
        print(sentence)
    held.release()
    if training.push_to_hub:
        address = push(
            job.output_dir,
            repository_name(training),
            job.settings.licenses,
            private=training.hub_private_repo is not False,  # None too: public only when asked for
            token=training.hub_token,
            revision=training.hub_revision,
        )
        print(f"Pushed in one commit: {address}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run `kgl train`, also as `accelerate launch train.py`."""
    from kgl.cli import train as command

    command.main(sys.argv[1:] if argv is None else argv)


__all__ = ["Job", "main", "prepare", "run"]


if __name__ == "__main__":
    main()
