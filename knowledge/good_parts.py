"""Priors from what good parts look like: the distance of cells' pretrained features from those of good images."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, Features, Value
from transformers import BaseImageProcessor

from ..data.images import load_pixel_values, to_pixel_values, without_decoding
from ..data.schema import digest_rows, image_digests
from ..errors import InputError
from ..heads_kgl import top_cells
from ..modeling_kgl import KGLForImageClassification
from ..saliency.activations import eval_mode
from ..saliency.maps import to_grid
from .prior_columns import load_mask, prior_columns, prior_features
from .saliency_priors import model_digest
from .sharded_map import Columns, Row, sharded_map


BANK_CELLS = 4_000
BANK_IMAGES = 500
NEIGHBOURS = 3
THRESHOLD = 64  # stored value of the distance that 1 % of the good cells exceed
_TOP_CELLS = 0.05
_TITLE = "Good-parts priors"


@dataclass(frozen=True)
class GoodParts:
    """
    A memory bank of cells of good images (PatchCore, Roth et al. 2022), and how far good cells lie from it.

    Attributes:
        cells: `(M, D)`, at most `BANK_CELLS`, as many of each image.
        owner: group of the image of each cell, as an index, `(M,)`.
        groups: index of each group.
        middle: median distance of good cells from those of other groups.
        high: distance that 1 % of the good cells exceed.
        image_scores: mean of the highest 5 % of the distances of each good image, `(N,)`, sorted.
    """

    cells: torch.Tensor
    owner: torch.Tensor
    groups: dict[str, int]
    middle: float
    high: float
    image_scores: np.ndarray

    @classmethod
    def of(cls, cells: torch.Tensor, groups: list[str], seed: int) -> GoodParts:
        """
        Build the bank from cells `(N, D, h, w)` of good images of at least two groups.

        Args:
            cells: of the images.
            groups: of the images: near-duplicates and images of one part share one.
            seed: of the subsample.
        """
        indices = {group: index for index, group in enumerate(dict.fromkeys(groups))}
        owners = torch.tensor([indices[group] for group in groups])
        flat = cells.flatten(2).transpose(1, 2)  # (N, h w, D)
        generator = torch.Generator().manual_seed(seed)
        kept = min(flat.shape[1], -(-BANK_CELLS // len(flat)))
        order = torch.rand(flat.shape[:2], generator=generator).argsort(dim=1)[:, :kept].to(flat.device)
        bank = flat.gather(1, order[..., None].expand(-1, -1, flat.shape[2])).flatten(0, 1)
        owner = owners.repeat_interleave(kept).to(flat.device)
        unscaled = cls(bank, owner, indices, 0.0, 1.0, np.zeros(0))
        distances = unscaled.distances(cells, groups)
        scores = top_cells(distances[:, None], _TOP_CELLS)[:, 0]
        spread = distances.flatten().cpu().numpy()
        return cls(
            bank,
            owner,
            indices,
            float(np.median(spread)),
            float(np.quantile(spread, 0.99)),
            scores.sort()[0].cpu().numpy(),
        )

    def distances(self, cells: torch.Tensor, groups: list[str | None]) -> torch.Tensor:
        """
        Return the mean distance from the nearest cells of the bank, `(B, h, w)`.

        Args:
            cells: `(B, D, h, w)`.
            groups: of the images, `(B,)`; cells of the same group are left out of the bank, which is how good images
                are scored without themselves.
        """
        batch, _, height, width = cells.shape
        maps = []
        for one, group in zip(cells.flatten(2).transpose(1, 2), groups, strict=True):
            distance = torch.cdist(one, self.cells)
            if group in self.groups:
                distance[:, self.owner == self.groups[group]] = torch.inf
            maps.append(distance.topk(NEIGHBOURS, dim=1, largest=False).values.mean(dim=1))
        return torch.stack(maps).view(batch, height, width)

    def to_prior(self, distances: torch.Tensor) -> torch.Tensor:
        """Return distances as stored values, uint8: 0 for good cells' median, `THRESHOLD` for their highest 1 %."""
        scaled = (distances - self.middle) / max(self.high - self.middle, 1e-6) * THRESHOLD
        return scaled.clamp(0, 255).round().to(torch.uint8)

    def trust(self, distances: torch.Tensor) -> np.ndarray:
        """Return the share of the good images whose highest 5 % of the distances are lower on average, `(B,)`."""
        scores = top_cells(distances[:, None], _TOP_CELLS)[:, 0].cpu().numpy()
        return (np.searchsorted(self.image_scores, scores) / len(self.image_scores)).astype(np.float32)


@torch.no_grad()
def learn_good_parts(
    dataset: Dataset,
    model: KGLForImageClassification,
    image_processor: BaseImageProcessor,
    batch_size: int = 16,
    seed: int = 0,
) -> GoodParts:
    """
    Build the memory bank from a dataset's defect-free images, at most `BANK_IMAGES` of them.

    Args:
        dataset: columns `image` and `label`, and `group` where images belong together.
        model: with the head `stages`, a fitted cell projection and a `defect_free_label`.
        image_processor: the model's.
        batch_size: images per forward pass.
        seed: of the subsample.

    Raises:
        InputError: fewer than two independent images are defect-free.
    """
    rows = _good_rows(dataset, model, seed)
    groups = _groups(without_decoding(rows)[:])
    if len(set(groups)) < 2:
        raise InputError(
            "--prior_source good_parts: it needs at least two independent defect-free images; add good images, or use "
            "--prior_source saliency."
        )
    cells = []
    with eval_mode(model):
        for batch in rows.select_columns("image").iter(batch_size):
            cells.append(cells_of(model, to_pixel_values(batch["image"], image_processor).to(model.device)))
    return GoodParts.of(torch.cat(cells), groups, seed)


def write_good_parts_priors(
    dataset: Dataset,
    model: KGLForImageClassification,
    image_processor: BaseImageProcessor,
    folder: Path,
    batch_size: int = 16,
    grid: tuple[int, int] | None = None,
    seed: int = 0,
) -> Dataset:
    """
    Write the prior columns from what good parts look like to `folder`; shared, resumed and refused as saliency priors.

    A stored value means the same in every image: 0 is the median distance of good cells, `THRESHOLD` the distance that
    1 % of them exceed, and cells above it count as defect. The weight of a defective image's prior is the share of the
    good images that look less unusual. Good images are blank, masks win.

    Args:
        dataset: as [`learn_good_parts`], and optionally `mask`.
        model: as [`learn_good_parts`].
        image_processor: the model's.
        folder: of the table.
        batch_size: images per forward pass.
        grid: of the priors, `(h, w)`; that of the cells by default.
        seed: of the memory bank.

    Raises:
        InputError: as [`learn_good_parts`] and [`~kgl.knowledge.sharded_map.sharded_map`].
    """
    good_parts = learn_good_parts(dataset, model, image_processor, batch_size, seed)
    names = dataset.features["label"].names
    kept = {name: dataset.features[name] for name in ("file_name",) if name in dataset.features}
    grid = grid or _grid_of(model, to_pixel_values([dataset[0]["image"]], image_processor))
    bank = _bank_digest(_good_rows(dataset, model, seed), seed)
    settings = json.dumps([image_processor.to_dict(), model_digest(model), bank, grid], sort_keys=True, default=str)

    def identify(rows: Columns) -> str:
        return hashlib.sha1(f"{settings} {digest_rows(rows, names)} {_groups(rows)}".encode()).hexdigest()

    def load(row: Row) -> tuple[torch.Tensor | None, np.ndarray | None]:
        good = names[row["label"]] == model.config.defect_free_label  # then the prior is blank
        return None if good else load_pixel_values(row, image_processor), load_mask(row, grid)

    def compute(rows: Columns, loaded: list[tuple[torch.Tensor | None, np.ndarray | None]]) -> Columns:
        images, masks = zip(*loaded, strict=True)
        good = np.array([one is None for one in images])
        maps, weights = np.zeros((len(good), *grid), dtype=np.uint8), np.zeros(len(good), dtype=np.float32)
        if not good.all():
            groups = [group for group, blank in zip(_groups(rows), good, strict=True) if not blank]
            with torch.no_grad(), eval_mode(model):
                cells = cells_of(model, torch.cat([one for one in images if one is not None]).to(model.device))
            distances = good_parts.distances(cells, groups)
            maps[~good] = good_parts.to_prior(to_grid(distances, grid)).cpu().numpy()
            weights[~good] = good_parts.trust(distances)
        columns = prior_columns(maps, weights, good, masks, THRESHOLD)
        return {name: rows[name] for name in kept} | {"digest": image_digests(rows)} | columns

    return sharded_map(
        without_decoding(dataset), load, compute, identify, folder, batch_size=batch_size, title=_TITLE,
        features=Features(kept | {"digest": Value("string")} | prior_features(grid)),
    )  # fmt: skip


def cells_of(model: KGLForImageClassification, pixel_values: torch.Tensor) -> torch.Tensor:
    """Return the projected cells `(B, D, h, w)` of images, float32."""
    maps, _ = model.features(pixel_values)
    return model.saliency_head.cells(maps[: model.config.saliency_stages]).float()


@torch.no_grad()
def _grid_of(model: KGLForImageClassification, pixel_values: torch.Tensor) -> tuple[int, int]:
    with eval_mode(model):
        return tuple(cells_of(model, pixel_values.to(model.device)).shape[-2:])


def _good_rows(dataset: Dataset, model: KGLForImageClassification, seed: int) -> Dataset:
    """Return the defect-free images, `BANK_IMAGES` of them at most."""
    names, labels = dataset.features["label"].names, np.asarray(dataset["label"][:])
    good = [index for index, label in enumerate(labels) if names[label] == model.config.defect_free_label]
    return dataset.select(np.sort(np.random.default_rng(seed).permutation(good)[:BANK_IMAGES]).astype(int))


def _bank_digest(rows: Dataset, seed: int) -> str:
    """Return a hash of the images of a bank: the last digits of their cells depend on the number of threads."""
    content = without_decoding(rows)[:]
    return hashlib.sha1(repr([seed, image_digests(content), _groups(content)]).encode()).hexdigest()


def _groups(rows: Columns) -> list[str]:
    """Return the group of each image, or its digest where the dataset has no groups."""
    return rows["group"] if "group" in rows else image_digests(rows)


__all__ = ["THRESHOLD", "GoodParts", "cells_of", "learn_good_parts", "write_good_parts_priors"]
