"""Heat maps over images."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps


COLOURMAP = "inferno"
_GREY = np.float32([[0.299], [0.587], [0.114]])  # shares of red, green and blue, as Pillow's


def overlay_heat_map(image: np.ndarray, heat: np.ndarray, threshold: float | None = None) -> np.ndarray:
    """
    Return an image under a coloured heat map, `(H, W, 3)` uint8; its own colours fade as heat covers them.

    Args:
        image: `(H, W)`, grey, or `(H, W, 3)`, uint8.
        heat: `(H, W)` in 0..1; from 0, which leaves the image as it is, to 1, which covers three quarters of it.
        threshold: nothing is drawn below it, and heat at it is drawn like 0.5 of a map without threshold.
    """
    heat = np.clip(heat, 0, 1).astype(np.float32)
    if threshold is not None:
        excess = (heat - threshold) / max(1 - threshold, 1e-6)
        heat = np.where(heat >= threshold, (1 + excess) / 2, 0).astype(np.float32)
    pixels = image.copy() if image.ndim == 3 else np.repeat(image[..., None], 3, axis=2)
    marked = heat > 0
    share, under = heat[marked][:, None], pixels[marked].astype(np.float32)
    under += share * (under @ _GREY - under)  # heat over a colour would have a hue of no heat
    colours, opacity = colormaps[COLOURMAP](share[:, 0], bytes=True)[:, :3], np.float32(0.75) * share
    pixels[marked] = ((1 - opacity) * under + opacity * colours).astype(np.uint8)
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
    highest = float(np.quantile(heat, 1 - share))
    return threshold if suspect is False or highest == 0 else min(threshold, highest)


__all__ = ["COLOURMAP", "overlay_heat_map", "shown_from"]
