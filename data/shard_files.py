"""
Images inside shards as files of `fsspec`, so that `datasets.Image` opens them by their path.

`shard://GROUP/ROW/COLUMN::FILE` is an image in a row group of a parquet file, `shard://OFFSET/SIZE::FILE` one in a tar
file. A parquet file is read by row groups, of which the last ones stay in memory.
"""

from __future__ import annotations

import io
import os
import re
import threading
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset
from fsspec.core import url_to_fs

from ..errors import InputError


PROTOCOL = "shard"
BUFFERED_GROUPS = 16  # row groups that training shuffles together
_CACHED_GROUPS = BUFFERED_GROUPS + 8  # of the next ones, and of masks
_OPEN_FILES = 32
_NUMBERED = re.compile(r"(.+)-(\d+)-of-(\d+)(\.\w+)")
_BLOCK = 64  # images of a tar file that are read together
_READING = threading.Lock()  # threads share open files, and one row group is read once


class ShardFileSystem(fsspec.AbstractFileSystem):
    """
    Read-only files inside one shard.

    Args:
        fo: the shard, for the file system of `target_protocol`.
        target_protocol: where the shard is, such as `file` or `hf`.
        target_options: of that file system.
    """

    protocol = PROTOCOL
    root_marker = ""

    def __init__(
        self,
        fo: str = "",
        target_protocol: str | None = None,
        target_options: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        local = target_protocol in (None, "file", "local")
        self._file = fo if local else f"{target_protocol}://{fo.removeprefix(f'{target_protocol}://')}"

    def _open(self, path: str, mode: str = "rb", **options: Any) -> io.BytesIO:
        return io.BytesIO(_read_inside(self._file, path))


fsspec.register_implementation(PROTOCOL, ShardFileSystem, clobber=True)


def is_in_shard(path: str | None) -> bool:
    """Return whether a path is one of an image inside a shard."""
    return path is not None and path.startswith(f"{PROTOCOL}://")


def read_from_shard(path: str) -> bytes:
    """
    Return the image at a path of [`shard_path`].

    Raises:
        ValueError: there is none in its row.
    """
    inside, _, file = path.removeprefix(f"{PROTOCOL}://").partition("::")
    return _read_inside(file, inside)


def _read_inside(file: str, inside: str) -> bytes:
    first, second, *column = inside.split("/", 2)
    if not column:
        return read_range(file, int(first), int(second))
    # By process: a forked one must not share connections and positions of open files.
    with _READING:
        content = _read_row_group(os.getpid(), file, int(first), column[0])[int(second)].as_py()
    if not content:
        raise ValueError("no image in its row of the shard")
    return content


def open_parquet(file: str) -> pq.ParquetFile:
    """Open a parquet file, on this machine or at an address of `fsspec`; checksums are compared where it has some."""
    file_system, path = url_to_fs(file)
    local = "file" in file_system.protocol
    return pq.ParquetFile(path if local else file_system.open(path), page_checksum_verification=True)


def read_range(file: str, offset: int, size: int) -> bytes:
    """Return some bytes of a file, on this machine or at an address of `fsspec`."""
    file_system, path = url_to_fs(file)
    return file_system.cat_file(path, offset, offset + size)


@lru_cache(maxsize=_OPEN_FILES)
def _opened(process: int, file: str) -> pq.ParquetFile:
    return open_parquet(file)


@lru_cache(maxsize=_CACHED_GROUPS)
def _read_row_group(process: int, file: str, group: int, column: str) -> pa.ChunkedArray:
    """
    Return the encoded images of a column in a row group.

    Raises:
        InputError: it is damaged.
    """
    try:
        table = _opened(process, file).read_row_group(group, columns=[f"{column}.bytes"])
    except (OSError, pa.ArrowInvalid) as error:
        raise InputError(f"{file}: the shard is damaged, copy it again. {' '.join(str(error).split())}") from error
    return pc.struct_field(table[column], "bytes")


def check_complete(files: Iterable[Path]) -> None:
    """
    Check that no shard is missing among files, by names such as `train-00000-of-00008.parquet`.

    Raises:
        InputError: one is; the message names it.
    """
    found: dict[tuple[Path, str, str, str], set[int]] = {}
    for file in files:
        parts = _NUMBERED.fullmatch(file.name)
        if parts is not None:
            found.setdefault((file.parent, parts[1], parts[3], parts[4]), set()).add(int(parts[2]))
    for (folder, name, count, suffix), numbers in found.items():
        missing = sorted(set(range(int(count))) - numbers)
        if missing:
            first = folder / f"{name}-{missing[0]:0{len(count)}}-of-{count}{suffix}"
            others = f", like {len(missing) - 1} more of {int(count)}" if len(missing) > 1 else ""
            raise InputError(f"{first} is missing{others}; copy it again, or rename the others to go without.")


def shard_blocks(dataset: Dataset) -> list[np.ndarray] | None:
    """
    Return the row numbers of the images that are read together, block by block; None where they are in no shards.

    Args:
        dataset: column `image`; its first row tells.
    """
    paths = pc.struct_field(dataset.select_columns("image").with_format("arrow")["image"][:], "path").to_pylist()
    if not paths or not is_in_shard(paths[0]):
        return None
    blocks: dict[tuple[str, str], list[int]] = {}
    for row, path in enumerate(paths):
        inside, _, file = path.removeprefix(f"{PROTOCOL}://").partition("::")
        group, *rest = inside.split("/", 2)
        blocks.setdefault((file, group if len(rest) > 1 else ""), []).append(row)
    pieces = []
    for (_, group), rows in blocks.items():
        step = len(rows) if group else _BLOCK
        pieces += [np.asarray(rows[start : start + step]) for start in range(0, len(rows), step)]
    return pieces


def shard_path(file: str, *inside: int | str) -> str:
    """Return the path of an image inside a shard."""
    return f"{PROTOCOL}://{'/'.join(map(str, inside))}::{file}"


def encoded_images(paths: Sequence[str | None]) -> pa.StructArray:
    """Return paths as values of `datasets.Image`, without bytes."""
    stored = pa.array(paths, pa.string())
    return pa.StructArray.from_arrays(
        [pa.nulls(len(stored), pa.binary()), stored], ["bytes", "path"], mask=pc.is_null(stored)
    )


__all__ = [
    "BUFFERED_GROUPS",
    "PROTOCOL",
    "check_complete",
    "encoded_images",
    "is_in_shard",
    "open_parquet",
    "read_from_shard",
    "read_range",
    "shard_blocks",
    "shard_path",
]
