"""Arguments of the training job; importing them needs neither torch nor transformers."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import InputError, check_choices, expand_home


DEFAULT_BACKBONE = "microsoft/resnet-18"
KGL_TINY = "kgl-tiny"  # the backbone that comes with kgl
DEFAULT_STEPS = 500  # per phase; the length that the evidence was measured at
HEADS = ("stages", "avg_max")
FORMS = ("additive", "convex")
CLASSIFICATION_LOSSES = ("cross_entropy", "focal")
CLASS_WEIGHTS = ("none", "balanced")


def check_repo_id(repo: str) -> None:
    """
    Check the name of a repository.

    Raises:
        InputError: no repository can have this name.
    """
    # Imported here to keep the command line's help fast.
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise InputError(f"{repo}: this is no valid repository name. {error}") from error


def check_path_or_repo(flag: str, model: str) -> None:
    """
    Check that a model that can only be a path exists: the Hub would be asked for it, several times.

    A path is what is no valid name of a repository, or what lies in a folder that exists here.

    Args:
        flag: that the model is given by, for the message.
        model: a folder, a Hub id or `timm/NAME`.

    Raises:
        InputError: there is no such folder.
    """
    path = Path(model)
    if path.exists() or model.startswith("timm/"):
        return
    is_path = path.parent != Path() and path.parent.is_dir()
    if not is_path:
        try:
            check_repo_id(model)
        except InputError:
            is_path = True
    if is_path:
        raise InputError(f"{flag} {model}: there is no such folder.")


@dataclass
class ModelArguments:
    """The classifier, the same in both phases."""

    backbone: str | None = field(
        default=None,
        metadata={
            "help": f"Pretrained backbone: a folder, a Hub id, timm/NAME, or {KGL_TINY}, a small one that comes with "
            f"kgl and needs no connection ({DEFAULT_BACKBONE} by default).",
        },
    )
    backbone_config: dict | str | None = field(
        default=None,
        metadata={"help": "Configuration of a backbone to train from scratch, as JSON with its model_type."},
    )
    out_features: list[str] | None = field(
        default=None,
        metadata={
            "help": "Backbone stages to use, finest first (stage2 stage3); by default the last three of a pretrained "
            "backbone of three or four (--head avg_max: stage3 of a ResNet), and the last stage of any other."
        },
    )
    head: str | None = field(
        default=None,
        metadata={
            "help": "stages: the classifier pools every stage, and H is made of fine cells; avg_max: the paper's. By "
            "default stages with a pretrained backbone, avg_max without.",
            "choices": list(HEADS),
        },
    )
    fine_tune: bool | None = field(
        default=None,
        metadata={
            "help": "Train by steps, in minutes. --head stages: a copy of one stage of a pretrained ResNet, beside "
            "the heads on frozen features; avg_max, or no pretrained backbone: both classifiers. By default false "
            "with a pretrained backbone, whose heads are fitted in seconds, and true without."
        },
    )
    fusion_size: int = field(
        default=256, metadata={"help": "--head avg_max: channels that several stages are projected to."}
    )
    freeze_stages: int | None = field(
        default=None,
        metadata={
            "help": "Freeze the backbone's stem and this many stages and cache their features, so that an epoch takes "
            "a fraction of the time; by default 2 where the backbone is pretrained and allows it, else 0."
        },
    )
    frozen_views: int = field(default=8, metadata={"help": "With frozen stages: augmented views cached per image."})
    image_height: int = field(default=160, metadata={"help": "Images are resized to this height."})
    image_width: int = field(default=160, metadata={"help": "Images are resized to this width."})
    augment: bool = field(
        default=True, metadata={"help": "Augment with flips, small affine moves, brightness and contrast."}
    )

    def __post_init__(self) -> None:
        check_choices(self, {"head": (None, *HEADS)})
        expand_home(self, "backbone")
        if self.backbone is not None and self.backbone_config is not None:
            raise InputError("Give either --backbone (pretrained) or --backbone_config (from scratch), not both.")
        if min(self.image_height, self.image_width) < 1:
            raise InputError(
                f"--image_height {self.image_height} --image_width {self.image_width}: images have at least one pixel."
            )
        if self.frozen_views < 1:
            raise InputError(f"--frozen_views {self.frozen_views}: it must be at least 1.")
        if self.backbone is None and self.backbone_config is None:
            self.backbone = DEFAULT_BACKBONE
        if self.head is None:
            self.head = "avg_max" if self.backbone is None else "stages"
        if self.fine_tune is None:
            self.fine_tune = self.backbone is None
        if not self.fine_tune and self.head == "avg_max":
            raise InputError("--head avg_max goes with --fine_tune true: the paper trains the backbone.")
        if not self.fine_tune and self.backbone is None:
            raise InputError("--fine_tune false goes with --backbone: untrained features are worth nothing.")

    @property
    def tunes_stage(self) -> bool:
        """Whether one stage is fine-tuned, beside heads on frozen features."""
        return self.fine_tune and self.head == "stages" and self.backbone is not None

    @property
    def size(self) -> tuple[int, int]:
        """Height and width that images are resized to."""
        return self.image_height, self.image_width


@dataclass
class GuidanceArguments:
    """The knowledge-guided loss and the classification loss beside it."""

    kg_lambda: float = field(
        default=0.3, metadata={"help": "Guidance weight lambda at the start; it falls linearly to 0."}
    )
    kg_form: str = field(
        default="additive",
        metadata={
            "help": "additive: L_cls + lambda L_kg; convex (the paper): (1 - lambda) L_cls + lambda L_kg.",
            "choices": list(FORMS),
        },
    )
    kg_positive_weight: float | None = field(
        default=None,
        metadata={
            "help": "Weight of a defect cell of H over another cell; by default both kinds have equal weight in sum "
            "over the training set."
        },
    )
    cls_loss: str = field(
        default="cross_entropy",
        metadata={
            "help": "Classification loss of both phases: cross_entropy, or focal (gamma 2) for rare defects.",
            "choices": list(CLASSIFICATION_LOSSES),
        },
    )
    class_weights: str = field(
        default="none",
        metadata={
            "help": "Weight of each class in the classification loss: none, or balanced (inverse frequency).",
            "choices": list(CLASS_WEIGHTS),
        },
    )
    balanced_sampling: bool = field(
        default=False, metadata={"help": "Draw all classes equally often, rare ones several times per epoch."}
    )

    def check_guidance(self) -> None:
        """
        Check values and their combinations.

        Raises:
            InputError: a value out of range, or settings that exclude each other.
        """
        check_choices(self, {"kg_form": FORMS, "cls_loss": CLASSIFICATION_LOSSES, "class_weights": CLASS_WEIGHTS})
        if self.kg_lambda < 0 or (self.kg_form == "convex" and self.kg_lambda > 1):
            raise InputError(
                f"--kg_lambda {self.kg_lambda}: it must lie in 0..1 (at least 0 with --kg_form additive)."
            )
        if self.kg_positive_weight is not None and self.kg_positive_weight <= 0:
            raise InputError(f"--kg_positive_weight {self.kg_positive_weight}: it must be above 0.")

    @property
    def uses_model_loss(self) -> bool:
        """Whether the classification loss is the model's own, plain cross-entropy."""
        return (self.cls_loss, self.class_weights) == ("cross_entropy", "none")


@dataclass
class RecipeArguments:
    """The settings of `transformers.TrainingArguments` that most users need, with the measured recipe as defaults."""

    output_dir: str | None = field(
        default=None, metadata={"help": "Folder of the run; runs/NAME of the dataset by default."}
    )
    max_steps: int = field(
        default=-1, metadata={"help": f"Training steps per phase (default: {DEFAULT_STEPS}, or --num_train_epochs)."}
    )
    num_train_epochs: float | None = field(
        default=None, metadata={"help": "Training epochs per phase, in place of --max_steps."}
    )
    learning_rate: float = field(default=1e-3, metadata={"help": "Peak learning rate."})
    lr_scheduler_type: str = field(default="cosine", metadata={"help": "Schedule of the learning rate."})
    warmup_steps: float = field(default=0.1, metadata={"help": "Warm-up steps; below 1, a share of all steps."})
    weight_decay: float = field(default=0.01, metadata={"help": "Weight decay."})
    per_device_train_batch_size: int = field(default=16, metadata={"help": "Training batch size per device."})
    per_device_eval_batch_size: int = field(
        default=16, metadata={"help": "Batch size of predictions and priors per device."}
    )
    seed: int = field(default=42, metadata={"help": "Seed of initialisation, sampling and augmentation."})
    bf16: bool = field(default=False, metadata={"help": "Train in bfloat16 mixed precision."})
    logging_steps: float = field(
        default=0.05, metadata={"help": "Log the loss terms every this many steps; below 1, a share of all steps."}
    )
    save_steps: float = field(default=100, metadata={"help": "Write a checkpoint every this many steps."})
    save_total_limit: int | None = field(
        default=2, metadata={"help": "Checkpoints kept while a phase is trained; of two, one may be damaged."}
    )
    keep_checkpoints: bool = field(
        default=False, metadata={"help": "Keep the last checkpoints of a finished run; they are deleted by default."}
    )
    disable_tqdm: bool | None = field(
        default=None, metadata={"help": "No progress bars; they only show on a terminal."}
    )
    push_to_hub: bool = field(default=False, metadata={"help": "Push the finished run to the Hub."})
    hub_model_id: str | None = field(
        default=None, metadata={"help": "Repository to push to, OWNER/NAME; named like the output folder by default."}
    )


LOOK_AGAIN_HELP = (
    "Also choose a lower threshold, which finds this share of the validation defects: images from it up to the "
    "threshold are to be looked at again."
)
TWO_RULES = "--wanted_recall and --miss_cost each choose the threshold: give one of them."


def check_operating_rule(
    wanted_recall: float, miss_cost: float | None = None, look_again_recall: float | None = None
) -> None:
    """
    Check how the decision threshold is to be chosen.

    Raises:
        InputError: a value out of range.
    """
    if not 0 < wanted_recall <= 1:
        raise InputError(f"--wanted_recall {wanted_recall}: it must lie above 0 and up to 1.")
    if miss_cost is not None and not 0 < miss_cost < math.inf:
        raise InputError(f"--miss_cost {miss_cost}: it must be a number above 0.")
    if look_again_recall is None:
        return
    if not 0 < look_again_recall <= 1:
        raise InputError(f"--look_again_recall {look_again_recall}: it must lie above 0 and up to 1.")
    if miss_cost is None and look_again_recall <= wanted_recall:
        raise InputError(
            f"--look_again_recall {look_again_recall}: it must lie above --wanted_recall, which is {wanted_recall}."
        )


@dataclass
class OperatingArguments:
    """Choice of the good/defective threshold and of the heat map's on validation images."""

    wanted_recall: float = field(
        default=1.0, metadata={"help": "Take the highest threshold that finds this share of the validation defects."}
    )
    miss_cost: float | None = field(
        default=None,
        metadata={"help": "Take the threshold of least cost instead; a missed defect costs this many false alarms."},
    )
    look_again_recall: float | None = field(default=None, metadata={"help": LOOK_AGAIN_HELP})
    heat_false_alarms: float = field(
        default=0.05,
        metadata={"help": "Mark cells of the heat map from the value that this share of good images exceeds."},
    )

    def __post_init__(self) -> None:
        if not 0 < self.heat_false_alarms < 1:
            raise InputError(f"--heat_false_alarms {self.heat_false_alarms}: it must lie between 0 and 1.")
        if self.miss_cost is not None and self.wanted_recall < 1:
            raise InputError(TWO_RULES)
        check_operating_rule(self.wanted_recall, self.miss_cost, self.look_again_recall)


@dataclass
class LicenseArguments:
    """Licences stated in the model card; none is guessed."""

    model_license: str | None = field(
        default=None, metadata={"help": "Licence of the classifier, as the Hub names it (apache-2.0, mit, other)."}
    )
    data_license: str | None = field(default=None, metadata={"help": "Licence of the training images."})
    backbone_license: str | None = field(default=None, metadata={"help": "Licence of the pretrained backbone."})


__all__ = [
    "DEFAULT_BACKBONE",
    "DEFAULT_STEPS",
    "FORMS",
    "HEADS",
    "KGL_TINY",
    "LOOK_AGAIN_HELP",
    "TWO_RULES",
    "GuidanceArguments",
    "LicenseArguments",
    "ModelArguments",
    "OperatingArguments",
    "RecipeArguments",
    "check_operating_rule",
    "check_path_or_repo",
    "check_repo_id",
]
