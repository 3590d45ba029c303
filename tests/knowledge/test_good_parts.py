"""Priors from good parts: the memory bank, distances, their scale, and the table."""

import numpy as np
import pytest
import torch
from good_parts_images import GROUPS, PROCESSOR, fitted_model, rows
from PIL import Image as PILImage
from tiny import stages_model

from kgl.data.images import to_pixel_values
from kgl.errors import InputError
from kgl.knowledge.good_parts import THRESHOLD, GoodParts, cells_of, learn_good_parts, write_good_parts_priors
from kgl.knowledge.thresholds import NO_CELL
from kgl.saliency.maps import to_grid


def cells(count=4, seed=0):
    return torch.randn(count, 6, 4, 5, generator=torch.Generator().manual_seed(seed))


def mean_distance(cell, bank):
    """Return the mean distance of a cell from its three nearest in a bank `(M, D)`."""
    return np.sort(np.linalg.norm(bank - cell, axis=1))[:3].mean()


def as_rows(images):
    """Return the cells of images `(N, D, h, w)` as `(N h w, D)` arrays of double precision."""
    return images.permute(0, 2, 3, 1).flatten(0, 2).double().numpy()


def test_distances_leave_out_the_own_group():
    images, groups = cells(), ["a", "b", "a", "c"]
    good_parts = GoodParts.of(images, groups, seed=0)
    assert len(good_parts.cells) == 4 * 20  # few cells are all kept
    distances = good_parts.distances(images, groups)
    others = {"a": [1, 3], "b": [0, 2, 3], "c": [0, 1, 2]}
    for image, row, column in ((0, 0, 0), (1, 3, 4), (2, 1, 2), (3, 2, 0)):
        cell = images[image, :, row, column].double().numpy()
        expected = mean_distance(cell, as_rows(images[others[groups[image]]]))
        assert distances[image, row, column].item() == pytest.approx(expected, rel=1e-4)
    unknown = good_parts.distances(images[:1], ["new"])
    assert unknown[0, 0, 0].item() == pytest.approx(
        mean_distance(images[0, :, 0, 0].numpy(), as_rows(images)), rel=1e-4
    )
    assert unknown.max() < distances[0].min() + unknown.max() and (unknown[0] < distances[0]).all()


def test_stored_values_are_on_the_scale_of_good_cells():
    images, groups = cells(30), [str(index) for index in range(30)]
    good_parts = GoodParts.of(images, groups, seed=0)
    distances = good_parts.distances(images, groups)
    assert good_parts.middle == pytest.approx(float(np.median(distances)))
    assert good_parts.high == pytest.approx(float(np.quantile(distances, 0.99)))
    ends = torch.tensor([0.0, good_parts.middle, good_parts.high, 2 * good_parts.high - good_parts.middle, 1e6])
    assert good_parts.to_prior(ends).tolist() == [0, 0, THRESHOLD, 2 * THRESHOLD, 255]
    above = (good_parts.to_prior(distances) > THRESHOLD).double().mean()
    assert 0.003 < above <= 0.01
    assert (good_parts.to_prior(distances) == 0).double().mean() == pytest.approx(0.5, abs=0.05)


def test_trust_is_the_share_of_good_images_that_look_less_unusual():
    images, groups = cells(), ["a", "b", "c", "d"]
    good_parts = GoodParts.of(images, groups, seed=0)
    own = good_parts.distances(images, groups).flatten(1).amax(dim=1)  # one cell is 5 % of 20
    np.testing.assert_allclose(good_parts.image_scores, own.sort().values.numpy())
    low, middle, high = (torch.full((1, 4, 5), float(value)) for value in (0, own.sort().values[1] + 1e-4, 1e6))
    assert good_parts.trust(torch.cat([low, middle, high])).tolist() == [0, 0.5, 1]


def test_bank_takes_as_many_cells_of_each_image(monkeypatch):
    monkeypatch.setattr("kgl.knowledge.good_parts.BANK_CELLS", 12)
    good_parts = GoodParts.of(cells(), ["a", "b", "a", "c"], seed=0)
    assert good_parts.owner.tolist() == [0] * 3 + [1] * 3 + [0] * 3 + [2] * 3
    known = {tuple(row) for row in as_rows(cells()).tolist()}
    assert {tuple(row) for row in good_parts.cells.double().tolist()} <= known
    again, other = (GoodParts.of(cells(), ["a", "b", "a", "c"], seed=seed) for seed in (0, 1))
    assert torch.equal(again.cells, good_parts.cells) and not torch.equal(other.cells, good_parts.cells)


def test_order_of_the_images_does_not_matter(tmp_path):
    model, order = fitted_model(), [6, 2, 4, 0, 1, 5, 3]
    tables = [
        write_good_parts_priors(rows(used), model, PROCESSOR, tmp_path / str(used[0])) for used in (range(7), order)
    ]
    first, second = (np.asarray(table["saliency_prior"], dtype=int) for table in tables)
    assert first[[1, 4]].max() > 0
    assert np.abs(first[order] - second).max() <= 1
    np.testing.assert_allclose(np.take(tables[0]["prior_weight"], order), tables[1]["prior_weight"])


def test_table_holds_scaled_distances_and_masks(tmp_path):
    mask = PILImage.new("L", (70, 60))
    mask.putpixel((3, 3), 255)
    model = fitted_model()
    table = write_good_parts_priors(rows(), model, PROCESSOR, tmp_path / "plain", grid=(4, 4))
    masked = rows(masks=(None, mask, *[None] * 5))
    with_mask = write_good_parts_priors(masked, model, PROCESSOR, tmp_path / "masked", grid=(4, 4))
    good_parts = learn_good_parts(rows(), model, PROCESSOR)
    assert len(good_parts.groups) == 4 and len(good_parts.cells) == 5 * 64
    with torch.no_grad():
        distances = good_parts.distances(cells_of(model, to_pixel_values(rows()["image"], PROCESSOR)), GROUPS)
    expected = good_parts.to_prior(to_grid(distances, (4, 4))).numpy()
    priors = np.asarray(table["saliency_prior"], dtype=int)
    assert np.abs(priors[[1, 4]] - expected[[1, 4]]).max() <= 1
    assert not priors[[0, 2, 3, 5, 6]].any()  # good images
    threshold = table["prior_threshold"][:]
    assert [threshold[index] for index in (1, 4)] == [THRESHOLD] * 2 and threshold[0] == NO_CELL
    weight = np.asarray(table["prior_weight"][:])
    assert (weight[[0, 2, 3, 5, 6]] == 1).all()
    np.testing.assert_allclose(weight[[1, 4]], good_parts.trust(distances[[1, 4]]))
    marked = np.asarray(with_mask["saliency_prior"])
    assert marked[1].tolist() == [[255, 0, 0, 0], [0] * 4, [0] * 4, [0] * 4]
    assert with_mask["prior_weight"][1] == 1 and marked[4].tolist() == priors[4].tolist()


def test_finished_table_is_not_computed_again_nor_taken_for_another(tmp_path, monkeypatch):
    model = fitted_model()
    table = write_good_parts_priors(rows(), model, PROCESSOR, tmp_path / "priors")
    distances = GoodParts.distances
    of_defects = []
    monkeypatch.setattr(
        GoodParts, "distances", lambda self, cells, groups: of_defects.append(groups) or distances(self, cells, groups)
    )
    assert write_good_parts_priors(rows(), model, PROCESSOR, tmp_path / "priors")[:] == table[:]
    assert of_defects == [["a", "c", "a", "e", "f"]]  # the bank's own scale alone
    for other in (
        {"dataset": rows(groups=["a", "b", "c", "a", "d", "c", "f"])},
        {"dataset": rows([1, 0, 2, 3, 4, 5, 6])},
        {"grid": (2, 2)},
        {"model": stages_model(seed=1)},
        {"seed": 1},
    ):
        arguments = {"dataset": rows(), "model": model, "grid": None} | other
        with pytest.raises(InputError, match="another model, other settings or other images"):
            write_good_parts_priors(image_processor=PROCESSOR, folder=tmp_path / "priors", **arguments)


def test_last_digits_of_the_bank_do_not_matter(tmp_path, monkeypatch):
    """They depend on the number of threads."""
    model, of = fitted_model(), GoodParts.of
    table = write_good_parts_priors(rows(), model, PROCESSOR, tmp_path / "priors")
    monkeypatch.setattr(GoodParts, "of", lambda cells, groups, seed: of(cells * (1 + 1e-6), groups, seed))
    assert write_good_parts_priors(rows(), model, PROCESSOR, tmp_path / "priors")[:] == table[:]


def test_one_group_of_good_images_is_refused():
    with pytest.raises(InputError, match="at least two independent defect-free images"):
        learn_good_parts(rows(groups=["a", "b", "a", "a", "d", "a", "a"]), fitted_model(), PROCESSOR)
    ungrouped = rows([0, 1, 3]).remove_columns("group")  # two equal images
    with pytest.raises(InputError, match="at least two independent defect-free images"):
        learn_good_parts(ungrouped, fitted_model(), PROCESSOR)
