"""Synthetic surfaces with synthetic defects and exact masks, for the demo and the tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from skimage.draw import bezier_curve, disk
from skimage.filters import gaussian

from .readers.source import SourceDataset
from .schema import defect_dataset


TEXTURES = ("brushed", "woven", "cast")
CLASSES = ("good", "scratch", "pit", "stain")


def generate_surfaces(count: int, size: int, seed: int) -> SourceDataset:
    """Return `count` surfaces of side `size` in pixels: every second one is good, the others take turns."""
    labels = [CLASSES[0] if index % 2 == 0 else CLASSES[1 + index // 2 % 3] for index in range(count)]
    surfaces = [generate_surface(label, size, seed * 1_000_003 + index) for index, label in enumerate(labels)]
    train = defect_dataset(
        images=[surface.image for surface in surfaces],
        labels=labels,
        names=list(CLASSES),
        masks=[surface.mask.astype(np.uint8) * 255 for surface in surfaces],
        file_names=[f"surface-{index}.png" for index in range(count)],
    )
    return SourceDataset({"train": train}, "--dataset surfaces")


@dataclass(frozen=True)
class Surface:
    """A grey image `(H, W)` uint8, its class, and its defect mask `(H, W)` bool."""

    image: np.ndarray
    label: str
    mask: np.ndarray


def generate_surface(label: str, size: int, seed: int) -> Surface:
    """
    Generate a surface of a random texture with at most one defect; the same arguments give the same pixels.

    Args:
        label: one of [`CLASSES`].
        size: side in pixels, at least 32.
        seed: any non-negative integer.

    Raises:
        ValueError: an unknown label, or an image too small for its defect.
    """
    if label not in CLASSES:
        raise ValueError(f"label={label!r}: choose one of {', '.join(CLASSES)}.")
    if size < 32:
        raise ValueError(f"size={size}: it must be at least 32 pixels.")
    generator = np.random.default_rng([seed, CLASSES.index(label)])
    texture = TEXTURES[generator.integers(len(TEXTURES))]
    surface = _texture(texture, size, generator)
    surface += _shading(size, generator)
    # `alpha` is the share of defect in each pixel; it is scaled to standard deviations of the texture.
    alpha = np.zeros((size, size))
    if label == "scratch":
        alpha = _scratch(size, generator)
        surface += alpha * generator.choice([-1, 1]) * generator.uniform(2.0, 2.8)
    elif label == "pit":
        alpha = _pits(size, generator)
        surface -= alpha * generator.uniform(2.4, 3.2)
    elif label == "stain":
        alpha = _stain(size, generator)
        surface -= alpha * generator.uniform(1.2, 1.6)
    image = generator.uniform(105, 150) + generator.uniform(14, 22) * surface
    image += generator.normal(0, 2.0, surface.shape)
    return Surface(np.clip(image, 0, 255).round().astype(np.uint8), label, alpha > 0.4)


def _texture(name: str, size: int, generator: np.random.Generator) -> np.ndarray:
    """Return a texture `(size, size)` of zero mean and unit standard deviation."""
    noise = generator.normal(size=(size, size))
    if name == "brushed":
        sigma = [generator.uniform(0.4, 0.8), generator.uniform(8, 16)]
        texture = _smooth(noise, sigma if generator.random() < 0.5 else sigma[::-1])
    elif name == "woven":
        period = generator.uniform(5, 9)
        rows, columns = np.mgrid[:size, :size] + _smooth(generator.normal(size=(2, size, size)), (0, 4, 4)) * 6
        texture = np.sin(2 * np.pi * rows / period) * np.sin(2 * np.pi * columns / period)
        texture = texture + _smooth(noise, 1)
    else:
        # Mottled more finely than the smallest stain: among mottles of its own size nobody sees one.
        texture = _smooth(noise, 1) * 1.2 + _smooth(generator.normal(size=(size, size)), 2) * 2.5
    return (texture - texture.mean()) / texture.std()


def _smooth(noise: np.ndarray, sigma: float | Sequence[float]) -> np.ndarray:
    """Return noise smoothed around the edges: mirrored there, it would vary more than elsewhere."""
    return gaussian(noise, sigma=sigma, mode="wrap")


def _shading(size: int, generator: np.random.Generator) -> np.ndarray:
    """Return a brightness gradient `(size, size)`, which is no defect."""
    rows, columns = np.mgrid[:size, :size] / size - 0.5
    angle = generator.uniform(0, 2 * np.pi)
    return generator.uniform(0, 2.0) * (np.cos(angle) * rows + np.sin(angle) * columns)


def _scratch(size: int, generator: np.random.Generator) -> np.ndarray:
    """Return a bent line one to two pixels wide, `(size, size)` in 0..1."""
    angle, length = generator.uniform(0, np.pi), size * generator.uniform(0.25, 0.6)
    middle = generator.uniform(0.3, 0.7, 2) * size
    half = 0.5 * length * np.array([np.sin(angle), np.cos(angle)])
    bend = middle + generator.normal(0, 0.1 * length, 2)
    points = [np.clip(point, 1, size - 2).round().astype(int) for point in (middle - half, bend, middle + half)]
    line = np.zeros((size, size))
    rows, columns = bezier_curve(*points[0], *points[1], *points[2], weight=1.0, shape=line.shape)
    line[rows, columns] = 1
    line = gaussian(line, sigma=generator.uniform(0.5, 0.8))
    return line / line.max()


def _pits(size: int, generator: np.random.Generator) -> np.ndarray:
    """Return one to four round holes close together, `(size, size)` in 0..1."""
    pits = np.zeros((size, size))
    middle = generator.uniform(0.2, 0.8, 2) * size
    for _ in range(generator.integers(1, 5)):
        centre = np.clip(middle + generator.normal(0, 0.06 * size, 2), 4, size - 5)
        pits[disk(centre, generator.uniform(1.5, 3.2), shape=pits.shape)] = 1
    return gaussian(pits, sigma=0.5)


def _stain(size: int, generator: np.random.Generator) -> np.ndarray:
    """Return an irregular patch with soft edges, `(size, size)` in 0..1."""
    middle, radius = generator.uniform(0.25, 0.75, 2) * size, size * generator.uniform(0.1, 0.18)
    rows, columns = np.mgrid[:size, :size]
    distance = np.hypot(rows - middle[0], columns - middle[1]) / radius
    ragged = distance + _smooth(generator.normal(size=(size, size)), size / 16) * 6
    return gaussian((ragged < 1).astype(float), sigma=1.0)


__all__ = ["CLASSES", "TEXTURES", "Surface", "generate_surface", "generate_surfaces"]
