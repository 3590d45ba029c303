"""Arguments of the priors."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import InputError, check_choices
from ..saliency.methods import METHODS


WEIGHTINGS = ("keep_all", "drop_wrong", "confidence")


@dataclass
class PriorArguments:
    """How priors are made from a classifier's saliency, and how they are weighted."""

    prior_method: str = field(default="gradcam++", metadata={"help": "Saliency method.", "choices": list(METHODS)})
    prior_layers: list[str] | None = field(
        default=None,
        metadata={"help": "CAM methods: modules whose outputs are weighed and fused; the pooled features by default."},
    )
    prior_weighting: str = field(
        default="keep_all",
        metadata={
            "help": "Weight of a defective image's prior: 1 (keep_all), 0 where the primary misclassifies the image "
            "(drop_wrong), or the primary's probability of the true class (confidence).",
            "choices": list(WEIGHTINGS),
        },
    )

    def __post_init__(self) -> None:
        check_choices(self, {"prior_method": METHODS, "prior_weighting": WEIGHTINGS})


@dataclass
class TrainPriorArguments(PriorArguments):
    """How the training job makes priors."""

    prior_folds: int | None = field(
        default=None,
        metadata={
            "help": "Cross-fit the priors over this many folds, groups kept together: each prior comes from a primary "
            "trained without its fold. Costs one training per fold."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prior_folds is not None and self.prior_folds < 2:
            raise InputError(f"--prior_folds {self.prior_folds}: cross-fitting needs at least 2.")


@dataclass
class PriorPassArguments:
    """Which classifier makes the priors, and where they go."""

    model: str = field(metadata={"help": "A classifier saved by kgl train: a folder or a Hub id."})
    output_dir: str = field(metadata={"help": "Folder for priors/, the table of priors (datasets.load_from_disk)."})
    batch_size: int = field(default=16, metadata={"help": "Batch size."})

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"--batch_size {self.batch_size}: it must be at least 1.")


__all__ = ["WEIGHTINGS", "PriorArguments", "PriorPassArguments", "TrainPriorArguments"]
