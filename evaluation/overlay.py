"""Heat maps over images."""

from __future__ import annotations

import numpy as np
from matplotlib import colormaps


COLOURMAP = "inferno"


def overlay_heat_map(image: np.ndarray, heat: np.ndarray, threshold: float | None = None) -> np.ndarray:
    """
    Return a grey image under a coloured heat map, `(H, W, 3)` uint8.

    Args:
        image: `(H, W)` uint8.
        heat: `(H, W)` in 0..1; from 0, which leaves the image as it is, to 1, which covers three quarters of it.
        threshold: nothing is drawn below it, and heat at it is drawn like 0.5 of a map without threshold.
    """
    heat = np.clip(heat, 0, 1).astype(np.float32)
    if threshold is not None:
        excess = (heat - threshold) / max(1 - threshold, 1e-6)
        heat = np.where(heat >= threshold, (1 + excess) / 2, 0).astype(np.float32)
    colours = colormaps[COLOURMAP](heat, bytes=True)[..., :3]
    opacity = np.float32(0.75) * heat[..., None]
    return ((1 - opacity) * image[..., None] + opacity * colours).astype(np.uint8)


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
