"""Places where a texture is not itself: shapes of many kinds, filled in many ways."""

from __future__ import annotations

import numpy as np
import torch
from scipy.ndimage import gaussian_filter
from torch.nn import functional as F


KINDS = ("line", "crack", "dots", "patch", "box", "arc", "smear")
_AREAS = [KINDS.index(name) for name in ("patch", "box", "smear")]


def draw_shape(kind: str, size: int, generator: np.random.Generator) -> np.ndarray:
    """Return how much of each pixel the anomaly covers, `(size, size)` float32 in 0..1, of one of [`KINDS`]."""
    shape = _DRAW[kind](size, generator)
    return np.clip(shape / max(shape.max(), 1e-6), 0, 1).astype(np.float32)


def _walk(size: int, length: float, wobble: float, generator: np.random.Generator) -> np.ndarray:
    """Return points of a walk near the middle, half a pixel apart, `(n, 2)`."""
    steps = int(2 * length)
    angles = generator.uniform(0, 2 * np.pi) + np.cumsum(generator.normal(0, wobble, steps))
    points = np.cumsum(np.stack([np.sin(angles), np.cos(angles)], axis=1) / 2, axis=0)
    return points - points.mean(axis=0) + size / 2


def _stroke(points: np.ndarray, size: int, width: float) -> np.ndarray:
    """Return a soft stroke of this width in pixels through points `(n, 2)`."""
    inside = points[((points >= 0) & (points < size)).all(axis=1)].astype(int)
    image = np.zeros((size, size))
    image[inside[:, 0], inside[:, 1]] = 1
    image = gaussian_filter(image, 0.45 * width)
    return np.minimum(image / max(image.max(), 1e-6) * 1.5, 1)


def _line(size: int, generator: np.random.Generator) -> np.ndarray:
    points = _walk(size, size * generator.uniform(0.1, 0.8), generator.uniform(0, 0.04), generator)
    return _stroke(points, size, generator.uniform(1, 3))


def _crack(size: int, generator: np.random.Generator) -> np.ndarray:
    points = _walk(size, size * generator.uniform(0.15, 0.7), generator.uniform(0.2, 0.4), generator)
    parts = [points]
    for _ in range(generator.integers(0, 3)):
        start = generator.integers(len(points))
        branch = _walk(size, size * generator.uniform(0.05, 0.25), 0.3, generator)
        parts.append(branch - branch[0] + points[start])
    return _stroke(np.concatenate(parts), size, generator.uniform(1, 2.5))


def _dots(size: int, generator: np.random.Generator) -> np.ndarray:
    rows, columns = np.mgrid[:size, :size]
    image, spread = np.zeros((size, size)), size * generator.uniform(0.02, 0.15)
    for _ in range(generator.integers(1, 7)):
        row, column = size / 2 + generator.normal(0, spread, 2)
        radius = generator.uniform(1, 5)
        distance = np.hypot(rows - row, (columns - column) * generator.uniform(0.7, 1.4))
        image = np.maximum(image, 1 / (1 + np.exp(np.clip(3 * (distance - radius), -30, 30))))
    return image


def _patch(size: int, generator: np.random.Generator) -> np.ndarray:
    """An irregular region with a soft or a sharp edge."""
    rows, columns = np.mgrid[:size, :size]
    radius = size * generator.uniform(0.05, 0.25)
    distance = np.hypot(rows - size / 2, (columns - size / 2) * generator.uniform(0.6, 1.6)) / radius
    noise = gaussian_filter(generator.normal(size=(size, size)), radius / 3, mode="wrap")
    level = distance - 1 + generator.uniform(0, 0.5) * noise / noise.std()
    return 1 / (1 + np.exp(np.clip(level * radius / generator.uniform(0.3, 3), -30, 30)))


def _box(size: int, generator: np.random.Generator) -> np.ndarray:
    image = np.zeros((size, size))
    half = size * np.exp(generator.uniform(np.log(0.015), np.log(0.2), 2))
    top, left = (size / 2 - half).astype(int)
    image[top : size - top, left : size - left] = 1
    return image


def _arc(size: int, generator: np.random.Generator) -> np.ndarray:
    """A part of a circle, or all of it."""
    radius, start = size * generator.uniform(0.04, 0.25), generator.uniform(0, 2 * np.pi)
    angles = start + np.linspace(0, generator.uniform(1.5, 2 * np.pi), 400)
    points = size / 2 + radius * np.stack([np.sin(angles), np.cos(angles)], axis=1)
    return _stroke(points, size, generator.uniform(1, 3))


def _smear(size: int, generator: np.random.Generator) -> np.ndarray:
    """A long region that fades at its ends."""
    rows, columns = np.mgrid[:size, :size] - size / 2
    length, width = size * generator.uniform(0.1, 0.3), size * generator.uniform(0.02, 0.08)
    return np.exp(-0.5 * ((rows / length) ** 2 + (columns / width) ** 2))


_DRAW = {"line": _line, "crack": _crack, "dots": _dots, "patch": _patch, "box": _box, "arc": _arc, "smear": _smear}


def fill(
    images: torch.Tensor, shapes: torch.Tensor, kinds: torch.Tensor, others: torch.Tensor, generator: torch.Generator
) -> torch.Tensor:
    """
    Return images with what the shapes cover made different: brighter or darker, of another texture, flatter, blurred.

    Args:
        images: of unit standard deviation, `(B, 1, H, W)`.
        shapes: coverage in 0..1, `(B, 1, H, W)`.
        kinds: of the shapes, as indices of [`KINDS`], `(B,)`. Only areas get another texture: in a thin shape nobody
            sees one.
        others: images of other textures, `(B, 1, H, W)`.
        generator: of the choices.
    """
    count = (len(images), 1, 1, 1)
    sign = torch.randint(0, 2, count, generator=generator) * 2.0 - 1
    shift = sign * (1.0 + 2.5 * torch.rand(count, generator=generator))
    shift = torch.where(torch.isin(kinds, torch.tensor(_AREAS))[:, None, None, None], shift, shift + 0.5 * sign)
    shifted = images + shift
    flat = images * (0.5 * torch.rand(count, generator=generator)) + 0.5 * shift
    blurred = F.avg_pool2d(images, 5, stride=1, padding=2, count_include_pad=False) + 0.3 * shift
    filled = torch.stack([shifted, shifted, flat, others, blurred])
    choice = torch.randint(0, len(filled), (len(images),), generator=generator)
    choice[~torch.isin(kinds, torch.tensor(_AREAS))] = 0
    return images + shapes * (filled[choice, torch.arange(len(images))] - images)


__all__ = ["KINDS", "draw_shape", "fill"]
