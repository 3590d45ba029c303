"""What the evidence bench runs: on which pictures (`TASKS`), and in which ways (`ARMS`, and those searched among)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any


SHARED = Path(__file__).resolve().parents[2] / "shared"


@dataclass(frozen=True)
class Task:
    """Pictures, and how a classifier of them is trained: `steps` of `batch_size` a phase."""

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
    "magnetic_tile_256": replace(_TILES, size=(256, 256)),
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


@dataclass(frozen=True)
class Arm:
    """One way to train. Without a prior it is a classifier on labels alone."""

    prior: str | None = None  # own, blank, shuffled, masks, cross_fitted, or nothing: the schedule with no prior
    training: dict[str, Any] = field(default_factory=dict)  # of KGLTrainingArguments
    model: dict[str, Any] = field(default_factory=dict)  # of KGLConfig
    making: dict[str, Any] = field(default_factory=dict)  # of PriorArguments
    length: float = 1  # in phases
    masks: int = 0  # defective pictures whose true mask is known
    rounds: int = 1  # the final model is the next round's primary
    early_stopped: bool = False
    distilled: bool = False
    averaged: bool = False  # the primary's weights are averaged over its training
    primary_length: float = 1.0  # in phases
    detached: bool = False  # the saliency head learns on features that it cannot change


_PAPER = {"kg_positive_weight": 1.0}
_LAYERCAM = {"prior_method": "layercam"}
ARMS = {
    "plain": Arm(),
    "plain, twice as long": Arm(length=2),
    "plain, early-stopped": Arm(early_stopped=True),
    "blank mask": Arm("blank"),
    "shuffled prior": Arm("shuffled"),
    "self-distillation": Arm(distilled=True),
    "guided, paper": Arm("own", _PAPER, making=_LAYERCAM),
    "guided": Arm("own"),
    "guided, true masks": Arm("masks"),
}
# What the default is chosen from, on magnetic tile's validation pictures alone.
SEARCHED = {
    "guided, band": Arm("own", {"kg_ignore_band": 0.15}),
    "guided, soft": Arm("own", {"kg_objective": ["soft_bce"]}),
    "guided, cosine": Arm("own", {"kg_objective": ["cosine"]}),
    "guided, l2": Arm("own", {"kg_objective": ["l2"]}),
    "guided, kl": Arm("own", {"kg_objective": ["kl"]}),
    "guided, otsu and cosine": Arm("own", {"kg_objective": ["otsu_bce", "cosine"]}),
    "guided, additive": Arm("own", {"kg_form": "additive"}),
    "guided, cosine additive": Arm("own", {"kg_objective": ["cosine"], "kg_form": "additive"}),
    "guided, otsu and cosine additive": Arm("own", {"kg_objective": ["otsu_bce", "cosine"], "kg_form": "additive"}),
    "guided, additive constant": Arm("own", {"kg_form": "additive", "kg_schedule": "constant", "kg_lambda": 0.3}),
    "guided, delayed": Arm("own", {"kg_schedule": "delayed", "kg_lambda": 0.5}),
    "blank, additive": Arm("blank", {"kg_form": "additive"}),
    "true masks, additive": Arm("masks", {"kg_form": "additive"}),
    "warm-up alone": Arm("nothing"),
    "half the loss": Arm("nothing", {"kg_schedule": "constant", "kg_lambda": 0.5}),
    "guided, detached": Arm("own", model={"detach_saliency": True}),
    "guided, attention": Arm("own", model={"pooling": "attention"}),
    "guided, topk": Arm("own", model={"pooling": "topk"}),
    "guided, H alone": Arm("own", model={"pooling": "saliency"}),
    "plain, attention": Arm(model={"pooling": "attention"}),
    "plain, topk": Arm(model={"pooling": "topk"}),
    "guided, additive attention": Arm("own", {"kg_form": "additive"}, {"pooling": "attention"}),
    "blank, additive attention": Arm("blank", {"kg_form": "additive"}, {"pooling": "attention"}),
    "true masks, additive attention": Arm("masks", {"kg_form": "additive"}, {"pooling": "attention"}),
    "guided, fullgrad": Arm("own", making={"prior_method": "fullgrad"}),
    "guided, gradcam": Arm("own", making={"prior_method": "gradcam"}),
    "guided, layercam": Arm("own", making=_LAYERCAM),
    "guided, layercam cosine": Arm("own", {"kg_objective": ["cosine"]}, making=_LAYERCAM),
    "guided, cross-fitted": Arm("cross_fitted"),
    "guided, drop wrong": Arm("cross_fitted", making={"prior_weighting": "drop_wrong"}),
    "guided, confidence": Arm("cross_fitted", making={"prior_weighting": "confidence"}),
    "guided, two rounds": Arm("own", rounds=2),
    "guided, averaged primary": Arm("own", averaged=True),
    "guided, half": Arm("own", {"kg_lambda": 0.5}),
    "guided, early": Arm("own", {"kg_schedule": "early"}),
    "guided, early true masks": Arm("masks", {"kg_schedule": "early"}),
    "guided, additive light": Arm("own", {"kg_form": "additive", "kg_lambda": 0.3}),
    "guided, head alone": Arm("own", {"kg_form": "additive"}, detached=True),
    "guided, short primary": Arm("own", primary_length=0.4),
    "guided, early and short primary": Arm("own", {"kg_schedule": "early"}, primary_length=0.4),
    "guided, early layercam cosine": Arm(
        "own", {"kg_objective": ["cosine"], "kg_schedule": "early"}, making=_LAYERCAM
    ),
    "guided, early topk": Arm("own", {"kg_schedule": "early"}, {"pooling": "topk"}),
    "guided, 1 mask": Arm("own", masks=1),
    "guided, 5 masks": Arm("own", masks=5),
    "guided, 10 masks": Arm("own", masks=10),
}
