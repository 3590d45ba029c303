"""What the evidence bench runs: on which images (`TASKS`), and in which ways (`ARMS`, and those searched among)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any


SHARED = Path(__file__).resolve().parents[2] / "shared"


@dataclass(frozen=True)
class Task:
    """Images, and how a classifier of them is trained: `steps` of `batch_size` a phase."""

    data: dict[str, Any]
    size: tuple[int, int]
    steps: int = 200
    batch_size: int = 16
    folds: int = 4
    defect_or_not: bool = False  # all classes of defect are one
    searched: bool = False  # then all seeds have the same test fold, and the search another one
    freeze_stages: int = 2
    backbone: dict[str, Any] | None = None  # None: the compressed ImageNet ResNet-18 up to stage 3


_TILES = Task({"dataset": "magnetic_tile", "data_dir": str(SHARED / "data/magnetic-tile")}, (160, 160), searched=True)
TASKS = {
    "magnetic_tile": _TILES,
    # `long`: until plain training gains nothing from twice as many steps.
    "magnetic_tile_long": replace(_TILES, steps=500),
    "magnetic_tile_defect_long": replace(_TILES, steps=500, defect_or_not=True),
    "neu_det_long": Task({"dataset": "neu_det", "data_dir": str(SHARED / "data/neu-det")}, (160, 160), steps=500),
    "kolektorsdd_long": Task(
        {"dataset": "kolektorsdd", "data_dir": str(SHARED / "data/kolektorsdd")}, (512, 208), steps=500, batch_size=8,
        folds=3,
    ),
    "smoke": Task(
        {"dataset": "surfaces", "num_surfaces": 96, "surface_size": 32}, (32, 32), steps=4, batch_size=8, folds=3,
        searched=True, freeze_stages=1,
        backbone={"model_type": "resnet", "layer_type": "basic", "embedding_size": 8, "hidden_sizes": [8, 16],
                  "depths": [1, 1]},
    ),
}  # fmt: skip


PRIORS = (None, "own", "blank", "shuffled", "masks", "cross_fitted", "nothing")  # nothing: the schedule with no prior


@dataclass(frozen=True)
class Arm:
    """One way to train. Without a prior it is a classifier on labels alone."""

    prior: str | None = None
    training: dict[str, Any] = field(default_factory=dict)  # of KGLTrainingArguments
    model: dict[str, Any] = field(default_factory=dict)  # of KGLConfig, and out_features
    making: dict[str, Any] = field(default_factory=dict)  # of PriorArguments
    length: float = 1  # in phases
    masks: int = 0  # defective images whose true mask is known
    rounds: int = 1  # the final model is the next round's primary
    early_stopped: bool = False
    distilled: bool = False
    averaged: bool = False  # the primary's weights are averaged over its training
    primary_length: float = 1.0  # in phases
    detached: bool = False  # the saliency head learns on features that it cannot change

    def __post_init__(self) -> None:
        if self.prior not in PRIORS:
            raise ValueError(f"prior={self.prior!r}: choose one of {PRIORS}.")

    @property
    def needs_primary(self) -> bool:
        """Whether it learns from a classifier trained before it on the same images."""
        return self.distilled or self.prior in ("own", "shuffled")


_CONVEX = {"kg_form": "convex", "kg_lambda": 1.0}  # the paper's schedule
_ADDED = {"kg_form": "additive", "kg_lambda": 1.0}
_LAYERCAM = {"prior_method": "layercam"}
_FINER = {"out_features": ["stage2", "stage3"]}  # fused at the second one's resolution, which is frozen
ARMS = {
    "plain": Arm(),
    "plain, twice as long": Arm(length=2),
    "plain, early-stopped": Arm(early_stopped=True),
    "blank mask": Arm("blank"),
    "shuffled prior": Arm("shuffled"),
    "self-distillation": Arm(distilled=True),
    "guided, paper": Arm("own", _CONVEX | {"kg_positive_weight": 1.0}, making=_LAYERCAM),
    "guided": Arm("own"),
    "guided, true masks": Arm("masks"),
    "guided, head alone": Arm("own", _ADDED, detached=True),
}
# What the default is chosen from, on magnetic tile's validation images alone.
SEARCHED = {
    "blank mask, convex": Arm("blank", _CONVEX),
    "shuffled prior, convex": Arm("shuffled", _CONVEX),
    "guided, convex": Arm("own", _CONVEX),
    "true masks, convex": Arm("masks", _CONVEX),
    "guided, band": Arm("own", _CONVEX | {"kg_ignore_band": 0.15}),
    "guided, soft": Arm("own", _CONVEX | {"kg_objective": ["soft_bce"]}),
    "guided, cosine": Arm("own", _CONVEX | {"kg_objective": ["cosine"]}),
    "guided, l2": Arm("own", _CONVEX | {"kg_objective": ["l2"]}),
    "guided, kl": Arm("own", _CONVEX | {"kg_objective": ["kl"]}),
    "guided, otsu and cosine": Arm("own", _CONVEX | {"kg_objective": ["otsu_bce", "cosine"]}),
    "guided, additive": Arm("own", _ADDED),
    "guided, cosine additive": Arm("own", _ADDED | {"kg_objective": ["cosine"]}),
    "guided, otsu and cosine additive": Arm("own", _ADDED | {"kg_objective": ["otsu_bce", "cosine"]}),
    "guided, additive constant": Arm("own", {"kg_schedule": "constant"}),
    "guided, delayed": Arm("own", _CONVEX | {"kg_schedule": "delayed", "kg_lambda": 0.5}),
    "blank, additive": Arm("blank", _ADDED),
    "true masks, additive": Arm("masks", _ADDED),
    "warm-up alone": Arm("nothing", _CONVEX),
    "half the loss": Arm("nothing", _CONVEX | {"kg_schedule": "constant", "kg_lambda": 0.5}),
    "guided, detached": Arm("own", _CONVEX, {"detach_saliency": True}),
    "guided, attention": Arm("own", _CONVEX, {"pooling": "attention"}),
    "guided, topk": Arm("own", _CONVEX, {"pooling": "topk"}),
    "guided, H alone": Arm("own", _CONVEX, {"pooling": "saliency"}),
    "plain, attention": Arm(model={"pooling": "attention"}),
    "plain, topk": Arm(model={"pooling": "topk"}),
    "guided, additive attention": Arm("own", _ADDED, {"pooling": "attention"}),
    "blank, additive attention": Arm("blank", _ADDED, {"pooling": "attention"}),
    "true masks, additive attention": Arm("masks", _ADDED, {"pooling": "attention"}),
    "guided, fullgrad": Arm("own", _CONVEX, making={"prior_method": "fullgrad"}),
    "guided, gradcam": Arm("own", _CONVEX, making={"prior_method": "gradcam"}),
    "guided, layercam": Arm("own", _CONVEX, making=_LAYERCAM),
    "guided, layercam cosine": Arm("own", _CONVEX | {"kg_objective": ["cosine"]}, making=_LAYERCAM),
    "guided, cross-fitted": Arm("cross_fitted", _CONVEX),
    "guided, drop wrong": Arm("cross_fitted", _CONVEX, making={"prior_weighting": "drop_wrong"}),
    "guided, confidence": Arm("cross_fitted", _CONVEX, making={"prior_weighting": "confidence"}),
    "guided, two rounds": Arm("own", _CONVEX, rounds=2),
    "guided, averaged primary": Arm("own", _CONVEX, averaged=True),
    "guided, cosine schedule": Arm("own", _CONVEX | {"kg_schedule": "cosine"}),
    "guided, half": Arm("own", _CONVEX | {"kg_lambda": 0.5}),
    "guided, early": Arm("own", _CONVEX | {"kg_schedule": "early"}),
    "guided, early true masks": Arm("masks", _CONVEX | {"kg_schedule": "early"}),
    "guided, short primary": Arm("own", _CONVEX, primary_length=0.4),
    "guided, early and short primary": Arm("own", _CONVEX | {"kg_schedule": "early"}, primary_length=0.4),
    "guided, early layercam cosine": Arm(
        "own", _CONVEX | {"kg_objective": ["cosine"], "kg_schedule": "early"}, making=_LAYERCAM
    ),
    "guided, early topk": Arm("own", _CONVEX | {"kg_schedule": "early"}, {"pooling": "topk"}),
    "guided, 1 mask": Arm("own", _CONVEX, masks=1),
    "guided, 5 masks": Arm("own", _CONVEX, masks=5),
    "guided, 10 masks": Arm("own", _CONVEX, masks=10),
    "plain, finer": Arm(model=_FINER),
    "guided, finer": Arm("own", model=_FINER),
    "guided, finer head alone": Arm("own", _ADDED, _FINER, detached=True),
    "true masks, finer": Arm("masks", model=_FINER),
}
