"""Fusing, storing and resizing of maps."""

import numpy as np
import pytest
import torch

from kgl.errors import InputError
from kgl.saliency.maps import fuse, to_grid, to_uint8


def test_fuse_by_hand():
    maps = [torch.tensor([[[2.0, 0.0]]]), torch.tensor([[[5.0]]]), torch.zeros(1, 1, 1)]
    assert fuse(maps).tolist() == [[[1.0, 1.0]]]
    assert fuse(maps[:1]).tolist() == [[[2.0, 0.0]]]


def test_to_uint8_scales_each_map_by_its_peak():
    maps = torch.tensor([[[0.0, 1.0], [2.0, 4.0]], [[0.0, 0.0], [0.0, 0.0]]])
    assert to_uint8(maps).tolist() == [[[0, 64], [128, 255]], [[0, 0], [0, 0]]]


def test_to_uint8_refuses_maps_that_are_not_finite():
    maps = torch.tensor([[[0.0, 1.0]], [[0.0, np.nan]], [[np.inf, 0.0]]])
    with pytest.raises(InputError, match=r"hold NaN or infinity: number 1 of the batch, number 2 of the batch\."):
        to_uint8(maps)
    with pytest.raises(InputError, match=r"hold NaN or infinity: b\.png, c\.png\."):
        to_uint8(maps, ["a.png", "b.png", "c.png"])


def test_to_grid_averages_or_interpolates():
    fine = torch.arange(16.0).view(1, 4, 4)
    assert to_grid(fine, (2, 2)).tolist() == [[[2.5, 4.5], [10.5, 12.5]]]
    assert to_grid(fine, (4, 4)) is fine
    coarse = torch.tensor([[[0.0, 1.0]]])
    torch.testing.assert_close(to_grid(coarse, (2, 4)), torch.tensor([[[0, 0.25, 0.75, 1]] * 2]).view(1, 2, 4))
