"""Heat maps over images."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps
from PIL import Image


COLOURMAP = "inferno"
_PALETTE = colormaps[COLOURMAP](np.arange(256), bytes=True)[:, :3].tobytes()
_OPACITY = [round(0.75 * level) for level in range(256)]


def overlay_heat_map(image: np.ndarray, heat: np.ndarray, threshold: float | None = None) -> np.ndarray:
    """
    Return an image under a coloured heat map, `(H, W, 3)` uint8; its own colours fade as heat covers them.

    Args:
        image: `(H, W)`, grey, or `(H, W, 3)`, uint8.
        heat: `(H, W)` in 0..1; from 0, which leaves the image as it is, to 1, which covers three quarters of it.
        threshold: nothing is drawn below it, and heat at it is drawn like 0.5 of a map without threshold.
    """
    heat = np.clip(heat, 0, 1, dtype=np.float32)
    if threshold is not None:
        shown = heat >= threshold
        heat = (1 + (heat - np.float32(threshold)) / np.float32(max(1 - threshold, 1e-6))) / 2 * shown
    # Blended by Pillow, within the heat's bounding box: fast, and without holding Python's lock.
    levels, pixels = Image.fromarray((heat * 255 + 0.5).astype(np.uint8)), Image.fromarray(image).convert("RGB")
    box = levels.getbbox()
    if box is None:
        return np.asarray(pixels)
    levels, under = levels.crop(box), pixels.crop(box)
    if image.ndim == 3:  # heat over a colour would have a hue of no heat
        under = Image.composite(under.convert("L").convert("RGB"), under, levels)
    colours = Image.frombytes("P", levels.size, levels.tobytes())
    colours.putpalette(_PALETTE)
    pixels.paste(Image.composite(colours.convert("RGB"), under, levels.point(_OPACITY)), box)
    return np.asarray(pixels)


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
    highest = float(np.quantile(heat, 1 - share))
    return threshold if highest == 0 else min(threshold, highest)


__all__ = ["COLOURMAP", "overlay_heat_map", "shown_from"]
