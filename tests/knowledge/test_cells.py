"""The cell projection: principal components of standardised cells, applied stage by stage."""

import numpy as np
import torch
from tiny import stages_model
from torch.nn import functional as F

from kgl.knowledge.cells import fit_projection, raw_cells


def batches():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(count, 3, 64, 96, generator=generator) for count in (2, 1)]


def maps_of(model):
    """Return the backbone's maps of the batches."""
    with torch.no_grad():
        return [model.features(batch)[0] for batch in batches()]


def raw_cells_of(model):
    """Return all raw cells `(N, C)` of the batches, computed from the backbone's maps."""
    maps = [model.backbone(batch).feature_maps[:2] for batch in batches()]
    return torch.cat([raw_cells(one).flatten(2).transpose(1, 2).flatten(0, 1) for one in maps]).detach().double()


def test_raw_cells_are_averages_of_neighbours():
    fine, coarse = torch.randn(1, 2, 4, 6), torch.randn(1, 3, 2, 3)
    cells = raw_cells((fine, coarse))
    assert cells.shape == (1, 5, 4, 6)
    torch.testing.assert_close(cells[:, :2, 1, 2], fine[..., 0:3, 1:4].mean(dim=(2, 3)))
    torch.testing.assert_close(cells[:, :2, 0, 0], fine[..., 0:2, 0:2].sum(dim=(2, 3)) / 9)  # the corner has 4 cells
    averaged = F.avg_pool2d(coarse, 3, stride=1, padding=1)
    resized = F.interpolate(averaged, size=(4, 6), mode="bilinear", align_corners=False)
    torch.testing.assert_close(cells[:, 2:], resized)


def test_projection_is_that_of_principal_components():
    model = stages_model()
    fit_projection(model, maps_of(model), 3, seed=0)
    raw = raw_cells_of(model).numpy()
    mean, scale = raw.mean(axis=0), raw.std(axis=0, ddof=1) + 1e-3
    standardised = (raw - mean) / scale
    layers = model.saliency_head.fusion.projections
    weight = torch.cat([layer.weight[:, :, 0, 0] for layer in layers], dim=1).detach().double().numpy()
    components = weight * scale
    np.testing.assert_allclose(components @ components.T, np.eye(6), atol=1e-4)
    variances, vectors = np.linalg.eigh(standardised.T @ standardised)
    along = np.abs((components * vectors[:, ::-1].T[:6]).sum(axis=1))  # 1 where they are the same up to a sign
    np.testing.assert_allclose(along, 1, atol=1e-3)
    projected = [model.saliency_head.cells(model.backbone(batch).feature_maps[:2]) for batch in batches()]
    projected = torch.cat([one.flatten(2).transpose(1, 2).flatten(0, 1) for one in projected]).detach().double()
    np.testing.assert_allclose(projected.numpy(), standardised @ components.T, atol=1e-3)
    np.testing.assert_allclose((projected.numpy() ** 2).sum(axis=0), variances[::-1][:6], rtol=1e-3)


def test_components_beyond_the_channels_are_zero():
    model = stages_model(cell_size=40)  # of 28 channels
    fit_projection(model, maps_of(model), 3, seed=0)
    cells = model.saliency_head.cells(model.backbone(batches()[0]).feature_maps[:2])
    assert (cells[:, 28:] == 0).all() and (cells[:, :28].flatten(2).std(dim=(0, 2)) > 0).all()


def test_seed_decides_the_cells_of_a_subsample(monkeypatch):
    monkeypatch.setattr("kgl.knowledge.cells.FITTED_CELLS", 60)
    weights = []
    for seed in (0, 0, 1):
        model = stages_model()
        fit_projection(model, maps_of(model), 3, seed)
        weights.append(model.saliency_head.fusion.projections[0].weight.detach())
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
