"""Saliency heads on feature maps, and what the classifier pools."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import nn
from transformers import PreTrainedModel


class KGLStageFusion(nn.Module):
    """Projection of several stages' maps to one width, summed at the resolution of the finest."""

    def __init__(self, in_channels: list[int], out_channels: int) -> None:
        super().__init__()
        self.projections = nn.ModuleList(nn.Conv2d(channels, out_channels, kernel_size=1) for channels in in_channels)

    def forward(
        self,
        feature_maps: tuple[torch.Tensor, ...],
        smooth: Callable[[torch.Tensor], torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """
        Fuse maps `(B, C_i, h_i, w_i)`, finest first, into one `(B, C, h_0, w_0)`.

        Args:
            feature_maps: one per stage.
            smooth: linear function of a projected map without its bias, at the map's own resolution.
        """
        fused = None
        for projection, feature_map in zip(self.projections, feature_maps, strict=True):
            if smooth is None:
                projected = projection(feature_map)
            else:
                without_bias = nn.functional.conv2d(feature_map, projection.weight)
                projected = smooth(without_bias) + projection.bias[:, None, None]
            if fused is None:
                fused = projected
            else:
                fused = fused + nn.functional.interpolate(
                    projected, size=fused.shape[-2:], mode="bilinear", align_corners=False
                )
        return fused


class KGLCellHead(nn.Module):
    """
    Saliency logits of cells: a linear function of a cell and of its distance from the nearest stored cell.

    Cells are made as in PatchCore (Roth et al. 2022): each stage averaged over 3 x 3 cells, projected, and summed at
    the finest stride. Around the image they are averaged with zeros; averages of fewer cells vary more there, and the
    highest cells of most images would lie on the rim.
    """

    def __init__(self, in_channels: list[int], cell_size: int, memory_size: int) -> None:
        super().__init__()
        self.fusion = KGLStageFusion(in_channels, cell_size)
        # Weight c and bias -|c|^2 / 2 of each stored cell: |x - c|^2 = |x|^2 - 2 (c x - |c|^2 / 2).
        self.memory = nn.Conv2d(cell_size, memory_size, kernel_size=1)
        self.output = nn.Conv2d(cell_size + 1, 1, kernel_size=1)

    def cells(self, feature_maps: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """
        Return the cells `(B, D, h_0, w_0)` of maps `(B, C_i, h_i, w_i)`, finest first.

        Averages are taken of the projected channels, which are fewer; both steps are linear.
        """
        return self.fusion(feature_maps, average_neighbours)

    def distances(self, cells: torch.Tensor) -> torch.Tensor:
        """Return the distance of cells `(B, D, h, w)` from the nearest stored one, `(B, 1, h, w)`."""
        with torch.autocast(cells.device.type, enabled=False):  # the difference of two large numbers
            cells = cells.float()
            nearest = nn.functional.conv2d(cells, self.memory.weight.float(), self.memory.bias.float())
            squared = cells.square().sum(dim=1, keepdim=True) - 2 * nearest.amax(dim=1, keepdim=True)
            return squared.clamp(min=1e-6).sqrt()

    def score(self, cells: torch.Tensor) -> torch.Tensor:
        """Return the saliency logits `(B, 1, h, w)` of cells `(B, D, h, w)`."""
        return self.output(torch.cat([cells, self.distances(cells).to(cells.dtype)], dim=1))

    def forward(self, feature_maps: tuple[torch.Tensor, ...]) -> torch.Tensor:
        """Return the saliency logits `(B, 1, h_0, w_0)` of maps `(B, C_i, h_i, w_i)`, finest first."""
        return self.score(self.cells(feature_maps))


class KGLTunedStage(nn.Module):
    """
    Fine-tuned copy of a backbone's stage with the head of arXiv 2605.17780, a classifier of its own.

    Args:
        stage: from maps `(B, C_0, h_0, w_0)` to `(B, C, h, w)`.
        channels: C.
        num_labels: K.
    """

    def __init__(self, stage: nn.Module, channels: int, num_labels: int) -> None:
        super().__init__()
        self.stage = stage
        self.saliency_head = nn.Conv2d(channels, 1, kernel_size=1)
        self.classifier = nn.Linear(2 * channels + 2, num_labels)

    @classmethod
    def of(cls, backbone: PreTrainedModel, num_labels: int) -> KGLTunedStage:
        """
        Return a copy of the stage that [`original`] returns, with a new classifier.

        Raises:
            ValueError: as [`original`].
        """
        return cls(copy.deepcopy(cls.original(backbone)), backbone.channels[1], num_labels)

    @staticmethod
    def original(backbone: PreTrainedModel) -> nn.Module:
        """
        Return the stage behind the backbone's first output.

        Raises:
            ValueError: the backbone is no ResNet, or that stage is no output.
        """
        kind, outputs = backbone.config.model_type, backbone.out_features
        stages = [backbone.stage_names.index(name) for name in outputs]
        if kind != "resnet" or len(stages) < 2 or stages[0] < 1 or stages[1] != stages[0] + 1:
            raise ValueError(
                f"tuned_stage=True needs a ResNet whose first two outputs follow each other, not a {kind} with "
                f"out_features={outputs}."
            )
        return backbone.encoder.stages[stages[0]]

    def features(self, feature_map: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features `(B, C, h, w)` and saliency logits `(B, 1, h, w)` of maps `(B, C_0, h_0, w_0)`."""
        features = self.stage(feature_map)
        return features, self.saliency_head(features)

    def forward(self, feature_map: torch.Tensor) -> torch.Tensor:
        """Return the logits `(B, K)` of maps `(B, C_0, h_0, w_0)`."""
        return self.classifier(pool_with_saliency(*self.features(feature_map)))


def average_neighbours(feature_map: torch.Tensor) -> torch.Tensor:
    """Return each cell of a map `(B, C, h, w)` averaged with its eight neighbours, which count as 0 outside."""
    channels = feature_map.shape[1]
    kernel = feature_map.new_full((channels, 1, 3, 3), 1 / 9)
    return nn.functional.conv2d(feature_map, kernel, padding=1, groups=channels)  # faster than avg_pool2d on a CPU


def average_features(feature_maps: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return the average over the cells of each map `(B, C_i, h_i, w_i)`, `(B, sum(C_i))` float32."""
    return torch.cat([one.float().mean(dim=(2, 3)) for one in feature_maps], dim=1)


def pool_maps(feature_maps: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return the average and the maximum over the cells of each map `(B, C_i, h_i, w_i)`, `(B, 2 sum(C_i))`."""
    pooled = [part for one in feature_maps for part in (one.mean(dim=(2, 3)), one.flatten(2).max(dim=2).values)]
    return torch.cat(pooled, dim=1)


def pool_with_saliency(features: torch.Tensor, saliency: torch.Tensor) -> torch.Tensor:
    """Return `[avg(P), max(P)]`, `(B, 2 C + 2)`, of `P = [F, H]`: maps `(B, C, h, w)` and logits `(B, 1, h, w)`."""
    return pool_maps((torch.cat([features, saliency], dim=1),))


def top_cells(saliency: torch.Tensor, share: float) -> torch.Tensor:
    """Return the mean of the highest `share` of the cells of saliency logits `(B, 1, h, w)`, `(B, 1)`."""
    cells = saliency.flatten(2)
    return cells.topk(max(1, round(share * cells.shape[2])), dim=2).values.mean(dim=2)


__all__ = [
    "KGLCellHead",
    "KGLStageFusion",
    "KGLTunedStage",
    "average_features",
    "pool_maps",
    "pool_with_saliency",
    "top_cells",
]
