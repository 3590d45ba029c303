"""Training arguments with the settings of the knowledge-guided loss."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from transformers import TrainingArguments

from ..errors import InputError, check_choices
from .losses import CELL_OBJECTIVES, FORMS, MAP_OBJECTIVES, OBJECTIVES, SCHEDULES, teaches_saliency


@dataclass
class KGLTrainingArguments(TrainingArguments):
    """[`~transformers.TrainingArguments`] and the settings of the knowledge-guided loss."""

    kg_objective: list[str] = field(
        default_factory=lambda: ["otsu_bce"],
        metadata={
            "help": "What guidance teaches, several are added up. The saliency logits H: the prior above Otsu's "
            "threshold (otsu_bce) or as it is (soft_bce). The class map: to be like the prior (cosine, l2, kl)."
        },
    )
    kg_schedule: str = field(
        default="linear",
        metadata={
            "help": "How the guidance's weight lambda goes with training: linear, cosine, constant, delayed or early."
        },
    )
    kg_lambda: float = field(
        default=0.3,
        metadata={"help": "Lambda at the start (linear, cosine, delayed, early) or throughout (constant)."},
    )
    kg_form: str = field(
        default="additive",
        metadata={"help": "additive: lambda L_kg + L_cls; convex, the paper's: lambda L_kg + (1 - lambda) L_cls."},
    )
    kg_ignore_band: float = field(
        default=0.0,
        metadata={
            "help": "otsu_bce: leave out cells this close to the middle of the gap between the two kinds, as a share "
            "of the prior's peak."
        },
    )
    kg_positive_weight: float | None = field(
        default=None,
        metadata={
            "help": "How much more a defect cell of H counts than another; by default the two kinds count the same "
            "over the training set."
        },
    )
    cls_loss: str = field(
        default="cross_entropy",
        metadata={"help": "Classification loss of both phases: cross_entropy, or focal (gamma 2) for rare defects."},
    )
    class_weights: str = field(
        default="none",
        metadata={"help": "What an image of each class counts in both phases: none, or balanced (rare ones more)."},
    )
    balanced_sampling: bool = field(
        default=False, metadata={"help": "Draw as many images of every class, the rare ones several times an epoch."}
    )
    # The collator reads columns that the model's forward does not name.
    remove_unused_columns: bool = field(default=False, metadata={"help": "Keep this off: the collator needs them."})

    def __post_init__(self) -> None:
        super().__post_init__()
        # Pinned memory is for copies to a GPU; without one, torch warns at every epoch.
        self.dataloader_pin_memory = self.dataloader_pin_memory and torch.cuda.is_available()
        choices = {
            "kg_schedule": SCHEDULES,
            "kg_form": FORMS,
            "cls_loss": ("cross_entropy", "focal"),
            "class_weights": ("none", "balanced"),
        }
        check_choices(self, choices)
        unknown = [one for one in self.kg_objective if one not in OBJECTIVES]
        if unknown or not self.kg_objective:
            raise InputError(f"--kg_objective {' '.join(unknown)}: choose among {', '.join(OBJECTIVES)}.")
        if self.kg_lambda < 0 or (self.kg_form == "convex" and self.kg_lambda > 1):
            raise InputError(f"--kg_lambda {self.kg_lambda}: it must lie in 0..1 (any above with --kg_form additive).")
        if (self.kg_form, self.kg_schedule, self.kg_lambda) == ("convex", "constant", 1):
            raise InputError("--kg_schedule constant with --kg_lambda 1 never trains the classifier; lower lambda.")
        if not 0 <= self.kg_ignore_band < 0.5:
            raise InputError(f"--kg_ignore_band {self.kg_ignore_band}: it must lie in 0..0.5.")
        if self.kg_positive_weight is not None and self.kg_positive_weight <= 0:
            raise InputError(f"--kg_positive_weight {self.kg_positive_weight}: it must be above 0.")
        if self.kg_ignore_band > 0 and "otsu_bce" not in self.kg_objective:
            raise InputError("--kg_ignore_band goes with --kg_objective otsu_bce: no other has a threshold.")
        if self.kg_positive_weight is not None and not teaches_saliency(self.kg_objective):
            raise InputError(f"--kg_positive_weight goes with --kg_objective {' or '.join(CELL_OBJECTIVES)}.")
        if self.own_classification_loss and self.label_smoothing_factor > 0:
            raise InputError("--label_smoothing_factor goes with --cls_loss cross_entropy --class_weights none.")

    @property
    def own_classification_loss(self) -> bool:
        """Whether the classification loss is another than the model's."""
        return (self.cls_loss, self.class_weights) != ("cross_entropy", "none")

    def check_pooling(self, pooling: str) -> None:
        """
        Raises:
            InputError: an objective needs the class map in closed form, and heads of this pooling have none.
        """
        if set(self.kg_objective) & set(MAP_OBJECTIVES) and pooling != "avg_max":
            raise InputError(f"--kg_objective cosine, l2 and kl go with --pooling avg_max, not with {pooling}.")


__all__ = ["KGLTrainingArguments"]
