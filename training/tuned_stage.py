"""The fine-tuned stage of a classifier on frozen features: trained apart by steps, then joined to the fitted heads."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

from datasets import Dataset

from ..errors import InputError
from ..heads_kgl import KGLTunedStage
from ..modeling_kgl import KGLForImageClassification
from .arguments import ModelArguments
from .run_dir import RunState
from .two_phase import Recipe, TrainedPhase, cache_inputs, train_phase


def tuned_model_args(model_args: ModelArguments) -> ModelArguments:
    """Return the settings of the paper's classifier on the stage behind the first output, which is the one to tune."""
    outputs = model_args.out_features
    return replace(model_args, head="avg_max", out_features=outputs and outputs[1:2])


def check_tunable(model: KGLForImageClassification) -> None:
    """
    Check that one stage of the backbone can be tuned apart.

    Raises:
        InputError: the backbone is no ResNet, or its outputs leave a stage out.
    """
    try:
        KGLTunedStage.original(model.backbone)
    except ValueError as error:
        raise InputError(f"--fine_tune true: {error} Give --head avg_max, which trains all upper stages.") from error


def tune_stage(
    train: Dataset,
    recipe: Recipe,
    state: RunState,
    model_args: ModelArguments,
    new_model: Callable[[], KGLForImageClassification],
) -> TrainedPhase:
    """
    Train the stage on image labels into the run's folder `tuned`, from its last checkpoint where there is one.

    Args:
        train: the training images.
        recipe: of the run.
        state: of the run; records the phase as `tuned`.
        model_args: with the number of stages to freeze.
        new_model: builds the classifier that [`tuned_model_args`] describe.

    Raises:
        InputError: there is no space for the cache, or training diverged.
    """
    recipe = replace(recipe, new_model=new_model, calibrate=lambda model: None)
    inputs = cache_inputs(
        train, recipe, state, phases=["tuned"], augment=model_args.augment, freeze_stages=model_args.freeze_stages,
        views=model_args.frozen_views, resize_once=False,
    )  # fmt: skip
    trained = train_phase("tuned", "Fine-tuned stage", inputs.rows, inputs, recipe, state)
    return replace(trained, seconds=inputs.seconds + trained.seconds)


def join_tuned_stage(model: KGLForImageClassification, tuned: KGLForImageClassification) -> KGLForImageClassification:
    """
    Return a classifier with fitted heads and a fine-tuned stage, whose probabilities are averaged.

    Args:
        model: with fitted heads; its temperature goes into their weights.
        tuned: as [`tune_stage`] trained it.
    """
    config = copy.deepcopy(model.config)
    config.tuned_stage, config.temperature = True, 1.0
    joined = KGLForImageClassification(config).to(model.device).eval()
    weights = model.state_dict()
    for name in ("classifier.weight", "classifier.bias"):
        weights[name] = weights[name] / model.config.temperature
    parts = {"stage": tuned.backbone.encoder.stages[-1], "saliency_head": tuned.saliency_head,
             "classifier": tuned.classifier}  # fmt: skip
    for part, module in parts.items():
        weights |= {f"tuned.{part}.{name}": value for name, value in module.state_dict().items()}
    joined.load_state_dict(weights)
    return joined


__all__ = ["check_tunable", "join_tuned_stage", "tune_stage", "tuned_model_args"]
