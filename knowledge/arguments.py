"""Arguments of the priors."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import InputError, check_choices
from ..saliency.methods import METHODS


WEIGHTINGS = ("keep_all", "drop_wrong", "confidence")


@dataclass
class PriorArguments:
    """How priors are made, and how far they are trusted."""

    prior_method: str = field(
        default="gradcam++", metadata={"help": "What makes the saliency maps.", "choices": list(METHODS)}
    )
    prior_layers: list[str] | None = field(
        default=None,
        metadata={"help": "CAM methods: modules whose outputs are looked at, fused; the pooled features by default."},
    )
    prior_weighting: str = field(
        default="keep_all",
        metadata={
            "help": "What a defective image's prior counts: 1 (keep_all), 0 where the primary is wrong about it "
            "(drop_wrong), or the primary's probability of its class (confidence).",
            "choices": list(WEIGHTINGS),
        },
    )

    def __post_init__(self) -> None:
        check_choices(self, {"prior_method": METHODS, "prior_weighting": WEIGHTINGS})


@dataclass
class TrainPriorArguments(PriorArguments):
    """How priors are made, and by which classifiers."""

    prior_folds: int | None = field(
        default=None,
        metadata={
            "help": "Cross-fit: part the training images into so many folds, groups whole, and let each one's prior "
            "come from a primary that was trained on the others. Costs a training for every fold."
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prior_folds is not None and self.prior_folds < 2:
            raise InputError(f"--prior_folds {self.prior_folds}: cross-fitting takes at least 2.")


__all__ = ["WEIGHTINGS", "PriorArguments", "TrainPriorArguments"]
