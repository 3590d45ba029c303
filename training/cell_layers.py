"""The saliency head's two layers: networks that tell good cells from noisy ones, side by side."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


NOISES = (1.0, 2.0, 1.0, 2.0)  # standard deviation of each network's noise, in those of the good cells
STEPS = 300
BATCH = 512  # cells of each kind
_SCALED_CELLS = 100_000


def fit_cell_layers(
    good: torch.Tensor,
    defective: torch.Tensor | None,
    hidden_size: int,
    seed: int,
    noises: Sequence[float] = NOISES,
) -> tuple[nn.Linear, nn.Linear]:
    """
    Train two layers to tell good cells from the same cells under Gaussian noise (SimpleNet, Liu et al. 2023).

    The layers hold several small networks side by side, each with its own share of the hidden units; the output is
    their mean, which ranks cells better than one network of the same size.

    Args:
        good: cells without a defect, `(M, D)`.
        defective: cells known to be defective, `(M', D)`, learned beside the noisy ones, or None.
        hidden_size: units between the two layers, at least one for each network that is to have a share.
        seed: of weights, batches and noise.
        noises: standard deviation of the noise of each network, in those of the good cells; a network of 0 has no
            noisy cells and learns the defective ones alone.

    Returns:
        The two layers, with a leaky ReLU of slope 0.2 between them; the batch norm of training is folded into the
        first.
    """
    shares = [len(part) for part in np.array_split(np.arange(hidden_size), len(noises)) if len(part)]
    members = []
    for index, (share, noise) in enumerate(zip(shares, noises, strict=False)):
        spread = noise * good.std(dim=0) if noise > 0 else None
        members.append(_fit_member(good, defective, share, len(noises) * seed + index, spread))
    first, second = nn.Linear(good.shape[1], hidden_size), nn.Linear(hidden_size, 1)
    with torch.no_grad():
        for parameter, parts in (
            (first.weight, [one.weight for one, _ in members]),
            (first.bias, [one.bias for one, _ in members]),
            (second.weight.T, [two.weight.T / len(members) for _, two in members]),
        ):
            parameter.copy_(torch.cat(parts))
        second.bias.copy_(torch.stack([two.bias for _, two in members]).mean(dim=0))
    return first.to(good.device), second.to(good.device)


def _fit_member(
    good: torch.Tensor, defective: torch.Tensor | None, hidden_size: int, seed: int, spread: torch.Tensor | None
) -> tuple[nn.Linear, nn.Linear]:
    """Train one network of two layers; `spread` `(D,)` is the standard deviation of the noise."""
    generator = torch.Generator(good.device).manual_seed(seed)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        first, second = nn.Linear(good.shape[1], hidden_size), nn.Linear(hidden_size, 1)
    norm = nn.BatchNorm1d(hidden_size)
    network = nn.Sequential(first, norm, nn.LeakyReLU(0.2), second).to(good.device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-3)

    def draw(cells: torch.Tensor) -> torch.Tensor:
        return cells[torch.randint(len(cells), (BATCH,), generator=generator, device=cells.device)]

    for _ in range(STEPS):
        kinds = [draw(good)]
        if spread is not None:
            kinds.append(kinds[0] + spread * torch.randn(kinds[0].shape, generator=generator, device=good.device))
        if defective is not None:
            kinds.append(draw(defective))
        logits = network(torch.cat(kinds))[:, 0]
        target = (torch.arange(len(logits), device=good.device) >= BATCH).float()
        loss = F.binary_cross_entropy_with_logits(logits, target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        factor = norm.weight / (norm.running_var + norm.eps).sqrt()
        first.weight.mul_(factor[:, None])
        first.bias.copy_((first.bias - norm.running_mean) * factor + norm.bias)
        if spread is not None:  # else a logit of 0 lies between the two kinds of cells
            _standardize(first, second, good[:_SCALED_CELLS])
    return first, second


def _standardize(first: nn.Linear, second: nn.Linear, good: torch.Tensor) -> None:
    """Scale the output so that good cells have median 0 and 1 % of them exceed 1: networks become comparable."""
    values = second(F.leaky_relu(first(good), 0.2))[:, 0]
    middle, high = values.median(), torch.quantile(values, 0.99)
    spread = (high - middle).clamp(min=1e-6)
    second.weight.div_(spread)
    second.bias.sub_(middle).div_(spread)


@torch.no_grad()
def score_cells(layers: tuple[nn.Linear, nn.Linear], cells: torch.Tensor) -> torch.Tensor:
    """Return the saliency logits `(B, 1, h, w)` of cells `(B, D, h, w)`."""
    hidden = F.leaky_relu(layers[0](cells.permute(0, 2, 3, 1)), 0.2)
    return layers[1](hidden).permute(0, 3, 1, 2)


__all__ = ["NOISES", "fit_cell_layers", "score_cells"]
