"""The two layers of the saliency head: networks side by side, what they tell apart."""

import copy

import pytest
import torch

from kgl.training import cell_layers
from kgl.training.cell_layers import fit_cell_layers, score_cells


@pytest.fixture
def trained(monkeypatch):
    """Record the network after every step of its training."""
    networks, states = [], []

    class Recorded(torch.nn.Sequential):
        def __init__(self, *layers):
            super().__init__(*layers)
            networks.append(self)

    class Optimizer(torch.optim.AdamW):
        def step(self, *args, **kwargs):
            super().step(*args, **kwargs)
            states.append(copy.deepcopy(networks[-1]))

    monkeypatch.setattr(cell_layers.nn, "Sequential", Recorded)
    monkeypatch.setattr(torch.optim, "AdamW", Optimizer)
    monkeypatch.setattr(cell_layers, "STEPS", 20)
    return states


def test_layers_are_the_mean_of_the_trained_networks(trained):
    cells = torch.randn(300, 6) * 3 + 1
    layers = fit_cell_layers(cells, None, 9, seed=0)
    assert len(trained) == 20 * 4
    maps = torch.randn(2, 6, 4, 5) * 3 + 1
    expected = []
    for network in trained[19::20]:
        network.eval()
        assert network[1].running_mean.abs().max() > 0.1  # the batch norm has something to fold
        of_good = network(cells)
        middle = of_good.median()  # good cells have median 0, and 1 % of them exceed 1
        score = network(maps.permute(0, 2, 3, 1).reshape(-1, 6))
        expected.append((score - middle) / (of_good.quantile(0.99) - middle))
    expected = torch.stack(expected).mean(dim=0).reshape(2, 1, 4, 5)
    torch.testing.assert_close(score_cells(layers, maps), expected.detach(), rtol=1e-4, atol=1e-5)
    assert not torch.equal(trained[19][0].weight[:2], trained[39][0].weight)


def test_fewer_hidden_units_than_networks(trained):
    layers = fit_cell_layers(torch.randn(300, 6), None, 2, seed=0)
    assert len(trained) == 20 * 2 and layers[0].weight.shape == (2, 6)


def test_layers_tell_good_cells_from_noise_and_from_defects():
    generator = torch.Generator().manual_seed(0)
    good = torch.randn(2000, 6, generator=generator)
    defects = torch.randn(50, 6, generator=generator) * 0.05 + torch.tensor([2.0, 0, 0, 0, 0, 0])

    def scores(layers, cells):
        return score_cells(layers, cells.T[None, :, :, None]).flatten()

    noise_alone, both = fit_cell_layers(good, None, 64, 0), fit_cell_layers(good, defects, 64, 0)
    for layers in (noise_alone, both):
        assert scores(layers, good * 4).median() > scores(layers, good).quantile(0.95)
    assert scores(both, defects).median() > scores(noise_alone, defects).median() + 0.5
    again = fit_cell_layers(good, defects, 64, 0)
    assert torch.equal(again[0].weight, both[0].weight)
    assert not torch.equal(fit_cell_layers(good, defects, 64, 1)[0].weight, both[0].weight)


def test_without_noise_the_defective_cells_alone_are_learned():
    generator = torch.Generator().manual_seed(0)
    good = torch.randn(500, 4, generator=generator)
    defects = torch.randn(500, 4, generator=generator) + torch.tensor([6.0, 0, 0, 0])
    layers = fit_cell_layers(good, defects, 8, 0, noises=[0.0] * 4)
    cells = torch.cat([good, defects, good - torch.tensor([6.0, 0, 0, 0])])
    called = score_cells(layers, cells.T[None, :, :, None]).flatten() > 0
    assert called[:500].double().mean() < 0.02 and called[500:1000].double().mean() > 0.98
    assert called[1000:].double().mean() < 0.02  # as far on the other side
