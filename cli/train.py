"""`kgl train`: train a classifier on a folder of images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, get_type_hints

from ..data.arguments import DataArguments
from ..knowledge.arguments import TrainPriorArguments
from ..training.arguments import (
    GuidanceArguments,
    LicenseArguments,
    ModelArguments,
    OperatingArguments,
    RecipeArguments,
    check_path_or_repo,
)
from .parser import DATA_SOURCES, CommandHelp, HelpGroup, images_to_flags, parse_settings, run_command


if TYPE_CHECKING:
    from ..training.training_args import Settings


HELP = CommandHelp(
    command="kgl train",
    usage="[IMAGES | RECIPE.yaml] [--config RECIPE.yaml] [--SETTING VALUE ...]",
    description="Train a defect classifier in two phases and write it with a report into a run folder. Flags win over "
    "the recipe. The same command resumes a stopped run.\n--help-all shows all settings, those of "
    "transformers.TrainingArguments among them.",
    example="kgl train images --image_height 256 --image_width 256 --output_dir runs/images",
    positional=("IMAGES", "a folder with one folder per class or a published layout, or a table of images and labels"),
    groups=(
        HelpGroup(
            "data",
            DataArguments,
            ("dataset", "image_column", "label_column", "hub_dataset", "defect_free_label", "on_bad_image",
             "validation_share", "num_folds", "fold", "train_per_class"),
        ),
        HelpGroup(
            "classifier",
            ModelArguments,
            ("backbone", "out_features", "image_height", "image_width", "fine_tune", "head"),
        ),
        HelpGroup(
            "training",
            RecipeArguments,
            ("output_dir", "max_steps", "num_train_epochs", "learning_rate", "per_device_train_batch_size", "seed",
             "bf16"),
        ),
        HelpGroup("rare defects", GuidanceArguments, ("balanced_sampling", "cls_loss", "class_weights")),
        HelpGroup("guidance", GuidanceArguments, ("kg_lambda", "kg_form")),
        HelpGroup("priors", TrainPriorArguments, ("prior_method",)),
        HelpGroup("threshold", OperatingArguments),
        HelpGroup("Hub", RecipeArguments, ("push_to_hub", "hub_model_id")),
    ),
)  # fmt: skip


def help_own() -> CommandHelp:
    """Return the help page of all settings of kgl."""
    groups = (
        HelpGroup("data", DataArguments),
        HelpGroup("classifier", ModelArguments),
        HelpGroup("training", RecipeArguments),
        HelpGroup("losses", GuidanceArguments),
        HelpGroup("priors", TrainPriorArguments),
        HelpGroup("threshold", OperatingArguments),
        HelpGroup("licences stated in the model card", LicenseArguments),
    )
    return replace(HELP, groups=groups)


def help_all() -> CommandHelp:
    """Return the help page of all settings, those of `transformers.TrainingArguments` too, but the refused ones."""
    from ..training.settings import UNSUPPORTED
    from ..training.training_args import KGLTrainingArguments

    own = {one.name for arguments in (RecipeArguments, GuidanceArguments) for one in fields(arguments)}
    others = [one.name for one in fields(KGLTrainingArguments) if one.name not in own | UNSUPPORTED.keys()]
    page = help_own()
    return replace(
        page, groups=(*page.groups, HelpGroup("transformers.TrainingArguments", KGLTrainingArguments, others))
    )


def parse(argv: Sequence[str]) -> Settings:
    """
    Parse `[IMAGES | RECIPE.yaml] [--flag value ...]`.

    Raises:
        InputError: an unknown recipe or setting, or a value that a setting does not take.
    """
    from ..training.training_args import Settings

    dataclasses = tuple(get_type_hints(Settings).values())
    return Settings(*parse_settings(HELP, argv, images_to_flags, DATA_SOURCES, dataclasses))


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    if "--help-all" in argv:
        print(help_all().format(), end="")
        return
    if "--help" in argv or "-h" in argv:
        print(HELP.format(), end="")
        return

    def job() -> None:
        settings = parse(argv)  # first, since a wrong setting need not wait for the imports of the job
        if settings.model.backbone is not None:
            check_path_or_repo("--backbone", settings.model.backbone)
        from ..data.processes import end_other_process
        from ..train import run

        run(settings)
        end_other_process()

    run_command(HELP.command, job)
