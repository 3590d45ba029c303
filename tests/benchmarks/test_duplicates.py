"""The benchmark of the search for near-duplicates: generated hashes, comparison, tables."""

import numpy as np

from kgl.benchmarks import duplicates


REAL = np.random.default_rng(0).integers(0, 2**64, (20, 4), dtype=np.uint64)


def test_generated_hashes_have_copies_equal_and_alike_ones():
    hashes = duplicates.generate_hashes(4000, REAL)
    assert (hashes == REAL[0]).all(axis=1).sum() == 20
    assert (np.bitwise_count(hashes ^ REAL[-1]).sum(axis=1) <= 8).sum() == 20
    copies = np.bitwise_count(hashes[-200:, None] ^ hashes[None, :-200]).sum(axis=2).min(axis=1)
    assert (copies <= 8).mean() > 0.9


def test_comparison_names_pairs_and_groups_that_differ(monkeypatch):
    hashes = duplicates.generate_hashes(1000, REAL)
    assert {"same_pairs": True, "same_groups": True}.items() <= duplicates.compare("generated", hashes, 16).items()
    monkeypatch.setattr(duplicates, "find_near_duplicates", lambda hashes, distance: np.zeros(len(hashes)))
    monkeypatch.setattr(duplicates, "distance_keys", lambda distance, groups, together: [((0, 0, 31),)])
    assert {"same_pairs": False, "same_groups": False}.items() <= duplicates.compare("x", hashes, 16).items()


def test_growth_is_the_slope_between_the_medians_of_two_sizes():
    lines = [
        {"kind": "search", "arm": "keys", "hashes": hashes, "cpu_seconds": cpu, "seconds": cpu, "peak_mib": 1}
        for hashes, cpu in ((1000, 2.0), (100_000, 100.0), (100_000, 200.0), (100_000, 900.0))
    ]
    assert (
        duplicates.search_table(lines).splitlines()[-1] == "| this search | 100,000 | 3 | 200.0 | 200.0 | 1 | 1.00 |"
    )


def test_speed_of_two_processes_is_a_ratio_of_times():
    line = {"kind": "workers", "seconds_1": 3.0, "seconds_2": 2.0, "control_1": 4.0, "control_2": 2.0}
    table = duplicates.workers_table([line | {"cpu_1": 3.0, "cpu_2": 3.5, "main_cpu_1": 3.0, "main_cpu_2": 0.5}])
    assert "| decode and hash, seconds | 3.00 | 2.00 | 1.50 (1.50 .. 1.50) |" in table
    assert "2.00 (2.00 .. 2.00)" in table
    assert "| decode and hash, CPU seconds of the busiest process | 3.00 | 1.50 | 2.00 (2.00 .. 2.00) |" in table
