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


# saliency: the primary's own maps; zero_weight: the schedule of the loss without any prior.
PRIORS = (None, "saliency", "blank", "shuffled", "masks", "cross_fitted", "zero_weight")


@dataclass(frozen=True)
class Arm:
    """One way to train; without a prior, a classifier on labels alone."""

    prior: str | None = None
    training: dict[str, Any] = field(default_factory=dict)  # of KGLTrainingArguments
    model: dict[str, Any] = field(default_factory=dict)  # of KGLConfig, and out_features
    prior_arguments: dict[str, Any] = field(default_factory=dict)  # of PriorArguments
    length: float = 1  # in phases
    known_masks: int = 0  # defective images whose true mask replaces the prior
    rounds: int = 1  # the final model is the primary of the next round
    early_stopped: bool = False
    distilled: bool = False
    averaged_primary: bool = False  # running average of the primary's weights
    primary_length: float = 1.0  # in phases
    frozen: str | None = None  # an arm of frozen.ARMS; the other settings have no effect then
    detached_head: bool = False  # the saliency head trains on features that its loss cannot change

    def __post_init__(self) -> None:
        if self.prior not in PRIORS:
            raise ValueError(f"prior={self.prior!r}: choose one of {PRIORS}.")

    @property
    def needs_primary(self) -> bool:
        """Whether a classifier is trained first on the same images."""
        return self.distilled or self.prior in ("saliency", "shuffled")


_CONVEX = {"kg_form": "convex", "kg_lambda": 1.0}  # the paper's schedule
_ADDITIVE = {"kg_form": "additive", "kg_lambda": 1.0}
_LAYERCAM = {"prior_method": "layercam"}
_FINER = {"out_features": ["stage2", "stage3"]}  # fused at the resolution of stage 2, which is frozen
TEST_ARMS = {
    "plain": Arm(),
    "plain, twice as long": Arm(length=2),
    "plain, early-stopped": Arm(early_stopped=True),
    "blank mask": Arm("blank"),
    "shuffled prior": Arm("shuffled"),
    "self-distillation": Arm(distilled=True),
    "guided, paper": Arm("saliency", _CONVEX | {"kg_positive_weight": 1.0}, prior_arguments=_LAYERCAM),
    "guided": Arm("saliency"),
    "guided, true masks": Arm("masks"),
    "guided, head alone": Arm("saliency", _ADDITIVE, detached_head=True),
}
# Candidates for the default, compared on validation images of the magnetic tiles alone.
SEARCH_ARMS = {
    "blank mask, convex": Arm("blank", _CONVEX),
    "shuffled prior, convex": Arm("shuffled", _CONVEX),
    "guided, convex": Arm("saliency", _CONVEX),
    "true masks, convex": Arm("masks", _CONVEX),
    "guided, band": Arm("saliency", _CONVEX | {"kg_ignore_band": 0.15}),
    "guided, soft": Arm("saliency", _CONVEX | {"kg_objective": ["soft_bce"]}),
    "guided, cosine": Arm("saliency", _CONVEX | {"kg_objective": ["cosine"]}),
    "guided, l2": Arm("saliency", _CONVEX | {"kg_objective": ["l2"]}),
    "guided, kl": Arm("saliency", _CONVEX | {"kg_objective": ["kl"]}),
    "guided, otsu and cosine": Arm("saliency", _CONVEX | {"kg_objective": ["otsu_bce", "cosine"]}),
    "guided, additive": Arm("saliency", _ADDITIVE),
    "guided, cosine additive": Arm("saliency", _ADDITIVE | {"kg_objective": ["cosine"]}),
    "guided, otsu and cosine additive": Arm("saliency", _ADDITIVE | {"kg_objective": ["otsu_bce", "cosine"]}),
    "guided, additive constant": Arm("saliency", {"kg_schedule": "constant"}),
    "guided, delayed": Arm("saliency", _CONVEX | {"kg_schedule": "delayed", "kg_lambda": 0.5}),
    "blank, additive": Arm("blank", _ADDITIVE),
    "true masks, additive": Arm("masks", _ADDITIVE),
    "warm-up alone": Arm("zero_weight", _CONVEX),
    "half the loss": Arm("zero_weight", _CONVEX | {"kg_schedule": "constant", "kg_lambda": 0.5}),
    "guided, fullgrad": Arm("saliency", _CONVEX, prior_arguments={"prior_method": "fullgrad"}),
    "guided, gradcam": Arm("saliency", _CONVEX, prior_arguments={"prior_method": "gradcam"}),
    "guided, layercam": Arm("saliency", _CONVEX, prior_arguments=_LAYERCAM),
    "guided, layercam cosine": Arm("saliency", _CONVEX | {"kg_objective": ["cosine"]}, prior_arguments=_LAYERCAM),
    "guided, cross-fitted": Arm("cross_fitted", _CONVEX),
    "guided, drop wrong": Arm("cross_fitted", _CONVEX, prior_arguments={"prior_weighting": "drop_wrong"}),
    "guided, confidence": Arm("cross_fitted", _CONVEX, prior_arguments={"prior_weighting": "confidence"}),
    "guided, two rounds": Arm("saliency", _CONVEX, rounds=2),
    "guided, averaged primary": Arm("saliency", _CONVEX, averaged_primary=True),
    "guided, cosine schedule": Arm("saliency", _CONVEX | {"kg_schedule": "cosine"}),
    "guided, half": Arm("saliency", _CONVEX | {"kg_lambda": 0.5}),
    "guided, short primary": Arm("saliency", _CONVEX, primary_length=0.4),
    "guided, 1 mask": Arm("saliency", _CONVEX, known_masks=1),
    "guided, 5 masks": Arm("saliency", _CONVEX, known_masks=5),
    "guided, 10 masks": Arm("saliency", _CONVEX, known_masks=10),
    "plain, finer": Arm(model=_FINER),
    "guided, finer": Arm("saliency", model=_FINER),
    "guided, finer head alone": Arm("saliency", _ADDITIVE, _FINER, detached_head=True),
    "true masks, finer": Arm("masks", model=_FINER),
}
FROZEN_ARMS = {
    name: Arm(frozen=name)
    for name in (
        "default", "another image's map", "frozen regression", "regression, chosen", "own saliency",
        "default, true masks", "nearest neighbours", "mahalanobis", "noise head alone", "patchcore",
    )
}  # fmt: skip
ARMS = TEST_ARMS | SEARCH_ARMS | FROZEN_ARMS
