"""Image classifier with a saliency head on any transformers backbone (arXiv 2605.17780)."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_BACKBONE_MAPPING,
    AutoBackbone,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    initialization,
)
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_kgl import KGLConfig
from .heads_kgl import (
    KGLCellHead,
    KGLStageFusion,
    KGLTunedStage,
    average_features,
    pool_maps,
    pool_with_saliency,
    top_cells,
)


# Settings with one entry per stage. Truncated, the stages behind the last one used are never built.
_PER_STAGE_SETTINGS = {
    "resnet": ("depths", "hidden_sizes"),
    "convnext": ("depths", "hidden_sizes"),
    "convnextv2": ("depths", "hidden_sizes"),
}


@dataclass
class KGLImageClassifierOutput(ModelOutput):
    """
    Output of [`KGLForImageClassification`].

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*, returned when `labels` is provided):
            Cross-entropy, a mean over the batch.
        logits (`torch.FloatTensor` of shape `(B, K)`):
            Class scores before softmax.
        saliency (`torch.FloatTensor` of shape `(B, 1, h, w)`):
            Logits `H` of "this cell is defective"; their sigmoid is the heat map in 0..1.
        feature_maps (`tuple(torch.FloatTensor)` of shape `(B, C, h, w)`):
            Features `F` that the classifier pools, finest first: one map, or with the head `"stages"` one per stage.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*, returned when `output_hidden_states=True`):
            The backbone's hidden states.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    saliency: torch.FloatTensor | None = None
    feature_maps: tuple[torch.FloatTensor, ...] | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


class KGLPreTrainedModel(PreTrainedModel):
    """Weight initialisation and loading of kgl models."""

    config_class = KGLConfig
    base_model_prefix = "kgl"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    # The loss is a mean over the batch, so the Trainer must divide it by the accumulation steps.
    accepts_loss_kwargs = False
    # Older models have none.
    _keys_to_ignore_on_load_missing: ClassVar[list[str]] = ["feature_center", "feature_scale"]

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, KGLForImageClassification):  # missing from the file, they hold anything
            initialization.zeros_(module.feature_center)
            initialization.ones_(module.feature_scale)

    def get_input_embeddings(self) -> None:
        """Return None: images have no table of embeddings. FSDP asks for it."""


class KGLForImageClassification(KGLPreTrainedModel):
    """
    Image classifier with a saliency head, which knowledge-guided training supervises (arXiv 2605.17780).

    With the head `"avg_max"` (the paper), for features `F (B, C, h, w)`: `H = conv1x1(F)`, `P = [F, H]`,
    `z = [avg(P), max(P)]`. With the head `"stages"`, for the maps `F_1, F_2, ...` of several stages: `H` by
    [`KGLCellHead`] from the finest ones, `z = [avg(F_1), max(F_1), avg(F_2), ..., top(H)]` with the mean `top(H)` of
    the highest cells. With both, `logits = (W z + b) / T` with the temperature `T` of the config. With a `tuned_stage`
    in the config, the logarithm of the mean of two probabilities, the softmax of `W z + b` and that of
    [`KGLTunedStage`] on `F_1`, takes the place of `W z + b`.
    """

    def __init__(self, config: KGLConfig) -> None:
        super().__init__(config)
        if type(config.backbone_config) not in MODEL_FOR_BACKBONE_MAPPING:
            raise ValueError(
                f"A {config.backbone_config.model_type!r} model cannot be the backbone; choose one of: "
                f"{_backbone_names()}."
            )
        self.backbone = AutoBackbone.from_config(config.backbone_config)
        self.supports_gradient_checkpointing = self.backbone.supports_gradient_checkpointing
        # Some backbone configs do not state their channels; they all take colour images.
        self.num_channels = config.backbone_config.to_dict().get("num_channels", 3)
        channels = self.backbone.channels
        if config.head == "stages":
            self.fusion = None
            self.saliency_head = KGLCellHead(channels[: config.saliency_stages], config.cell_size, config.memory_size)
            num_features = sum(channels)
            pooled_features = 2 * num_features + 1
        else:
            self.fusion = KGLStageFusion(channels, config.fusion_size) if len(channels) > 1 else None
            num_features = config.fusion_size if len(channels) > 1 else channels[0]
            self.saliency_head = nn.Conv2d(num_features, 1, kernel_size=1)
            pooled_features = 2 * num_features + 2
        self.classifier = nn.Linear(pooled_features, config.num_labels)
        self.tuned = KGLTunedStage.of(self.backbone, config.num_labels) if config.tuned_stage else None
        # Of the training images' average features: mean and spread.
        self.register_buffer("feature_center", torch.zeros(num_features))
        self.register_buffer("feature_scale", torch.ones(num_features))
        self.post_init()

    @classmethod
    def from_backbone(
        cls,
        pretrained_model_name_or_path: str,
        *,
        out_features: list[str] | None = None,
        **config_kwargs: Any,
    ) -> KGLForImageClassification:
        """
        Build a classifier with new heads on a pretrained backbone.

        Args:
            pretrained_model_name_or_path: a local folder, a Hub id, or `timm/NAME` for a timm model (needs `timm`).
            out_features: the stages to use, finest first (`["stage2", "stage3"]`); the last stage by default. For timm
                models, their feature indices as strings (`["2", "3"]`). ResNet and ConvNeXt are built without the
                stages behind the last one used.
            config_kwargs: arguments of [`KGLConfig`], such as `id2label`, `label2id` or `defect_free_label`. With
                `tuned_stage=True` the copy of the stage has its pretrained weights.

        Raises:
            ValueError: the model is not a backbone, lacks a stage, or the checkpoint lacks weights.
            OSError: the model was not found.
        """
        if pretrained_model_name_or_path.startswith("timm/"):
            indices = out_features or ["-1"]
            if not all(index.lstrip("-").isdigit() for index in indices):
                raise ValueError(f"out_features={indices}: give timm's feature indices, such as ['2', '3'].")
            timm_backbone = MODEL_FOR_BACKBONE_MAPPING[CONFIG_MAPPING["timm_backbone"]]
            backbone = timm_backbone.from_pretrained(
                pretrained_model_name_or_path.removeprefix("timm/"), out_indices=[int(index) for index in indices]
            )
        else:
            # Without trust_remote_code=False, transformers asks at the terminal whether to run remote code.
            backbone_config = AutoConfig.from_pretrained(pretrained_model_name_or_path, trust_remote_code=False)
            if type(backbone_config) not in MODEL_FOR_BACKBONE_MAPPING:
                raise ValueError(
                    f"{pretrained_model_name_or_path} holds a {backbone_config.model_type!r} model, which cannot be "
                    f"the backbone; choose one of: {_backbone_names()}."
                )
            backbone_config = _select_stages(backbone_config, out_features)
            # AutoBackbone.from_pretrained rejects local paths.
            backbone, loading = MODEL_FOR_BACKBONE_MAPPING[type(backbone_config)].from_pretrained(
                pretrained_model_name_or_path, config=backbone_config, output_loading_info=True
            )
            # Norms of intermediate maps exist in backbones only, so a classifier's checkpoint has none.
            missing = [key for key in loading["missing_keys"] if not key.startswith("hidden_states_norms")]
            if missing:
                raise ValueError(
                    f"{pretrained_model_name_or_path} lacks weights of the backbone: {sorted(missing)}. Take another "
                    "checkpoint."
                )
        backbone_config = backbone.config.to_dict()
        # These describe the checkpoint, not this model.
        for name in ("_name_or_path", "architectures", "id2label", "label2id"):
            backbone_config.pop(name, None)
        model = cls(KGLConfig(backbone_config=backbone_config, **config_kwargs))
        model.backbone.load_state_dict(backbone.state_dict())
        if model.tuned is not None:
            model.tuned.stage.load_state_dict(KGLTunedStage.original(model.backbone).state_dict())
        return model

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> KGLImageClassifierOutput:
        """
        Classify images and compute the loss where labels are given.

        Args:
            pixel_values: `(B, 3, H, W)`, or `(B, 1, H, W)` for grey images, normalised.
            labels: class indices, `(B,)`.
            output_hidden_states: also return the backbone's hidden states.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        feature_maps, hidden_states = self.features(pixel_values, output_hidden_states)
        logits, saliency = self.classify(feature_maps)

        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config)
        return KGLImageClassifierOutput(
            loss=loss, logits=logits, saliency=saliency, feature_maps=feature_maps, hidden_states=hidden_states
        )

    def features(
        self, pixel_values: torch.Tensor, output_hidden_states: bool = False
    ) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...] | None]:
        """Return the maps `(B, C_i, h_i, w_i)` that the classifier pools, and the backbone's hidden states or None."""
        if pixel_values.shape[1] == 1 and self.num_channels == 3:
            pixel_values = pixel_values.expand(-1, 3, -1, -1)
        output = self.backbone(pixel_values, output_hidden_states=output_hidden_states)
        feature_maps = tuple(output.feature_maps)
        if any(one.dim() != 4 for one in feature_maps):
            raise ValueError(
                f"The {self.config.backbone_config.model_type} backbone returns features of shape "
                f"{tuple(feature_maps[0].shape)}, not (B, C, h, w); set its reshape_hidden_states to true."
            )
        if self.fusion is not None:
            feature_maps = (nn.functional.relu(self.fusion(feature_maps)),)
        return feature_maps, output.hidden_states

    def classify(self, feature_maps: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return logits `(B, K)` and saliency logits `(B, 1, h, w)` of the maps that [`features`] returns."""
        if self.config.head == "stages":
            saliency = self.saliency_head(feature_maps[: self.config.saliency_stages])
            pooled = torch.cat([pool_maps(feature_maps), top_cells(saliency, self.config.top_cells)], dim=1)
        else:
            saliency = self.saliency_head(feature_maps[0])
            pooled = pool_with_saliency(feature_maps[0], saliency)
        logits = self.classifier(pooled)
        if self.tuned is not None:
            both = torch.stack([logits, self.tuned(feature_maps[0])]).log_softmax(dim=2)
            logits = both.logsumexp(dim=0) - math.log(2)
        return logits / self.config.temperature, saliency

    def feature_distance(self, feature_maps: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return how far images' average features lie from those of the training images, in spreads, `(B,)`."""
        return (
            ((average_features(feature_maps) - self.feature_center) / self.feature_scale).square().mean(dim=1).sqrt()
        )

    @torch.no_grad()
    def saliency_grid(self, size: tuple[int, int]) -> tuple[int, int]:
        """Return the height and width of the saliency logits of images of this height and width."""
        blank = torch.zeros(1, self.num_channels, *size, device=self.device, dtype=self.dtype)
        training = self.training
        try:
            return tuple(self.eval()(blank).saliency.shape[-2:])
        finally:
            self.train(training)

    def decide(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        Return `P(defect)`, `(B,)` in double precision, and whether it reaches the config's threshold, `(B,)` bool.

        `P(defect)` is the sum of the probabilities of all classes but the defect-free one; `1 - P(good)` would lose
        the digits of small values. [`~kgl.evaluation.metrics.defect_scores`] is the same formula for arrays.

        Args:
            logits: `(B, K)`.

        Raises:
            ValueError: the model has no defect-free class.
        """
        if self.config.defect_free_id is None:
            raise ValueError("The config has no defect_free_label, which P(defect) needs; set it.")
        defects = [index for index in range(logits.shape[1]) if index != self.config.defect_free_id]
        score = class_probabilities(logits)[:, defects].sum(dim=1)
        return score, score >= self.config.threshold

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """Save the model, its code, its pipelines and its handler for Inference Endpoints."""
        # transformers copies the files of relative imports, also of those inside a function, and what they import.
        from .pipeline_kgl import custom_pipelines

        # Pipeline.save_pretrained writes this entry; here, checkpoints and Trainer.save_model get it too.
        self.config.custom_pipelines = custom_pipelines()
        super().save_pretrained(save_directory, *args, **kwargs)


def class_probabilities(logits: torch.Tensor) -> torch.Tensor:
    """
    Return `softmax(logits)`, `(B, K)`, in double precision and clamped to the open interval (0, 1).

    The decision threshold is chosen on these and applied to these, so that rounding changes no decision.
    """
    eps = torch.finfo(torch.double).eps
    return logits.double().softmax(dim=1).clamp(eps, 1 - eps)


def _select_stages(config: PreTrainedConfig, out_features: list[str] | None) -> PreTrainedConfig:
    """Return the backbone's config with these outputs and, for known backbones, without the stages behind them."""
    if out_features is None:
        out_features = [config.stage_names[-1]]
    unknown = [name for name in out_features if name not in config.stage_names]
    if unknown:
        raise ValueError(f"out_features: this backbone has no stage {unknown}; it has {list(config.stage_names)}.")
    values = config.to_dict()
    # stage_names begins with the stem, so a stage's index is the number of stages up to it.
    num_stages = max(config.stage_names.index(name) for name in out_features)
    if num_stages > 0:
        for setting in _PER_STAGE_SETTINGS.get(config.model_type, ()):
            values[setting] = values[setting][:num_stages]
        if "num_stages" in values:  # ConvNeXt
            values["num_stages"] = num_stages
    for derived in ("stage_names", "out_indices", "out_features"):
        values.pop(derived, None)
    return type(config).from_dict({**values, "out_features": list(out_features)})


def _backbone_names() -> str:
    return ", ".join(sorted({config.model_type for config in MODEL_FOR_BACKBONE_MAPPING}))


KGLForImageClassification.register_for_auto_class("AutoModelForImageClassification")

__all__ = ["KGLForImageClassification", "KGLImageClassifierOutput", "KGLPreTrainedModel", "class_probabilities"]
