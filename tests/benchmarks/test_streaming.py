"""The images and the table of the benchmark of streaming."""

import pytest
from datasets import disable_progress_bars

from kgl.benchmarks import streaming
from kgl.data.readers.columns import Columns
from kgl.data.readers.hub import read_hub_dataset
from kgl.data.shard_files import is_in_shard


@pytest.mark.parametrize("job", streaming.JOBS)
def test_jobs_run_on_streamed_images(tmp_path, job):
    disable_progress_bars()
    streaming.write_images(tmp_path, 12, 32)
    images = read_hub_dataset(str(tmp_path / "shards"), None, Columns(), streaming=True).splits["train"]
    assert len(set(images["digest"][:])) == 12
    assert is_in_shard(images.data.column("image")[0]["path"].as_py())
    streaming.run_job(job, images, tmp_path / "own")
    assert (tmp_path / "own" / "priors").exists() == (job == "priors")


def test_table_has_medians_of_paired_rounds():
    memory = [{"anonymous": 400.0 + number, "resident": 500.0} for number in range(20)]
    whole = {"timed": None, "opened": 3.0, "copy_mib": 0.0, "memory": memory}
    lines = [whole | {"arm": arm, "copy_mib": copied} for arm, copied in (("streamed", 0.0), ("copied", 150.0))]
    lines += [
        {"timed": 100, "arm": arm, "job": job, "round": number, "images": 100, "seconds": seconds + number, "cpu": 0.5}
        for arm, seconds in (("streamed", 2), ("copied", 1))
        for job in streaming.JOBS
        for number in range(3)
    ]
    rows = streaming.table(lines).splitlines()
    assert rows[2] == "| streamed | 3 s | 0 MiB | 402 MiB | 418 MiB | 33 (200) | 33 (200) |"
    assert rows[3] == "| copied | 3 s | 150 MiB |  |  | 50 (200) | 50 (200) |"
    assert rows[4].startswith("| streamed / copied |  |  |  |  | 0.67 (1.00) |")
