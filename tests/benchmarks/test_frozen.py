"""Arms on frozen features, the search of their heads, and the tables of the second edition."""

import json
import sys

import numpy as np
import pytest
import torch

from kgl.benchmarks.evidence import search_heads, second_edition
from kgl.benchmarks.evidence.bench import Bench
from kgl.benchmarks.evidence.frozen import default, regression, shuffled_maps
from kgl.benchmarks.evidence.plan import ARMS, FROZEN_ARMS
from kgl.benchmarks.evidence.records import read_runs
from kgl.benchmarks.evidence.rivals import PatchCore, greedy_coreset, mahalanobis


@pytest.fixture
def short(monkeypatch):
    monkeypatch.setattr("kgl.benchmarks.evidence.rivals.NOISE_STEPS", 20)


def test_every_frozen_arm_runs(tmp_path, short):
    bench = Bench("smoke", 4, 0, False, False, tmp_path)
    for name in FROZEN_ARMS:
        metrics = bench.run(ARMS[name])
        assert 0 <= metrics["ap"] <= 1 and metrics["seconds"] > 0 and 0 <= metrics["marked_good"] <= 1, name
        assert name == "regression, chosen" or 0 <= metrics["saliency_cell_image_ap"] <= 1, name
        assert ("saliency_cell_image_ap" in metrics) == (name != "regression, chosen"), name


def test_the_map_of_another_image_changes_the_score_of_the_map_alone(tmp_path, short):
    bench = Bench("smoke", 4, 0, False, False, tmp_path).frozen
    own, other, plain = (arm(bench).call() for arm in (default, shuffled_maps, regression))
    np.testing.assert_allclose(np.sort(own.saliency.max(axis=(1, 2))), np.sort(other.saliency.max(axis=(1, 2))))
    assert not np.allclose(own.probabilities, other.probabilities)
    assert not np.allclose(own.probabilities, plain.probabilities)


def test_greedy_coreset_takes_the_farthest_cell_each_time():
    cells = torch.tensor([[0.0], [1.0], [10.0], [4.0], [4.5]])
    first, *others = greedy_coreset(cells, 5, 0).tolist()
    chosen = [first]
    for index in others:
        distance = (cells - cells[chosen].T).abs().min(dim=1).values
        assert distance[index] == distance.max() and index not in chosen
        chosen.append(index)


def test_patchcore_scores_the_highest_cell_by_its_neighbourhood():
    generator = torch.Generator().manual_seed(0)
    model = PatchCore(torch.randn(50, 3, generator=generator), seed=0, share=1.0, neighbours=2)
    cells = torch.randn(1, 3, 2, 2, generator=generator)
    cells[0, :, 1, 0] = torch.tensor([9.0, 9.0, 9.0])
    (score,), (distances,) = model.score(cells)
    far = torch.tensor([9.0, 9.0, 9.0])
    nearest = model.bank[(model.bank - far).norm(dim=1).argmin()]
    around = model.bank[(model.bank - nearest).norm(dim=1).argsort()[:2]]
    weight = 1 - (around - far).norm(dim=1).softmax(dim=0)[0]
    assert distances.argmax() == 2 and distances.max() == pytest.approx(float((nearest - far).norm()), rel=1e-5)
    assert score == pytest.approx(float(weight * (nearest - far).norm()), rel=1e-5)


def test_mahalanobis_counts_in_standard_deviations():
    good = torch.randn(4, 2, 20, 20, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 10]).view(
        2, 1, 1
    )
    cells = torch.tensor([[3.0, 0], [0, 30.0]]).T[None, :, None]  # (1, 2, 1, 2)
    np.testing.assert_allclose(mahalanobis(good)(cells)[0, 0].numpy(), [3, 3], rtol=0.1)


def test_search_resumes_and_is_tabulated(tmp_path, monkeypatch, short):
    monkeypatch.setattr(search_heads, "TASK", "smoke")
    monkeypatch.setattr(search_heads, "BUDGET", 4)
    output = tmp_path / "search.jsonl"
    monkeypatch.setattr(sys, "argv", ["search_heads.py", "--cache_dir", str(tmp_path), "--output", str(output)])
    search_heads.main()
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(lines) == 3 * 2 * len(search_heads.CANDIDATES)  # pairs of three folds, each fold tested
    assert all(line["tested"] in line["pair"] for line in lines)
    output.write_text("".join(json.dumps(line) + "\n" for line in lines[:-2]))
    search_heads.main()
    again = [json.loads(line) for line in output.read_text().splitlines()]
    assert again == lines
    table = second_edition.search_table(output)
    mean = np.mean([line["ap"]["alone"] for line in lines if line["candidate"] == "512 k-means centres, random start"])
    assert f"| 512 k-means centres, random start | {mean:.3f} |" in table


def test_tables_of_the_second_edition(tmp_path):
    lines = []
    for seed in range(8):
        for arm, ap in (("default", 0.7 + 0.01 * (seed % 4)), ("frozen regression", 0.6), ("patchcore", 0.5)):
            metrics = {"ap": ap, "seconds": 2.0, "saliency_cell_image_ap": 0.4, "marked_good": 0.1}
            lines.append({"dataset": "boards", "budget": 8, "arm": arm, "seed": seed, "metrics": metrics})
    runs = tmp_path / "runs.jsonl"
    runs.write_text("".join(json.dumps(line) + "\n" for line in lines))
    table = second_edition.differences_table(read_runs(runs), ["frozen regression"])
    assert "| boards | 8 | 8 | 0.715 |" in table
    # over the four folds' means .10, .11, .12, .13: half the interval is 3.182 * .01291 / 2
    assert "+0.115 (+0.094 .. +0.136)" in table and "[8/8]" in table
    summary = second_edition.summary_table(read_runs(runs)).splitlines()
    assert summary[2] == "| frozen regression | **+0.115 (+0.094 .. +0.136)** |  | 1 / 0 / 0 |"
    assert summary[3].startswith("| patchcore | **+0.215 ")
    check = tmp_path / "check.jsonl"
    check.write_text(
        '{"seed": 0, "ap": 0.5, "ap_of_anomalib": 0.25}\n{"seed": 1, "ap": 0.75, "ap_of_anomalib": 0.5}\n'
    )
    assert second_edition.check_table(check).splitlines()[2:] == [
        "| of the bench | 0.500 | 0.750 | 0.625 |", "| anomalib's | 0.250 | 0.500 | 0.375 |"
    ]  # fmt: skip
    assert "0.400" in second_edition.maps_table(read_runs(runs))
    second_edition.draw_seconds(read_runs(runs), tmp_path / "seconds.png")
    assert (tmp_path / "seconds.png").stat().st_size > 1000
