"""Maps of what a classifier looks at: one function, one small piece a method."""

from .activations import spatial_layers
from .cam import layer_cam
from .compute import METHODS, compute_saliency
from .maps import to_grid, to_peak_one, to_uint8


__all__ = ["METHODS", "compute_saliency", "layer_cam", "spatial_layers", "to_grid", "to_peak_one", "to_uint8"]
