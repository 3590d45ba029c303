"""Arguments of the training job."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..errors import InputError


@dataclass
class ModelArguments:
    """The classifier, the same in both phases."""

    backbone: str | None = field(
        default=None, metadata={"help": "A pretrained backbone: a folder, a Hub id, or timm/NAME."}
    )
    backbone_config: dict | str | None = field(
        default=None, metadata={"help": "Or the settings of one to train from scratch, as JSON with its model_type."}
    )
    out_features: list[str] | None = field(
        default=None, metadata={"help": "Backbone stages to use, finest first (stage2 stage3); the last by default."}
    )
    fusion_size: int = field(default=256, metadata={"help": "Channels that several stages are projected to."})
    pooling: str = field(
        default="avg_max",
        metadata={
            "help": "What the classifier sees of features F and saliency H: avg_max (the paper's), attention, topk or "
            "saliency; see KGLConfig.",
            "choices": ["avg_max", "attention", "topk", "saliency"],
        },
    )
    detach_saliency: bool = field(
        default=False, metadata={"help": "Stop the classification gradient at the saliency logits."}
    )
    freeze_stages: int = field(
        default=0,
        metadata={
            "help": "Leave the backbone's stem and first so many stages as they are (ResNet, ConvNeXt), and compute "
            "what they give once: an epoch takes a fraction of the time."
        },
    )
    frozen_views: int = field(
        default=8,
        metadata={"help": "With --freeze_stages: in how many ways each image is augmented, once for all epochs."},
    )
    image_height: int = field(default=224, metadata={"help": "Images are resized to this height."})
    image_width: int = field(default=224, metadata={"help": "Images are resized to this width."})
    augment: bool = field(default=True, metadata={"help": "Flips, small moves, brightness and contrast."})


@dataclass
class LicenseArguments:
    """What the model card says of licences; nothing is guessed."""

    model_license: str | None = field(
        default=None, metadata={"help": "The classifier's licence, as the Hub names it (apache-2.0, mit, other, ...)."}
    )
    data_license: str | None = field(default=None, metadata={"help": "The licence of the images it learned from."})
    backbone_license: str | None = field(default=None, metadata={"help": "The licence of the pretrained backbone."})


@dataclass
class OperatingArguments:
    """What the good/defect decision is for."""

    wanted_recall: float = field(
        default=1.0,
        metadata={"help": "The decision's threshold is the highest that finds this share of the validation defects."},
    )
    miss_cost: float | None = field(
        default=None,
        metadata={
            "help": "Or the threshold of least cost on them, a missed defect costing as much as so many false alarms."
        },
    )

    def __post_init__(self) -> None:
        if not 0 < self.wanted_recall <= 1:
            raise InputError(f"--wanted_recall {self.wanted_recall}: it must lie above 0 and up to 1.")
        if self.miss_cost is not None and self.miss_cost <= 0:
            raise InputError(f"--miss_cost {self.miss_cost}: it must be above 0.")
        if self.miss_cost is not None and self.wanted_recall < 1:
            raise InputError("--wanted_recall and --miss_cost each choose the threshold: give one of them.")


__all__ = ["LicenseArguments", "ModelArguments", "OperatingArguments"]
