"""Write a dataset as parquet shards that `datasets` reads, in the memory of one row group."""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from datasets import ClassLabel, Dataset, Features, Image, Value

from ..errors import InputError
from .images import image_bytes, without_decoding
from .loading import LoadedDataset
from .progress import progress_bar
from .readers.shards import CONTRACT


GROUP_BYTES = 8 * 2**20  # of a row group, which is read at once
GROUP_IMAGES = 100
SHARD_BYTES = 256 * 2**20


def check_shards_folder(folder: Path) -> None:
    """
    Check that shards can be written to a folder.

    Raises:
        InputError: it is a file, or holds files.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"--to_shards {folder}: it is a file, not a folder.")
    if folder.is_dir() and any(folder.iterdir()):
        raise InputError(f"--to_shards {folder}: the folder holds files; choose a new or empty one.")
    if "::" in str(folder.absolute()):
        raise InputError(f"--to_shards {folder}: shards in a folder with :: in its path cannot be read; rename it.")


def write_shards(loaded: LoadedDataset, folder: Path) -> dict[str, Counter[str]]:
    """
    Write the images of a dataset, in the splits of its source, as `folder/data/SPLIT-00000-of-00001.parquet` ...

    Columns: `image` and `mask` with the bytes of their files, `label`, `group` (near-duplicates share one),
    `file_name` and `digest`. The folder gets its name when all of it is written.

    Args:
        loaded: usable images alone.
        folder: a new or empty one.

    Returns:
        Of each split, the number of `images`, `masks`, `groups`, `shards` and `bytes`.

    Raises:
        InputError: as [`check_shards_folder`], or it cannot be written to.
    """
    check_shards_folder(folder)
    prefix, written = f".{folder.absolute().name}-unfinished-", {}
    parent = folder.absolute().parent
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for leftover in parent.glob(f"{prefix}*"):
            shutil.rmtree(leftover)
        with tempfile.TemporaryDirectory(prefix=prefix, dir=parent) as unfinished:
            data = Path(unfinished) / "shards" / "data"
            data.mkdir(parents=True)
            for split, images in loaded.splits.items():
                written[split] = write_split(images, split, data)
            data.parent.replace(folder)  # an empty folder may be there
    except OSError as error:
        raise InputError(f"--to_shards {folder}: it cannot be written. {error}") from error
    return written


def write_split(images: Dataset, split: str, data: Path) -> Counter[str]:
    """
    Write the images of a split as shards into a folder, and return their counts as [`write_shards`] does.

    Args:
        images: with the columns of `CONTRACT`.
        split: which names the shards.
        data: the folder.
    """
    names = images.features["label"].names
    features = Features(
        image=Image(), label=ClassLabel(names=names), mask=Image(), group=Value("string"),
        file_name=Value("string"), digest=Value("string"),
    )  # fmt: skip
    written = Counter(images=len(images), groups=len(set(images["group"][:])))
    writer, shards = None, []
    rows = progress_bar(_encoded_rows(images), f"Shards of {split}", total=len(images), unit=" images")
    for group, ends_shard in _row_groups(rows):
        if writer is None:
            shards.append(data / f"{len(shards)}.unfinished")
            writer = _open_writer(shards[-1], features)
        writer.write_table(pa.Table.from_pylist(group, features.arrow_schema))
        written.update(bytes=sum(map(_num_bytes, group)), masks=sum(row["mask"] is not None for row in group))
        if ends_shard:
            writer.close()
            writer = None
    if writer is not None:
        writer.close()
    for number, shard in enumerate(shards):
        shard.replace(data / f"{split}-{number:05d}-of-{len(shards):05d}.parquet")
    written.update(shards=len(shards))
    return written


def _row_groups(rows: Iterable[dict[str, Any]]) -> Iterator[tuple[list[dict[str, Any]], bool]]:
    """Yield the rows of every row group, and whether it is the last one of its shard."""
    group, in_group, in_shard = [], 0, 0
    for row in rows:
        group.append(row)
        in_group, in_shard = in_group + _num_bytes(row), in_shard + _num_bytes(row)
        ends_shard = in_shard >= SHARD_BYTES
        if ends_shard or len(group) == GROUP_IMAGES or in_group >= GROUP_BYTES:
            yield group, ends_shard
            group, in_group, in_shard = [], 0, 0 if ends_shard else in_shard
    if group:
        yield group, True


def _num_bytes(row: dict[str, Any]) -> int:
    return sum(len(row[name]["bytes"]) for name in ("image", "mask") if row[name] is not None)


def _open_writer(path: Path, features: Features) -> pq.ParquetWriter:
    """Open a shard; the checksums of its pages tell readers of damage, and encoded images are not compressed again."""
    encoded = [f"{name}.bytes" for name in ("image", "mask")]
    small = ["label", "group", "file_name", "digest", "image.path", "mask.path"]
    compression = dict.fromkeys(encoded, "none") | dict.fromkeys(small, "snappy")
    return pq.ParquetWriter(
        path, features.arrow_schema, compression=compression, use_dictionary=small, write_page_checksum=True
    )


def _encoded_rows(images: Dataset) -> Iterator[dict[str, Any]]:
    """Yield rows with the bytes of images and masks, one at a time."""
    for row in without_decoding(images.select_columns(list(CONTRACT))):
        for column in ("image", "mask"):
            if row[column] is not None:
                row[column] = {"bytes": image_bytes(row[column]), "path": row["file_name"]}
        yield row


__all__ = ["GROUP_BYTES", "GROUP_IMAGES", "SHARD_BYTES", "check_shards_folder", "write_shards", "write_split"]
