"""Plan of the evidence bench: tasks (images and training length) and arms (ways to train)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any


SHARED = Path(__file__).resolve().parents[3] / "shared"


@dataclass(frozen=True)
class Task:
    """Images to classify, and the training of one phase: `steps` of `batch_size`."""

    data: dict[str, Any]  # of DataArguments
    size: tuple[int, int]  # height and width in pixels
    steps: int = 200
    batch_size: int = 16
    folds: int = 4
    binary: bool = False  # all defect classes are merged into one
    fixed_test_fold: bool = False  # fold 0 is the test fold of every seed, which leaves fold 1 for the search
    freeze_stages: int = 2
    backbone: dict[str, Any] | None = None  # config of a backbone from scratch; None: ImageNet ResNet-18 to stage 3


_TILES = Task(
    {"dataset": "magnetic_tile", "data_dir": str(SHARED / "data/magnetic-tile")}, (160, 160), fixed_test_fold=True
)
TASKS = {
    "magnetic_tile": _TILES,
    # `long`: plain training gains nothing from twice as many steps.
    "magnetic_tile_long": replace(_TILES, steps=500),
    "magnetic_tile_defect_long": replace(_TILES, steps=500, binary=True),
    "neu_det_long": Task({"dataset": "neu_det", "data_dir": str(SHARED / "data/neu-det")}, (160, 160), steps=500),
    "kolektorsdd_long": Task(
        {"dataset": "kolektorsdd", "data_dir": str(SHARED / "data/kolektorsdd")}, (512, 208), steps=500, batch_size=8,
        folds=3,
    ),
    # Second edition: every fold is a test fold in turn.
    "tiles": replace(_TILES, steps=500, fixed_test_fold=False),
    "tiles_defect": replace(_TILES, steps=500, fixed_test_fold=False, binary=True),
    "boards": Task(
        {"dataset": "boards", "data_dir": str(SHARED / "data/circuit-board")}, (334, 500), steps=500,
        batch_size=8,
    ),
    "kolektorsdd": Task(
        {"dataset": "kolektorsdd", "data_dir": str(SHARED / "data/kolektorsdd")}, (512, 208), steps=500, batch_size=8,
    ),
    "neu_det": Task({"dataset": "neu_det", "data_dir": str(SHARED / "data/neu-det")}, (160, 160), steps=500),
    "smoke": Task(
        {"dataset": "surfaces", "num_surfaces": 96, "surface_size": 32}, (32, 32), steps=4, batch_size=8, folds=3,
        fixed_test_fold=True, freeze_stages=1,
        backbone={"model_type": "resnet", "layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8, 16],
                  "depths": [1, 1]},
    ),
}  # fmt: skip


PRIORS = (None, "saliency", "blank", "shuffled", "masks")  # saliency: the primary's own maps


@dataclass(frozen=True)
class Arm:
    """One way to train; without a prior, a classifier on labels alone."""

    prior: str | None = None
    training: dict[str, Any] = field(default_factory=dict)  # of KGLTrainingArguments
    prior_arguments: dict[str, Any] = field(default_factory=dict)  # of PriorArguments
    length: float = 1  # in phases
    frozen: str | None = None  # an arm of frozen.ARMS; the other settings have no effect then
    with_default: bool = False  # its probabilities are averaged with those of the frozen arm `default`

    def __post_init__(self) -> None:
        if self.prior not in PRIORS:
            raise ValueError(f"prior={self.prior!r}: choose one of {PRIORS}.")

    @property
    def needs_primary(self) -> bool:
        """Whether a classifier is trained first on the same images."""
        return self.prior in ("saliency", "shuffled")


_CONVEX = {"kg_form": "convex", "kg_lambda": 1.0}  # the paper's
TEST_ARMS = {
    "plain": Arm(),
    "plain, twice as long": Arm(length=2),
    "blank mask": Arm("blank"),
    "shuffled prior": Arm("shuffled"),
    "guided, paper": Arm(
        "saliency", _CONVEX | {"kg_positive_weight": 1.0}, prior_arguments={"prior_method": "layercam"}
    ),
    "guided": Arm("saliency"),
    "guided, true masks": Arm("masks"),
}
CONVEX_ARMS = {  # the paper's form of the loss, and controls with the same form
    "blank mask, convex": Arm("blank", _CONVEX),
    "shuffled prior, convex": Arm("shuffled", _CONVEX),
    "guided, convex": Arm("saliency", _CONVEX),
    "true masks, convex": Arm("masks", _CONVEX),
}
FROZEN_ARMS = {
    name: Arm(frozen=name)
    for name in (
        "default", "another image's map", "frozen regression", "regression, chosen", "own saliency",
        "default, true masks", "nearest neighbours", "mahalanobis", "noise head alone", "patchcore",
    )
}  # fmt: skip
WITH_DEFAULT = {"default and plain": Arm(with_default=True)}
ARMS = TEST_ARMS | CONVEX_ARMS | FROZEN_ARMS | WITH_DEFAULT
