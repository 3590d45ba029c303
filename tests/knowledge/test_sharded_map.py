"""Sharded maps: order, batches, streams, resuming, locking, full disks."""

import hashlib
import io
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from datasets import (
    Dataset,
    Features,
    IterableDataset,
    Value,
    load_from_disk,
)

import kgl.knowledge.sharded_map
from kgl.data.progress import disable_progress_bars
from kgl.data.storage import save_dataset
from kgl.errors import InputError
from kgl.knowledge.sharded_map import sharded_map


FEATURES = Features(square=Value("int64"))


@pytest.fixture(autouse=True)
def shards_of_four(request, monkeypatch):
    """Make 25 shards of 100 rows."""
    if "real_shards" not in request.node.name:
        monkeypatch.setattr(kgl.knowledge.sharded_map, "_MIN_SHARD", 4)


def numbers(count=100):
    return Dataset.from_dict({"number": list(range(count))})


def square(rows):
    return {"square": [number**2 for number in rows["number"]]}


def identify(rows):
    return hashlib.sha1(repr(rows["number"]).encode()).hexdigest()


def nothing(row):
    return None


def run(folder, dataset=None, compute=square, identify=identify, batch_size=4, load=nothing):
    dataset = numbers() if dataset is None else dataset
    return sharded_map(
        dataset, load, lambda rows, _: compute(rows), identify, folder / "table", features=FEATURES,
        batch_size=batch_size, title="Squares",
    )  # fmt: skip


def test_table_keeps_the_order_of_the_rows(tmp_path):
    assert run(tmp_path)["square"] == [number**2 for number in range(100)]
    assert load_from_disk(tmp_path / "table")["square"] == [number**2 for number in range(100)]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["table", "table.json"]


def test_batch_size_with_real_shards(tmp_path):
    sizes = []

    def compute(rows):
        sizes.append(len(rows["number"]))
        return square(rows)

    for batch_size in (5, 300):  # the second call finds everything done
        run(tmp_path, numbers(130), compute, batch_size=batch_size)
    assert sizes == [5] * 12 + [4] + [5] * 12 + [4] + [2]  # shards of 64, 64 and 2 rows


def test_stream_makes_the_same_table_in_bounded_memory(tmp_path):
    pulled, computed, most = 0, 0, 0

    def rows():
        nonlocal pulled
        for number in range(1000):
            pulled += 1
            yield {"number": number}

    def compute(batch):
        nonlocal computed, most
        most = max(most, pulled - computed)
        computed += len(batch["number"])
        return square(batch)

    stream = IterableDataset.from_generator(rows, features=Features(number=Value("int64")))
    assert run(tmp_path, stream, compute)["square"] == [number**2 for number in range(1000)]
    assert most <= 256 + 2 * 4 + 1  # a shard, the batch that is computed, and one in advance


@pytest.mark.parametrize("threads", [1, 2, 64])
def test_rows_are_loaded_in_order_and_at_most_a_batch_in_advance(tmp_path, monkeypatch, threads):
    monkeypatch.setattr("torch.get_num_threads", lambda: threads)
    loaded, computed, ahead = [], [], []

    def load(row):
        time.sleep(0.002 * (row["number"] % 3))  # the first to start are not the first to end
        loaded.append(row["number"])
        return 10 * row["number"]

    def compute(rows, tens):
        assert tens == [10 * number for number in rows["number"]]
        time.sleep(0.01)
        computed.extend(rows["number"])
        ahead.append(len(loaded) - len(computed))
        return square(rows)

    table = sharded_map(
        numbers(42), load, compute, identify, tmp_path / "table", features=FEATURES, batch_size=3, title="Squares"
    )
    assert table["square"] == [number**2 for number in range(42)] and computed == list(range(42))
    assert 0 < max(ahead) <= 3


def test_shards_before_an_unreadable_row_are_kept(tmp_path):
    def load(row):
        if row["number"] == 42:
            raise InputError("unreadable")

    with pytest.raises(InputError, match="unreadable"):
        run(tmp_path, load=load)
    assert len(list((tmp_path / "table.shards").glob("0*"))) == 10
    assert run(tmp_path)["square"] == [number**2 for number in range(100)]


def test_second_process_is_refused(tmp_path):
    def compute(rows):
        with pytest.raises(InputError, match="another process is running in it"):
            run(tmp_path)
        return square(rows)

    run(tmp_path, numbers(4), compute)


def test_stopped_pass_resumes_and_finished_pass_computes_nothing(tmp_path):
    done = []

    def stopping(rows):
        if len(done) == 60:
            raise KeyboardInterrupt
        done.extend(rows["number"])
        return square(rows)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, compute=stopping)
    assert not (tmp_path / "table").exists()
    rest = []
    table = run(tmp_path, compute=lambda rows: rest.extend(rows["number"]) or square(rows))
    assert rest == list(range(60, 100))
    assert table["square"] == [number**2 for number in range(100)]

    def never(rows):
        raise AssertionError("computed again")

    assert run(tmp_path, compute=never)["square"] == table["square"]


def test_results_of_other_settings_are_neither_reused_nor_overwritten(tmp_path):
    def stopping(rows):
        if rows["number"][0] == 40:
            raise KeyboardInterrupt
        return square(rows)

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, compute=stopping)
    computed = []

    def other(rows):
        return "other settings" + identify(rows)

    run(tmp_path, compute=lambda rows: computed.extend(rows["number"]) or square(rows), identify=other)
    assert computed == list(range(100))  # the stored half was made with other settings
    with pytest.raises(InputError, match="another model, other settings or other images"):
        run(tmp_path)
    with pytest.raises(InputError, match="another model, other settings or other images"):
        run(tmp_path, numbers(96), identify=other)  # fewer rows, all of them stored
    assert load_from_disk(tmp_path / "table")["square"] == [number**2 for number in range(100)]


def test_foreign_folder_and_empty_dataset_are_refused(tmp_path):
    (tmp_path / "table").mkdir()
    with pytest.raises(InputError, match="not made here"):
        run(tmp_path)
    with pytest.raises(InputError, match="no rows"):
        run(tmp_path / "other", numbers(0))


def test_full_disk_keeps_finished_shards(tmp_path):
    """A limit on the size of files simulates a full disk: the last shards do not fit."""
    features = Features(square=Value("string"))

    def growing(rows):
        return {"square": ["x" * (50_000 if number >= 90 else 1) for number in rows["number"]]}

    def write():
        sharded_map(
            numbers(), nothing, lambda rows, _: growing(rows), identify, tmp_path / "table", features=features,
            batch_size=4, title="Strings",
        )  # fmt: skip

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(InputError, match=r"cannot be written: .*make room and run the same command again"):
            write()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    shards = sorted((tmp_path / "table.shards").glob("0*"))
    assert len(shards) == 22 and not (tmp_path / "table").exists()  # 88 rows in shards of four
    assert all(len(load_from_disk(shard)) == 4 for shard in shards)
    write()
    assert len(load_from_disk(tmp_path / "table")) == 100


class Terminal(io.StringIO):
    """Standard error on a terminal."""

    def isatty(self):
        return True


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_bar_on_a_terminal_only(tmp_path, monkeypatch, terminal):
    stream = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    run(tmp_path)
    assert ("Squares:" in stream.getvalue()) == terminal
    assert terminal or not stream.getvalue()


def test_no_progress_bar_where_they_are_disabled(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stderr", Terminal())
    disable_progress_bars()
    run(tmp_path)
    assert not sys.stderr.getvalue()


KILLED = """
import sys, time
from pathlib import Path
sys.path[:0] = [{tests!r}, {helpers!r}]
import kgl.knowledge.sharded_map
from test_sharded_map import run, square
kgl.knowledge.sharded_map._MIN_SHARD = 4
with open({log!r}, "a") as log:
    def slow(rows):
        time.sleep(0.05)
        print(*rows["number"], file=log, flush=True)
        return square(rows)
    run(Path({folder!r}), compute=slow)
"""


def test_killed_pass_computes_only_missing_shards(tmp_path):
    log, folder = tmp_path / "log", tmp_path / "out"
    code = KILLED.format(
        tests=str(Path(__file__).parent), helpers=str(Path(__file__).parents[1]), log=str(log), folder=str(folder)
    )
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(folder.glob("table.shards/0*"))) < 5:
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    whole = {int(path.name[:6]) for path in folder.glob("table.shards/0*")}
    assert 5 <= len(whole) < 25
    log.unlink()
    table = run(folder, compute=lambda rows: log.open("a").write(f"{rows['number'][0]}\n") and square(rows))
    assert {int(line) // 4 for line in log.read_text().split()} == set(range(25)) - whole
    assert table["square"] == [number**2 for number in range(100)]
    assert sorted(path.name for path in folder.iterdir()) == ["table", "table.json"]


def test_saving_removes_only_its_own_unfinished_folders(tmp_path):
    (tmp_path / "priors.unfinished").mkdir()
    (tmp_path / "priors.unfinished" / "thesis.txt").write_text("mine")
    (tmp_path / ".priors-unfinished-abc").mkdir()  # a killed run's
    save_dataset(numbers(), tmp_path / "priors")
    assert len(load_from_disk(tmp_path / "priors")) == 100
    assert (tmp_path / "priors.unfinished" / "thesis.txt").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["priors", "priors.unfinished"]
