"""Cells of pretrained features: the projection that a classifier's saliency head reads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch.nn import functional as F

from ..heads_kgl import average_neighbours
from ..modeling_kgl import KGLForImageClassification


FITTED_CELLS = 20_000  # that the projection is fitted on; more change it by less than its own sampling
FITTED_IMAGES = 64


@torch.no_grad()
def fit_projection(
    model: KGLForImageClassification, batches: Iterable[tuple[torch.Tensor, ...]], num_images: int, seed: int
) -> None:
    """
    Set the cell projection of a model with the head `stages` to the principal components of standardised cells.

    Resizing and the projection are linear, so the projection is applied to each stage at its own size.
    Where there are fewer channels than components, the components left over are 0.

    Args:
        model: its `saliency_head` gets the projection.
        batches: feature maps `(B, C_i, h_i, w_i)`, finest first, of defect-free images where there are any.
        num_images: in all batches; each gives the same number of cells, at random.
        seed: of the choice of cells.
    """
    generator = torch.Generator().manual_seed(seed)
    cells = []
    for maps in batches:
        raw = raw_cells(maps[: model.config.saliency_stages]).flatten(2).transpose(1, 2)  # (B, h w, C)
        kept = min(raw.shape[1], -(-FITTED_CELLS // num_images))
        chosen = torch.randperm(raw.shape[1], generator=generator)[:kept]
        cells.append(raw[:, chosen.to(raw.device)].flatten(0, 1).float().cpu())
    sample = torch.cat(cells)
    mean, scale = sample.mean(dim=0), sample.std(dim=0) + 1e-3
    _, _, components = torch.linalg.svd((sample - mean) / scale, full_matrices=False)
    components = components[: model.config.cell_size]
    weight = torch.zeros(model.config.cell_size, len(mean))
    weight[: len(components)] = components / scale
    fusion, start = model.saliency_head.fusion, 0
    for index, projection in enumerate(fusion.projections):
        stop = start + projection.in_channels
        projection.weight.copy_(weight[:, start:stop, None, None])
        projection.bias.copy_(-weight @ mean if index == 0 else torch.zeros(len(weight)))
        start = stop


def raw_cells(feature_maps: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Return all channels of maps `(B, C_i, h_i, w_i)`, averaged over 3 x 3 cells, at the resolution of the first."""
    return stack_stages([average_neighbours(one) for one in feature_maps])


def stack_stages(feature_maps: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return all channels of maps `(B, C_i, h_i, w_i)` at the resolution of the first."""
    size = feature_maps[0].shape[-2:]
    resized = [F.interpolate(one, size=size, mode="bilinear", align_corners=False) for one in feature_maps[1:]]
    return torch.cat([feature_maps[0], *resized], dim=1)


__all__ = ["FITTED_CELLS", "FITTED_IMAGES", "fit_projection", "raw_cells", "stack_stages"]
