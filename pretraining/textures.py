"""Generated textures: grey images of many families, none of which is a surface of `kgl.data.synthetic`."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial import cKDTree


FAMILIES = (
    "power_law", "band", "streaks", "grating", "crossed", "cells", "labyrinth", "ridges", "speckle", "lattice",
    "bricks", "marble", "rings", "leaves", "fibres", "grains",
)  # fmt: skip
# Metal, plastic and paper are mostly noise, so these families have twice as many textures.
_DRAWN = (*FAMILIES, "power_law", "band", "streaks", "speckle")


@dataclass(frozen=True)
class Texture:
    """
    A class of textures: every image of it has the same parameters and other noise.

    Attributes:
        family: one of [`FAMILIES`].
        scale: size of its elements in pixels.
        shape: in 0..1, what the family makes of it: slope, width of a line, regularity.
        angle: in radians.
        warp: how far positions are displaced, in elements.
    """

    family: str
    scale: float
    shape: float
    angle: float
    warp: float


def texture_classes(count: int, seed: int) -> list[Texture]:
    """Return `count` textures, the families in turns; the same seed gives the same ones."""
    generator = np.random.default_rng(seed)
    return [
        Texture(
            family=_DRAWN[index % len(_DRAWN)],
            scale=float(np.exp(generator.uniform(np.log(2.5), np.log(20)))),
            shape=float(generator.uniform()),
            angle=float(generator.uniform(0, np.pi)),
            warp=float(generator.choice([0.0, 0.1, 0.3])),
        )
        for index in range(count)
    ]


def draw_texture(texture: Texture, size: int, generator: np.random.Generator) -> np.ndarray:
    """Return an image of the texture, `(size, size)` float32 of zero mean and unit standard deviation."""
    across, along = _coordinates(texture, size, generator)
    image = _DRAW[texture.family](texture, across, along, generator)
    image = (image - image.mean()) / (image.std() + 1e-6)
    return np.clip(image, -4, 4).astype(np.float32)


def _coordinates(texture: Texture, size: int, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Return positions across and along the texture, in elements, `(size, size)` each."""
    rows, columns = np.mgrid[:size, :size] / texture.scale
    cosine, sine = np.cos(texture.angle), np.sin(texture.angle)
    across, along = cosine * columns + sine * rows, cosine * rows - sine * columns
    if texture.warp:
        across = across + texture.warp * _noise(size, 3 * texture.scale, 0.5, generator)
        along = along + texture.warp * _noise(size, 3 * texture.scale, 0.5, generator)
    return across + generator.uniform(0, 8), along + generator.uniform(0, 8)


def _filtered(response: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return white noise with this response to frequencies, of zero mean and unit standard deviation."""
    noise = np.fft.ifft2(np.fft.fft2(generator.normal(size=response.shape)) * response).real
    return (noise - noise.mean()) / (noise.std() + 1e-9)


@cache
def _frequencies(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Return frequencies in cycles per pixel, vertical and horizontal, `(size, size)` each."""
    one = np.fft.fftfreq(size)
    return np.meshgrid(one, one, indexing="ij")


def _noise(size: int, scale: float, width: float, generator: np.random.Generator) -> np.ndarray:
    """Return noise whose period is about `scale` pixels, by a log-normal band of this width."""
    frequency = np.hypot(*_frequencies(size))
    distance = np.log(np.maximum(frequency, 0.25 / size) * scale)
    return _filtered(np.exp(-0.5 * (distance / width) ** 2), generator)


def _power_law(texture: Texture, across: np.ndarray, along: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    frequency = np.hypot(*_frequencies(len(across)))
    corner = 0.2 / texture.scale
    return _filtered((frequency**2 + corner**2) ** (-0.25 - 0.9 * texture.shape), generator)


def _band(texture: Texture, across: np.ndarray, along: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return _noise(len(across), texture.scale, 0.15 + 0.5 * texture.shape, generator)


def _streaks(texture: Texture, across: np.ndarray, along: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Noise much longer than wide, at any angle."""
    vertical, horizontal = _frequencies(len(across))
    cosine, sine = np.cos(texture.angle), np.sin(texture.angle)
    short, long = cosine * horizontal + sine * vertical, cosine * vertical - sine * horizontal
    width = 0.4 + 0.06 * texture.scale
    length = width * (4 + 20 * texture.shape)
    return _filtered(1 / (1 + (6 * width * short) ** 2) / (1 + (6 * length * long) ** 2), generator)


def _grating(texture: Texture, across: np.ndarray, along: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    wave = np.sin(2 * np.pi * across)
    return np.tanh(wave * (0.3 + 6 * texture.shape)) + 0.4 * generator.normal(size=across.shape)


def _crossed(texture: Texture, across: np.ndarray, along: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Threads over and under each other, in a plain or a twill weave."""
    period = 2 + int(texture.shape * 3)
    over = (np.floor(across) + np.floor(along)) % period < period / 2
    warp, weft = np.abs(np.sin(np.pi * across)), np.abs(np.sin(np.pi * along))
    return np.where(over, warp, weft * 0.8) + 0.15 * generator.normal(size=across.shape)


def _points(texture: Texture, size: int, jitter: float, generator: np.random.Generator) -> np.ndarray:
    """Return points of a disturbed hexagonal lattice around and in the image, `(n, 2)`."""
    count = int(np.ceil(size / texture.scale)) + 3
    rows, columns = np.mgrid[-2:count, -2:count].astype(float)
    columns += 0.5 * (rows % 2)
    points = np.stack([rows, columns], axis=-1).reshape(-1, 2) * texture.scale
    return points + texture.scale * (generator.normal(0, jitter, points.shape) + generator.uniform(0, 1, 2))


def _distances(texture: Texture, size: int, jitter: float, generator: np.random.Generator) -> tuple[np.ndarray, ...]:
    """Return the distances from the nearest and the second point, and the nearest point's index."""
    points = _points(texture, size, jitter, generator)
    pixels = np.mgrid[:size, :size].reshape(2, -1).T
    distances, indices = cKDTree(points).query(pixels, k=2)
    first, second = (distances.T / texture.scale).reshape(2, size, size)
    return first, second, indices[:, 0].reshape(size, size)


def _cells(texture: Texture, across: np.ndarray, along: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Voronoi cells with dark borders, each cell of its own brightness."""
    first, second, index = _distances(texture, len(across), 0.1 + 0.4 * texture.warp, generator)
    level = generator.normal(size=index.max() + 1)[index]
    return texture.shape * level - np.exp(-(((second - first) / 0.12) ** 2)) * 2


def _labyrinth(texture: Texture, across: np.ndarray, along: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Thresholded band-pass noise, as reaction and diffusion leave it."""
    return np.tanh(4 * (_noise(len(across), texture.scale, 0.2, generator) + texture.shape - 0.5))


def _ridges(texture: Texture, across: np.ndarray, along: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Several octaves of the absolute value of noise."""
    size = len(across)
    octaves = [
        (0.35 + 0.4 * texture.shape) ** index * np.abs(_noise(size, 3 * texture.scale / 2**index, 0.4, generator))
        for index in range(4)
    ]
    return -sum(octaves)


def _speckle(texture: Texture, across: np.ndarray, along: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Interference of coherent light: the logarithm of an exponential intensity."""
    size, width = len(across), 0.15 * texture.scale
    real, imaginary = (gaussian_filter(generator.normal(size=(size, size)), width, mode="wrap") for _ in range(2))
    intensity = (real**2 + imaginary**2) / (real**2 + imaginary**2).mean()
    return np.log(intensity + 0.05 + texture.shape)


def _lattice(texture: Texture, across: np.ndarray, along: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Dots on a lattice, more or less regular."""
    first, _, _ = _distances(texture, len(across), 0.02 + 0.5 * texture.warp, generator)
    dots = np.tanh(8 * (0.2 + 0.2 * texture.shape - first))
    return dots * np.sign(np.cos(7 * texture.angle)) + 0.2 * generator.normal(size=across.shape)


def _bricks(texture: Texture, across: np.ndarray, along: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Courses of bricks or tiles with joints, each of its own brightness."""
    row = np.floor(across)
    column = along / (1 + 2 * texture.shape) + 0.5 * (row % 2)
    joint = (across - row < 0.15) | (column % 1 < 0.15 / (1 + 2 * texture.shape))
    level = generator.normal(size=(64, 64))[row.astype(int) % 64, np.floor(column).astype(int) % 64]
    return np.where(joint, -2.0, 0.5 * level) + 0.2 * generator.normal(size=across.shape)


def _marble(texture: Texture, across: np.ndarray, along: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    turbulence = _noise(len(across), 4 * texture.scale, 0.6, generator)
    veins = np.sin(2 * np.pi * 0.3 * across + (1 + 3 * texture.shape) * turbulence)
    return np.abs(veins) ** 0.5 + 0.1 * generator.normal(size=across.shape)


def _rings(texture: Texture, across: np.ndarray, along: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Rings around a point that may lie outside, as of wood or a lathe."""
    middle = generator.uniform(-1, 2, 2) * len(across) / texture.scale
    radius = np.hypot(across - middle[0], along - middle[1])
    return np.sin(2 * np.pi * radius) + (0.2 + 0.6 * texture.shape) * generator.normal(size=across.shape)


def _leaves(texture: Texture, across: np.ndarray, along: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Dead leaves: disks of random size over each other."""
    size = len(across)
    image, (rows, columns) = np.zeros((size, size)), np.ogrid[:size, :size]
    for _ in range(min(300, int(12 * (size / texture.scale) ** 2 / 4))):
        middle, radius = generator.uniform(0, size, 2), texture.scale * generator.uniform(0.3, 1.2)
        top, left = np.maximum((middle - radius).astype(int), 0)
        bottom, right = (middle + radius).astype(int) + 1
        inside = (rows[top:bottom] - middle[0]) ** 2 + (columns[:, left:right] - middle[1]) ** 2 < radius**2
        image[top:bottom, left:right][inside] = generator.normal()
    return gaussian_filter(image, 0.3 + texture.shape)


def _fibres(texture: Texture, across: np.ndarray, along: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Many short lines at any angle, or near one."""
    size = len(across)
    image = np.zeros((size, size))
    for _ in range(int(60 + 3000 / texture.scale)):
        angle = texture.angle + generator.normal(0, 0.1 + 2 * texture.shape)
        start, length = generator.uniform(0, size, 2), texture.scale * generator.uniform(1, 3)
        steps = np.arange(0, length, 0.7)
        at_row, at_column = start[0] + np.sin(angle) * steps, start[1] + np.cos(angle) * steps
        image[at_row.astype(int) % size, at_column.astype(int) % size] += generator.normal()
    return gaussian_filter(image, 0.7, mode="wrap")


def _grains(texture: Texture, across: np.ndarray, along: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Noise that is stretched by noise: flakes of one size, blurred and sharp places."""
    size = len(across)
    fine = _noise(size, max(2.5, texture.scale / 2), 0.4, generator)
    shift = texture.scale * np.stack([_noise(size, 4 * texture.scale, 0.4, generator) for _ in range(2)])
    return map_coordinates(fine, np.mgrid[:size, :size] + (0.2 + texture.shape) * shift, order=1, mode="grid-wrap")


_DRAW = {
    "power_law": _power_law, "band": _band, "streaks": _streaks, "grating": _grating, "crossed": _crossed,
    "cells": _cells, "labyrinth": _labyrinth, "ridges": _ridges, "speckle": _speckle, "lattice": _lattice,
    "bricks": _bricks, "marble": _marble, "rings": _rings, "leaves": _leaves, "fibres": _fibres, "grains": _grains,
}  # fmt: skip


__all__ = ["FAMILIES", "Texture", "draw_texture", "texture_classes"]
