"""Heat maps over images."""

from __future__ import annotations

import math

import numpy as np
from matplotlib import colormaps
from PIL import Image


COLOURMAP = "inferno"
_PALETTE = colormaps[COLOURMAP](np.arange(256), bytes=True)[:, :3].tobytes()
_OPACITY = [round(0.75 * level) for level in range(256)]
_BAND = 64  # rows that are blended at a time: what Pillow makes of them stays in the processor's cache


def overlay_heat_map(image: np.ndarray, heat: np.ndarray, threshold: float | None = None) -> np.ndarray:
    """
    Return an image under a coloured heat map, `(H, W, 3)` uint8; its own colours fade as heat covers them.

    Args:
        image: `(H, W)`, grey, or `(H, W, 3)`, uint8.
        heat: `(H, W)` in 0..1; from 0, which leaves the image as it is, to 1, which covers three quarters of it.
        threshold: nothing is drawn below it, and heat at it is drawn like 0.5 of a map without threshold.
    """
    return np.asarray(_blend(Image.fromarray(image), Image.fromarray(_drawn_levels(heat, threshold))))


def overlay_grey_heat_map(image: Image.Image, heat_map: Image.Image, threshold: float) -> Image.Image:
    """Return the same, RGB, of an image and a grey heat map of its size, 255 for 1, as pipelines return it."""
    levels = _drawn_levels(np.arange(256, dtype=np.float32) / np.float32(255), threshold)
    return _blend(image, heat_map.point(levels.tolist()))


def _drawn_levels(heat: np.ndarray, threshold: float | None) -> np.ndarray:
    """Return how strongly heat is drawn, from 0 to 255, uint8."""
    heat = np.clip(heat, 0, 1, dtype=np.float32)
    if threshold is not None:
        shown = heat >= threshold
        heat = (1 + (heat - np.float32(threshold)) / np.float32(max(1 - threshold, 1e-6))) / 2 * shown
    return (heat * 255 + 0.5).astype(np.uint8)


def _blend(image: Image.Image, levels: Image.Image) -> Image.Image:
    """Blend by Pillow, where there is heat: fast, and without holding Python's lock."""
    pixels = image.convert("RGB")
    pixels.info = {}  # a comment of the image's file is none of the overlay's
    for top in range(0, levels.height, _BAND):
        band = levels.crop((0, top, levels.width, min(top + _BAND, levels.height)))
        box = band.getbbox()
        if box is None:
            continue
        band, box = band.crop(box), (box[0], top + box[1], box[2], top + box[3])
        if image.mode != "L":  # heat over a colour would have a hue of no heat
            pixels.paste(pixels.crop(box).convert("L").convert("RGB"), box, band)
        colours = Image.frombytes("P", band.size, band.tobytes())
        colours.putpalette(_PALETTE)
        pixels.paste(colours.convert("RGB"), box, band.point(_OPACITY))
    return pixels


def shown_from(heat: np.ndarray, threshold: float, suspect: bool | None, share: float) -> float:
    """
    Return the value from which an image's heat map is drawn.

    It is the threshold; of an image that is not called good it is lower where needed, so that the cells that decided,
    the highest ones, are shown.

    Args:
        heat: `(h, w)` in 0..1.
        threshold: of the model's heat map.
        suspect: whether the image is not called good; None where the model makes no decision.
        share: of the cells that are shown at least, the config's `top_cells`.
    """
    if suspect is False:
        return threshold
    return _not_above(threshold, float(np.quantile(heat, 1 - share)))


def grey_shown_from(heat_map: Image.Image, threshold: float, suspect: bool, share: float) -> float:
    """Return the same of a grey heat map, 255 for 1; its histogram has the quantile in a fifth of the time."""
    if not suspect:
        return threshold
    counts = np.cumsum(heat_map.histogram())
    position = (1 - share) * (counts[-1] - 1)
    low, high = np.searchsorted(counts, (math.floor(position), math.ceil(position)), side="right")
    return _not_above(threshold, float(low + (high - low) * (position % 1)) / 255)


def _not_above(threshold: float, highest: float) -> float:
    return threshold if highest == 0 else min(threshold, highest)


__all__ = ["COLOURMAP", "grey_shown_from", "overlay_grey_heat_map", "overlay_heat_map", "shown_from"]
