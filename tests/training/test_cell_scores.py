"""The score of a cell: distance from stored cells, and what defective cells add."""

import pytest
import torch
from sklearn.metrics import roc_auc_score

from kgl.training.cell_scores import cell_features, fit_cell_score, fit_marked_cells, greedy_coreset


def as_map(cells):
    """Return cells `(M, D)` as one image `(1, D, 1, M)`."""
    return cells.T[None, :, None]


def test_few_good_cells_are_stored_as_they_are():
    good = torch.tensor([[0.0, 0.0], [3.0, 4.0]])
    score = fit_cell_score(good, None, 5, seed=0)
    assert score.memory.shape == (5, 2) and {tuple(one) for one in score.memory.tolist()} == {(0, 0), (3, 4)}
    cells = torch.tensor([[0.0, 1.0], [3.0, 4.0], [6.0, 8.0]])
    torch.testing.assert_close(score(as_map(cells)), torch.tensor([[[1.0, 0.0, 5.0]]]))


def test_every_cluster_of_good_cells_has_centres():
    generator = torch.Generator().manual_seed(0)
    centres = torch.tensor([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    good = (centres[:, None] + torch.randn(3, 200, 2, generator=generator) / 10).flatten(0, 1)
    memory = fit_cell_score(good, None, 30, seed=0).memory
    assert torch.cdist(good, memory).amin(dim=1).max() < 0.4
    assert torch.cdist(memory, centres).amin(dim=1).max() < 0.4
    assert torch.equal(fit_cell_score(good, None, 30, seed=0).memory, memory)
    assert not torch.equal(fit_cell_score(good, None, 30, seed=1).memory, memory)


def test_defective_cells_among_the_good_ones_are_learned():
    """A direction tells them apart, the distance does not."""
    generator = torch.Generator().manual_seed(0)
    good = torch.randn(2000, 4, generator=generator)
    defective = torch.randn(200, 4, generator=generator) * 0.1 + torch.tensor([1.0, 0, 0, 0])
    target = torch.arange(2200) >= 2000
    auroc = {
        name: roc_auc_score(target, fit_cell_score(good, known, 64, 0)(as_map(torch.cat([good, defective])))[0, 0])
        for name, known in (("distance", None), ("learned", defective))
    }
    assert auroc["distance"] < 0.5 and auroc["learned"] > 0.8


def test_a_large_distance_counts_beside_what_is_learned():
    generator = torch.Generator().manual_seed(0)
    good = torch.randn(2000, 4, generator=generator)
    defective = torch.randn(200, 4, generator=generator) * 3
    score = fit_cell_score(good, defective, 64, 0)
    features = cell_features(torch.tensor([[9.0, 0, 0, 0], [-9.0, 0, 0, 0], [0, 0, 0, 0.0]]), score.memory)
    assert features.shape == (3, 5) and score.weight[-1] > 0
    far, opposite, inside = score.of_features(features).tolist()
    assert min(far, opposite) > inside
    assert score(as_map(features[:, :4]))[0, 0].tolist() == pytest.approx([far, opposite, inside], rel=1e-4)


def test_marked_cells_are_told_apart_without_a_distance():
    generator = torch.Generator().manual_seed(0)
    others, marked = torch.randn(400, 4, generator=generator), torch.randn(100, 4, generator=generator)
    marked[:, 2] += 3
    score = fit_marked_cells(marked, others, 8)
    assert score.memory.shape == (8, 4) and score.weight.shape == (5,) and score.weight[-1] == 0
    assert int(score.weight.argmax()) == 2
    values = score(as_map(torch.cat([others, marked])))[0, 0]
    assert roc_auc_score(torch.arange(500) >= 400, values) > 0.95


def test_coreset_takes_the_farthest_cell_each_time():
    cells = torch.tensor([[0.0], [1.0], [4.0], [10.0]])
    first, *rest = greedy_coreset(cells, 4, seed=0).tolist()
    expected = {0: [3, 2, 1], 1: [3, 2, 0], 2: [3, 0, 1], 3: [0, 2, 1]}[first]
    assert rest == expected
    assert sorted(greedy_coreset(torch.zeros(5, 2), 5, seed=0).tolist()) == [0, 1, 2, 3, 4]


def test_a_rare_kind_of_good_cell_has_a_centre_of_its_own():
    generator = torch.Generator().manual_seed(0)
    good = torch.cat([torch.randn(3000, 2, generator=generator), torch.tensor([[30.0, 0.0]])])
    memory = fit_cell_score(good, None, 16, seed=0).memory
    assert torch.cdist(torch.tensor([[30.0, 0.0]]), memory).min() < 1e-3
