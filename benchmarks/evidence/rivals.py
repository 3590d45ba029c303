"""Rivals of the default on the same frozen features: PatchCore, Mahalanobis distance, a tuned regression."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.model_selection import StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn
from torch.nn import functional as F

from kgl.data.masks import mask_to_array, mask_to_grid
from kgl.evaluation.predictions import Predictions
from kgl.training.cell_scores import greedy_coreset


NOISE_STEPS = 300
MAX_BANK = 4096  # cells of PatchCore's coreset
STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)


class PatchCore:
    """
    PatchCore (Roth et al. 2022), with the settings of anomalib's: coreset of 10 %, 9 neighbours.

    The coreset has at most `MAX_BANK` cells, which is 2 to 10 % here; the paper finds 1 % as good as 10 %.

    Args:
        cells: of good images, `(M, C)`.
        seed: of the projection and the first cell of the coreset.
    """

    def __init__(self, cells: torch.Tensor, seed: int, share: float = 0.1, neighbours: int = 9) -> None:
        self.neighbours = neighbours
        generator = torch.Generator().manual_seed(seed)
        projected = cells @ torch.randn(cells.shape[1], min(128, cells.shape[1]), generator=generator)
        self.bank = cells[greedy_coreset(projected, min(MAX_BANK, max(1, int(share * len(cells)))), seed)]

    def score(self, cells: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Return image scores `(B,)` and distances of cells `(B, h, w)` of cells `(B, C, h, w)`."""
        scores, maps = [], []
        for one in cells:
            flat = one.flatten(1).T
            distances, nearest = torch.cdist(flat, self.bank).min(dim=1)
            highest = int(distances.argmax())
            support = torch.cdist(self.bank[nearest[highest]][None], self.bank)[0]
            support = support.topk(min(self.neighbours, len(self.bank)), largest=False).indices
            around = torch.cdist(flat[highest][None], self.bank[support])[0]
            scores.append(float((1 - around.softmax(dim=0)[0]) * distances[highest]))
            maps.append(distances.view(one.shape[1:]).numpy())
        return np.asarray(scores), np.stack(maps)


def mahalanobis(good: torch.Tensor) -> Any:
    """Return the Mahalanobis distance `(B, h, w)` of cells `(B, D, h, w)` from good cells `(N, D, h, w)`."""
    flat = good.permute(0, 2, 3, 1).flatten(0, 2)
    mean, covariance = flat.mean(dim=0), torch.cov(flat.T)
    inverse = torch.linalg.pinv(covariance + 1e-3 * covariance.diagonal().mean() * torch.eye(len(covariance)))

    def distance(cells: torch.Tensor) -> torch.Tensor:
        centred = cells.permute(0, 2, 3, 1) - mean
        return (centred @ inverse * centred).sum(dim=3).clamp(min=0).sqrt()

    return distance


def noise_head(good: torch.Tensor, seed: int, noise: float = 2.0, hidden: int = 256) -> Any:
    """
    Train two layers to tell good cells from the same cells under noise, the discriminator of SimpleNet (Liu 2023).

    Args:
        good: cells of good images, `(M, D)`.
        seed: of weights, batches and noise.
        noise: its standard deviation, in those of the good cells.
        hidden: units between the layers.

    Returns:
        The function from cells `(B, D, h, w)` to logits `(B, h, w)`.
    """
    torch.manual_seed(seed)
    network = nn.Sequential(
        nn.Linear(good.shape[1], hidden), nn.BatchNorm1d(hidden), nn.LeakyReLU(0.2), nn.Linear(hidden, 1)
    )
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-3)
    target = torch.cat([torch.zeros(512), torch.ones(512)])
    for _ in range(NOISE_STEPS):
        cells = good[torch.randint(len(good), (512,))]
        noisy = cells + noise * good.std(dim=0) * torch.randn_like(cells)
        loss = F.binary_cross_entropy_with_logits(network(torch.cat([cells, noisy]))[:, 0], target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    network.eval()

    @torch.no_grad()
    def logits(cells: torch.Tensor) -> torch.Tensor:
        flat = cells.permute(0, 2, 3, 1).flatten(0, 2)
        return network(flat)[:, 0].view(len(cells), *cells.shape[2:])

    return logits


def choose_regression(
    pooled: np.ndarray, labels: np.ndarray, groups: list[str], seed: int, channels: list[int]
) -> tuple[Pipeline, np.ndarray]:
    """
    Fit a logistic regression, its strength and its stages chosen by mean AP in cross-validation.

    Args:
        pooled: average and maximum of every stage, `(N, P)`.
        labels: `(N,)`.
        groups: of the images, kept whole.
        seed: of the folds.
        channels: of each stage; the last stage alone is tried beside all of them.

    Returns:
        The model, and the columns that it reads.
    """
    everything, last = np.arange(pooled.shape[1]), np.arange(pooled.shape[1])[-2 * channels[-1] :]
    scarcest = min(len(set(np.asarray(groups)[labels == label])) for label in np.unique(labels))
    folds = list(
        StratifiedGroupKFold(max(2, min(4, scarcest)), shuffle=True, random_state=seed).split(labels, labels, groups)
    )
    best = max(
        ((columns, strength) for columns in (everything, last) for strength in STRENGTHS),
        key=lambda choice: _validated_ap(pooled[:, choice[0]], labels, folds, choice[1]),
    )
    return _regression(best[1]).fit(pooled[:, best[0]], labels), best[0]


def _regression(strength: float) -> Pipeline:
    return make_pipeline(StandardScaler(), LogisticRegression(C=strength, max_iter=1000))


def _validated_ap(
    pooled: np.ndarray, labels: np.ndarray, folds: list[tuple[np.ndarray, np.ndarray]], strength: float
) -> float:
    classes = np.unique(labels)
    held = np.zeros((len(labels), len(classes)))
    for rest, held_out in folds:
        model = _regression(strength).fit(pooled[rest], labels[rest])
        held[held_out[:, None], np.searchsorted(classes, model.named_steps["logisticregression"].classes_)] = (
            model.predict_proba(pooled[held_out])
        )
    return float(np.mean([average_precision_score(labels == label, held[:, at]) for at, label in enumerate(classes)]))


def from_scores(scores: np.ndarray, maps: np.ndarray, bench: Any) -> Predictions:
    """
    Return predictions of a method that only tells good from defective.

    The probability of a defect, the rank of the score, is shared by the defect classes, so macro figures over several
    of them mean nothing.
    """
    ranks = scores.argsort().argsort() + 1
    defect = ranks / (len(ranks) + 1)
    labels = bench.model.config.num_labels
    probabilities = np.repeat(defect[:, None] / (labels - 1), labels, axis=1)
    probabilities[:, bench.good_id] = 1 - defect
    scaled = (maps - maps.min()) / max(float(maps.max() - maps.min()), 1e-9)
    return Predictions(probabilities, scaled, scaled)


def without_maps(probabilities: np.ndarray, bench: Any) -> Predictions:
    """Return predictions of a method without maps."""
    blank = np.zeros((len(probabilities), 1, 1), dtype=np.float32)
    return Predictions(probabilities, blank, blank)


def mask_cells(images: Any, grid: tuple[int, int]) -> np.ndarray:
    """Return the cells that true masks mark, `(N, h, w)` bool."""
    cells = np.zeros((len(images), *grid), dtype=bool)
    for index, mask in enumerate(images["mask"]):
        if mask is not None:
            cells[index] = mask_to_grid(mask_to_array(mask, (mask.height, mask.width))[None], grid)[0] > 0
    return cells


__all__ = [
    "PatchCore",
    "choose_regression",
    "from_scores",
    "mahalanobis",
    "mask_cells",
    "noise_head",
    "without_maps",
]
