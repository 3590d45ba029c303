"""The saliency head's score of a cell: its distance from stored good cells, and what masks or priors add."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from sklearn.cluster import KMeans
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler


KMEANS_STEPS = 3  # more mark no better
REGULARIZATION = 0.01  # inverse strength C of the regression on defective cells


@dataclass(frozen=True)
class CellScore:
    """
    A linear function of a cell and of its distance from the nearest stored cell.

    Attributes:
        memory: stored cells, `(K, D)`.
        weight: of the cell and, last, of its distance, `(D + 1,)`.
        bias: of the score.
    """

    memory: torch.Tensor
    weight: torch.Tensor
    bias: float

    @torch.no_grad()
    def __call__(self, cells: torch.Tensor) -> torch.Tensor:
        """Return the scores `(B, h, w)` of cells `(B, D, h, w)`."""
        flat = cells.permute(0, 2, 3, 1).flatten(0, 2)
        scores = self.of_features(cell_features(flat, self.memory))
        return scores.view(len(cells), *cells.shape[2:])

    def of_features(self, features: torch.Tensor) -> torch.Tensor:
        """Return the scores `(M,)` of the result of [`cell_features`]."""
        return features @ self.weight.to(features.device) + self.bias


def cell_features(cells: torch.Tensor, memory: torch.Tensor) -> torch.Tensor:
    """Return cells `(M, D)` with their distance from the nearest stored cell, `(M, D + 1)`."""
    distances = [torch.cdist(part, memory.to(cells.device)).amin(dim=1) for part in cells.split(8192)]
    return torch.cat([cells, torch.cat(distances)[:, None]], dim=1)


def fit_cell_score(good: torch.Tensor, defective: torch.Tensor | None, memory_size: int, seed: int) -> CellScore:
    """
    Store centres of the good cells and, where defective cells are known, learn to tell them from good ones.

    Without defective cells the score is the distance alone: PatchCore (Roth et al. 2022), each cell of the coreset
    moved to the mean of the cells nearest to it, which marks defects better.

    Args:
        good: cells without a defect, `(M, D)`.
        defective: cells known to be defective, `(M', D)`, or None.
        memory_size: cells to store, K; repeated where there are fewer good ones.
        seed: of the centres.
    """
    memory = _centres(good, memory_size, seed)
    if defective is None:
        weight = torch.zeros(good.shape[1] + 1)
        weight[-1] = 1
        return CellScore(memory, weight, 0.0)
    # The penalty holds the distance as little as all channels together: few defects must not outvote it.
    scale = np.append(np.ones(good.shape[1]), np.sqrt(good.shape[1]))
    return CellScore(memory, *_fit_line(cell_features(good, memory), cell_features(defective, memory), scale))


def fit_marked_cells(marked: torch.Tensor, others: torch.Tensor, memory_size: int) -> CellScore:
    """
    Learn to tell marked cells from others by the cells alone, without any distance: no cell is known to be good.

    Args:
        marked: cells that a prior marks, `(M, D)`.
        others: `(M', D)`.
        memory_size: cells that the head stores, K; all zero, as their distance has no weight.
    """
    weight, bias = _fit_line(others, marked, np.ones(marked.shape[1]))
    return CellScore(torch.zeros(memory_size, marked.shape[1]), torch.cat([weight, torch.zeros(1)]), bias)


def _fit_line(good: torch.Tensor, defective: torch.Tensor, scale: np.ndarray) -> tuple[torch.Tensor, float]:
    """Return weight `(D,)` and bias of a balanced regression on features `(M, D)`, standardised times `scale`."""
    features = torch.cat([good, defective]).cpu().numpy()
    target = np.repeat([0, 1], [len(good), len(defective)])
    scaler = StandardScaler().fit(features)
    model = LogisticRegression(C=REGULARIZATION, class_weight="balanced", max_iter=1000)
    model.fit(scaler.transform(features) * scale, target)
    weight = model.coef_[0] * scale / scaler.scale_
    return torch.from_numpy(weight).float(), float(model.intercept_[0] - weight @ scaler.mean_)


def _centres(cells: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """Return centres of cells `(M, D)`, `(count, D)`: a coreset after three steps of k-means."""
    centres = cells.float().cpu()
    if len(centres) > count:
        start = centres[greedy_coreset(centres, count, seed)]
        means = KMeans(count, init=start.numpy(), n_init=1, max_iter=KMEANS_STEPS, tol=0).fit(centres.numpy())
        centres = torch.from_numpy(means.cluster_centers_).float()
    return centres[torch.arange(count) % len(centres)]


def greedy_coreset(cells: torch.Tensor, count: int, seed: int) -> torch.Tensor:
    """
    Return the indices of cells `(M, D)` that cover the others, `(count,)`, each the farthest from those before it.

    Sener and Savarese 2018; rare kinds of good cells are kept, which a random sample misses.

    Args:
        cells: at least `count`.
        count: how many.
        seed: of the first one.
    """
    nearest = torch.full((len(cells),), torch.finfo().max)  # above all distances but that of the first
    nearest[torch.randint(len(cells), (1,), generator=torch.Generator().manual_seed(seed))] = torch.inf
    return farthest_rows(cells, nearest, count)


def farthest_rows(points: torch.Tensor, nearest: torch.Tensor, count: int) -> torch.Tensor:
    """
    Return rows chosen one by one, `(count,)`, each the farthest from those before it: the greedy k-center choice.

    Args:
        points: `(M, D)`, at least `count`.
        nearest: squared distances from what was chosen before, `(M,)`.
        count: how many.
    """
    squares = points.square().sum(dim=1)
    chosen: list[int] = []
    for _ in range(count):
        row = int(nearest.argmax())
        nearest = torch.minimum(nearest, torch.addmv(squares + squares[row], points, points[row], alpha=-2))
        nearest[row] = -torch.inf  # rounding must not choose it again
        chosen.append(row)
    return torch.tensor(chosen)


__all__ = ["CellScore", "cell_features", "farthest_rows", "fit_cell_score", "fit_marked_cells", "greedy_coreset"]
