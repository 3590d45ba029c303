"""Arguments of the priors; importing them needs neither torch nor transformers."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import InputError, check_choices, expand_home
from ..saliency.methods import METHODS


SOURCES = ("auto", "good_parts", "saliency", "both")


@dataclass
class PriorArguments:
    """Saliency method of the priors from the primary."""

    prior_method: str = field(
        default="gradcam++", metadata={"help": "Saliency method of the priors.", "choices": list(METHODS)}
    )
    prior_layers: list[str] | None = field(
        default=None,
        metadata={"help": "CAM methods: modules whose outputs are weighted and fused; pooled features by default."},
    )

    def __post_init__(self) -> None:
        check_choices(self, {"prior_method": METHODS})


@dataclass
class TrainPriorArguments(PriorArguments):
    """Source and method of the priors."""

    prior_source: str = field(
        default="auto",
        metadata={
            "help": "Where priors come from: what good images look like (good_parts), the primary's own saliency "
            "(saliency, the paper), or where both agree (both). auto: good_parts with a pretrained backbone and at "
            "least two independent defect-free images, else saliency.",
            "choices": list(SOURCES),
        },
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_choices(self, {"prior_source": SOURCES})


@dataclass
class PriorPassArguments:
    """The classifier that makes the priors, and their folder."""

    model: str = field(metadata={"help": "A classifier saved by kgl train: a folder or a Hub id."})
    output_dir: str = field(metadata={"help": "Folder for priors/, the table of priors (datasets.load_from_disk)."})
    batch_size: int = field(default=16, metadata={"help": "Batch size."})

    def __post_init__(self) -> None:
        expand_home(self, "model", "output_dir")
        if self.batch_size < 1:
            raise InputError(f"--batch_size {self.batch_size}: it must be at least 1.")


__all__ = ["SOURCES", "PriorArguments", "PriorPassArguments", "TrainPriorArguments"]
