"""A classifier with a saliency head, on any backbone of transformers (arXiv 2605.17780)."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_BACKBONE_MAPPING,
    AutoBackbone,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.utils import ModelOutput
from transformers.utils.generic import can_return_tuple

from .configuration_kgl import KGLConfig


# The settings that hold one entry a stage: cut short, the stages behind the last one used are never built.
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
            Cross-entropy, or binary cross-entropy for multi-label problems.
        logits (`torch.FloatTensor` of shape `(B, K)`):
            Scores before softmax, or before the sigmoid for multi-label problems.
        saliency (`torch.FloatTensor` of shape `(B, 1, h, w)`):
            Logits of "there is a defect in this cell"; their sigmoid is the heat map in 0..1.
        feature_map (`torch.FloatTensor` of shape `(B, C, h, w)`):
            What the head pools: the backbone's map, or several of them fused at the finest stride.
        hidden_states (`tuple(torch.FloatTensor)`, *optional*, returned when `output_hidden_states=True`):
            The backbone's hidden states.
    """

    loss: torch.FloatTensor | None = None
    logits: torch.FloatTensor | None = None
    saliency: torch.FloatTensor | None = None
    feature_map: torch.FloatTensor | None = None
    hidden_states: tuple[torch.FloatTensor, ...] | None = None


class KGLPreTrainedModel(PreTrainedModel):
    """Weight initialisation and loading shared by the models of this file."""

    config_class = KGLConfig
    base_model_prefix = "kgl"
    main_input_name = "pixel_values"
    input_modalities = ("image",)
    # The loss is a mean over the batch: the Trainer has to divide it by the accumulation steps.
    accepts_loss_kwargs = False


class KGLStageFusion(nn.Module):
    """Projects the maps of several stages to one width and sums them at the finest one's resolution."""

    def __init__(self, in_channels: list[int], out_channels: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Conv2d(channels, out_channels, kernel_size=1) for channels in in_channels)

    def forward(self, feature_maps: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Maps of shapes `(B, C_i, h_i, w_i)`, finest first, to one `(B, C, h_0, w_0)`."""
        fused = self.projections[0](feature_maps[0])
        for projection, feature_map in zip(self.projections[1:], feature_maps[1:], strict=True):
            coarse = projection(feature_map)
            fused = fused + nn.functional.interpolate(
                coarse, size=fused.shape[-2:], mode="bilinear", align_corners=False
            )
        return nn.functional.relu(fused)


class KGLForImageClassification(KGLPreTrainedModel):
    """
    Image classifier whose saliency head can be taught where to look.

    For features `F` `(B, C, h, w)`: `H = conv1x1(F)`, `P = [F, H]`, `z = [avg(P), max(P)]`, `logits = W z + b`; the
    config's `pooling` has other `z`.
    """

    def __init__(self, config: KGLConfig) -> None:
        super().__init__(config)
        if type(config.backbone_config) not in MODEL_FOR_BACKBONE_MAPPING:
            raise ValueError(
                f"A {config.backbone_config.model_type!r} model is no backbone. transformers has backbones for: "
                f"{_backbone_names()}."
            )
        self.backbone = AutoBackbone.from_config(config.backbone_config)
        # A few backbones take colour images without saying so.
        self.num_channels = config.backbone_config.to_dict().get("num_channels", 3)
        channels = self.backbone.channels
        self.fusion = KGLStageFusion(channels, config.fusion_size) if len(channels) > 1 else None
        num_features = config.fusion_size if len(channels) > 1 else channels[0]
        self.saliency_head = nn.Conv2d(num_features, 1, kernel_size=1)
        pooled_features = {"avg_max": 2 * num_features, "saliency": num_features}.get(config.pooling, 3 * num_features)
        self.classifier = nn.Linear(pooled_features + 2, config.num_labels)
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
        Start from a pretrained backbone: new heads on its weights.

        Args:
            pretrained_model_name_or_path: a local folder, a Hub id, or `timm/NAME` for a timm model (needs `timm`).
            out_features: the stages to use, finest first (`["stage2", "stage3"]`); the last stage by default. For timm
                models, their feature indices as strings (`["2", "3"]`). ResNet and ConvNeXt are built without the
                stages behind the last one.
            config_kwargs: what [`KGLConfig`] takes, such as `id2label`, `label2id`, `defect_free_label`.

        Raises:
            ValueError: the model is no backbone, or has no such stage.
            OSError: there is no such model.
        """
        if pretrained_model_name_or_path.startswith("timm/"):
            indices = out_features or ["-1"]
            if not all(index.lstrip("-").isdigit() for index in indices):
                raise ValueError(f"out_features: timm's features are numbered, so no {indices}.")
            timm_backbone = MODEL_FOR_BACKBONE_MAPPING[CONFIG_MAPPING["timm_backbone"]]
            backbone = timm_backbone.from_pretrained(
                pretrained_model_name_or_path.removeprefix("timm/"), out_indices=[int(index) for index in indices]
            )
        else:
            # Left open, it asks at the terminal whether to run a stranger's code.
            backbone_config = AutoConfig.from_pretrained(pretrained_model_name_or_path, trust_remote_code=False)
            if type(backbone_config) not in MODEL_FOR_BACKBONE_MAPPING:
                raise ValueError(
                    f"{pretrained_model_name_or_path} holds a {backbone_config.model_type!r} model, which is no "
                    f"backbone. transformers has backbones for: {_backbone_names()}."
                )
            backbone_config = _with_stages(backbone_config, out_features)
            # AutoBackbone.from_pretrained takes no local path.
            backbone, loading = MODEL_FOR_BACKBONE_MAPPING[type(backbone_config)].from_pretrained(
                pretrained_model_name_or_path, config=backbone_config, output_loading_info=True
            )
            # The norms of intermediate maps belong to backbones alone, no classifier's checkpoint has them.
            missing = [key for key in loading["missing_keys"] if not key.startswith("hidden_states_norms")]
            if missing:
                raise ValueError(f"{pretrained_model_name_or_path} lacks weights of its backbone: {sorted(missing)}.")
        backbone_config = backbone.config.to_dict()
        # These speak of the checkpoint, not of this model.
        for foreign in ("_name_or_path", "architectures", "id2label", "label2id"):
            backbone_config.pop(foreign, None)
        model = cls(KGLConfig(backbone_config=backbone_config, **config_kwargs))
        model.backbone.load_state_dict(backbone.state_dict())
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
        Args:
            pixel_values: `(B, 3, H, W)`, or `(B, 1, H, W)` for grey images, normalised.
            labels: `(B,)` class indices, or `(B, K)` zeros and ones as floats for multi-label problems.
            output_hidden_states: return the backbone's hidden states too.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        feature_map, hidden_states = self.features(pixel_values, output_hidden_states)
        logits, saliency = self.classify(feature_map)

        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config)
        return KGLImageClassifierOutput(
            loss=loss, logits=logits, saliency=saliency, feature_map=feature_map, hidden_states=hidden_states
        )

    def features(
        self, pixel_values: torch.Tensor, output_hidden_states: bool = False
    ) -> tuple[torch.Tensor, tuple[torch.Tensor, ...] | None]:
        """What the head pools, `(B, C, h, w)`, and the backbone's hidden states where they are asked for."""
        if pixel_values.shape[1] == 1 and self.num_channels == 3:
            pixel_values = pixel_values.expand(-1, 3, -1, -1)
        output = self.backbone(pixel_values, output_hidden_states=output_hidden_states)
        if any(one.dim() != 4 for one in output.feature_maps):
            raise ValueError(
                f"The {self.config.backbone_config.model_type} backbone gives {tuple(output.feature_maps[0].shape)} "
                "where maps (B, C, h, w) are needed; see its reshape_hidden_states."
            )
        feature_map = output.feature_maps[0] if self.fusion is None else self.fusion(output.feature_maps)
        return feature_map, output.hidden_states

    def classify(self, feature_map: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits `(B, K)` and saliency logits `(B, 1, h, w)` of features `(B, C, h, w)`."""
        saliency = self.saliency_head(feature_map)
        return self.classifier(self._pooled(feature_map, saliency)) / self.config.temperature, saliency

    def decide(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """
        How probably an image is not of the defect-free class, `(B,)`, and whether that calls for action, `(B,)` bool.

        The config's operating point decides, and one half where it has none.

        Args:
            logits: `(B, K)`.

        Raises:
            ValueError: no class is free of defects.
        """
        if self.config.defect_free_id is None:
            raise ValueError("This model's config has no defect_free_label to tell defects from.")
        certain = torch.finfo(torch.double).eps  # as where the operating point was chosen
        probabilities = logits.double().softmax(dim=1).clamp(certain, 1 - certain)
        others = [index for index in range(logits.shape[1]) if index != self.config.defect_free_id]
        score = probabilities[:, others].sum(dim=1)  # 1 less P(good) would lose what is small
        return score, score >= self.config.threshold

    def save_pretrained(self, save_directory: str | os.PathLike, *args: Any, **kwargs: Any) -> None:
        """As any model is saved; the pipeline `"defect-detection"` goes along with the code."""
        # Only here is it needed, and transformers copies the files of relative imports wherever they stand.
        from .pipeline_kgl import TASK, DefectDetectionPipeline

        # What Pipeline.save_pretrained writes there, so that checkpoints and `Trainer.save_model` have it too.
        self.config.custom_pipelines = {
            TASK: {
                "impl": f"pipeline_kgl.{DefectDetectionPipeline.__name__}",
                "pt": ["AutoModelForImageClassification"],
                "type": "image",
            }
        }
        super().save_pretrained(save_directory, *args, **kwargs)

    def _pooled(self, feature_map: torch.Tensor, saliency: torch.Tensor) -> torch.Tensor:
        seen = saliency.detach() if self.config.detach_saliency and self.training else saliency
        if self.config.pooling == "saliency":
            return torch.cat([_attended(feature_map, seen), seen.mean(dim=(2, 3)), seen.amax(dim=(2, 3))], dim=1)
        both = torch.cat([feature_map, seen], dim=1)
        pooled = [both.mean(dim=(2, 3)), both.flatten(2).max(dim=2).values]
        if self.config.pooling == "attention":
            pooled.append(_attended(feature_map, seen))
        elif self.config.pooling == "topk":
            pooled.append(_top_cells(feature_map, seen))
        return torch.cat(pooled, dim=1)


def _attended(feature_map: torch.Tensor, saliency: torch.Tensor) -> torch.Tensor:
    """Features averaged by the softmax of the saliency logits over the cells, `(B, C)`."""
    return (feature_map * saliency.flatten(2).softmax(dim=2).view_as(saliency)).sum(dim=(2, 3))


def _top_cells(feature_map: torch.Tensor, saliency: torch.Tensor) -> torch.Tensor:
    """Features averaged over the twentieth of the cells with the largest saliency logits, `(B, C)`."""
    cells = saliency.flatten(2)
    top = cells.topk(-(-cells.shape[2] // 20), dim=2).indices.expand(-1, feature_map.shape[1], -1)
    return feature_map.flatten(2).gather(2, top).mean(dim=2)


def _with_stages(config: PreTrainedConfig, out_features: list[str] | None) -> PreTrainedConfig:
    """The backbone's config with `out_features` as outputs and, where we know how, no stage behind the last one."""
    if out_features is None:
        out_features = [config.stage_names[-1]]
    unknown = [name for name in out_features if name not in config.stage_names]
    if unknown:
        raise ValueError(f"out_features: no stage {unknown} in this backbone; it has {list(config.stage_names)}.")
    values = config.to_dict()
    # The stem comes before the first stage, so a stage's index is the number of stages up to it.
    num_stages = max(config.stage_names.index(name) for name in out_features)
    if num_stages > 0:
        for setting in _PER_STAGE_SETTINGS.get(config.model_type, ()):
            values[setting] = values[setting][:num_stages]
        if "num_stages" in values:  # ConvNeXt counts them too
            values["num_stages"] = num_stages
    for derived in ("stage_names", "out_indices", "out_features"):
        values.pop(derived, None)
    return type(config).from_dict({**values, "out_features": list(out_features)})


def _backbone_names() -> str:
    return ", ".join(sorted({config.model_type for config in MODEL_FOR_BACKBONE_MAPPING}))


KGLForImageClassification.register_for_auto_class("AutoModelForImageClassification")

__all__ = ["KGLForImageClassification", "KGLImageClassifierOutput", "KGLPreTrainedModel"]
