"""Reader of parquet and WebDataset shards: their small columns, and where in them the images are."""

from __future__ import annotations

import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset, DatasetDict, Features, Image, Value, concatenate_datasets, load_dataset_builder
from fsspec.core import url_to_fs

from ...errors import InputError
from ..images import has_image_suffix
from ..shard_files import encoded_images, open_parquet, shard_path
from .columns import Columns, require_columns
from .hub_folder import find_tables


SUFFIXES = (".parquet", ".tar")
CONTRACT = ("image", "label", "mask", "group", "file_name", "digest")  # columns of shards that `kgl data` wrote
NAME_COLUMN = "image_path"  # the name of an image inside its shard
_NUMBERS = ("cls", "cls2", "index", "inx", "id")  # fields of tar files that `datasets` reads as numbers
_MEMBER = re.compile(r"((?:.*/|)[^.]+)[.]([^/]*)")  # key and field of a file, as `datasets` splits them


def load_shards(name: str, config: str | None, columns: Columns) -> tuple[DatasetDict, list[str]]:
    """
    Return a table per split with paths inside the shards for images, and notes about how the splits were found.

    Of parquet files the small columns alone are read, of tar files the headers and the labels.

    Args:
        name: a Hub id or a folder.
        config: the configuration, where it has several.
        columns: to read; a tar file's are the endings of its members, such as `png` and `cls`.

    Raises:
        InputError: files of another kind, or a column is missing.
    """
    source, notes = f"--hub_dataset {name}", []
    if Path(name).is_dir():
        splits, notes = find_tables(Path(name), config)
    else:
        splits = load_dataset_builder(name, config).config.data_files or {}
    tables = DatasetDict()
    for split, files in splits.items():
        read = [_read_shard(str(file), columns, source) for file in files]
        tables[str(split)] = concatenate_datasets([table for table in read if len(table)] or read[:1])
    return tables, notes


def load_shard_images(shards: list[Path]) -> Dataset:
    """
    Return the columns `image`, as paths inside the shards, and `file_name`, of images without labels.

    Images of shards that `kgl data` wrote have the names that they had; others are named by shard, row and name in it.

    Raises:
        InputError: a file is no shard, or holds no column of images or several, or two images have one name.
    """
    common = os.path.commonpath([path.absolute().parent for path in shards])
    images = concatenate_datasets([_read_images(path, common) for path in shards])
    repeated = [name for name, count in Counter(images["file_name"][:]).items() if count > 1]
    if repeated:
        raise InputError(f"{common}: the shards hold several images called {repeated[0]}; predict the sets apart.")
    return images


def _read_images(path: Path, common: str) -> Dataset:
    file, source = str(path.absolute()), str(path)
    fields = _fields(file, source)
    found = [name for name, holds_images in fields.items() if holds_images and not name.startswith("mask")]
    found = ["image"] if "image" in found else found
    if len(found) != 1:
        raise InputError(f"{source}: it has to hold one column of images; it holds {', '.join(found) or 'none'}.")
    table = _read_shard(file, Columns(image=found[0], label=None), source)
    if is_written_here(fields):
        names = table["file_name"][:]
    else:
        shard, inside = os.path.relpath(file, common), enumerate(table[NAME_COLUMN])
        names = [f"{shard}/{row}{f'-{Path(name).name}' if name else ''}" for row, name in inside]
    return table.select_columns(found).rename_columns({found[0]: "image"}).add_column("file_name", names)


def is_written_here(names: Iterable[str]) -> bool:
    """Return whether these are the columns of shards that `kgl data` wrote."""
    return set(CONTRACT) <= set(names)


def with_own_columns(columns: Columns, names: Iterable[str]) -> Columns:
    """Return the columns to read, masks and groups too where `kgl data` wrote the shards."""
    if not is_written_here(names):
        return columns
    return replace(columns, mask=columns.mask or "mask", group=columns.group or "group")


def check_image_column(table_features: Features, columns: Columns, source: str) -> None:
    """
    Check that the column of images holds images.

    Raises:
        InputError: it does not.
    """
    feature = table_features[columns.image]
    if not isinstance(feature, Image):
        raise InputError(f"{source}: column {columns.image!r} holds {feature}, not images; see --image_column.")


def _read_shard(file: str, columns: Columns, source: str) -> Dataset:
    suffix = PurePosixPath(file).suffix.lower()
    if suffix not in SUFFIXES:
        raise InputError(
            f"{source}: --streaming true reads parquet and WebDataset shards, not {PurePosixPath(file).name}; "
            "`kgl data IMAGES --to_shards DIR` writes parquet shards of any images."
        )
    return (_read_parquet if suffix == ".parquet" else _read_tar)(file, columns, source)


def _fields(file: str, source: str) -> dict[str, bool]:
    """Return the columns of a shard, and whether they hold images."""
    if file.lower().endswith(".parquet"):
        with _opened(file, source) as shard:
            features = Features.from_arrow_schema(shard.schema_arrow)
        return {name: isinstance(feature, Image) for name, feature in features.items()}
    with _opened_tar(file, source) as archive:
        fields = {field for row in _members(archive).values() for field in row}
    return {field: has_image_suffix(f"image.{field}") for field in sorted(fields)}


@contextmanager
def _opened(file: str, source: str) -> Iterator[pq.ParquetFile]:
    try:
        with open_parquet(file) as opened:
            yield opened
    except (pa.ArrowInvalid, OSError) as error:
        raise _unreadable(file, source, error) from error


@contextmanager
def _opened_tar(file: str, source: str) -> Iterator[tarfile.TarFile]:
    file_system, path = url_to_fs(file)
    try:
        with file_system.open(path, "rb") as opened, tarfile.open(fileobj=opened, mode="r:") as archive:
            yield archive
    except (tarfile.TarError, OSError) as error:
        raise _unreadable(file, source, error) from error


def _unreadable(file: str, source: str, error: Exception) -> InputError:
    named = source if file.endswith(source) else f"{source}: {PurePosixPath(file).name}"
    return InputError(f"{named} cannot be read, copy it again. {' '.join(str(error).split())}")


def _members(archive: tarfile.TarFile) -> dict[str, dict[str, tarfile.TarInfo]]:
    """Return the files of each image by their endings."""
    rows: dict[str, dict[str, tarfile.TarInfo]] = {}
    for member in archive:
        parts = _MEMBER.fullmatch(member.name)
        if member.isfile() and parts is not None:
            rows.setdefault(parts[1], {})[parts[2]] = member
    return rows


def _read_parquet(file: str, columns: Columns, source: str) -> Dataset:
    """Return the small columns of a parquet file, and paths for its images and masks."""
    with _opened(file, source) as shard:
        features = Features.from_arrow_schema(shard.schema_arrow)
        columns = with_own_columns(columns, features)
        require_columns(list(features), columns, f"{source}, {PurePosixPath(file).name}")
        check_image_column(features, columns, source)
        images = [columns.image] + [columns.mask] * (columns.mask is not None)
        small = [columns.label, columns.group, *CONTRACT[3:]]
        small = [name for name in dict.fromkeys(small) if name in features and name not in images]
        table = shard.read(columns=[*small, *(f"{name}.path" for name in images)])
        groups = [shard.metadata.row_group(group).num_rows for group in range(shard.num_row_groups)]
    places = [(group, row) for group, rows in enumerate(groups) for row in range(rows)]
    stored = {name: table[name] for name in small}
    for name in images:
        given = pc.is_valid(table[name]).to_pylist()
        paths = [shard_path(file, *place, name) if one else None for place, one in zip(places, given, strict=True)]
        stored[name] = encoded_images(paths)
    stored[NAME_COLUMN] = pc.struct_field(table[columns.image], "path")
    types = {name: features[name] for name in small} | dict.fromkeys(images, Image())
    return _dataset(stored, Features(types | {NAME_COLUMN: Value("string")}))


def _read_tar(file: str, columns: Columns, source: str) -> Dataset:
    """Return the labels and groups of a tar file, and paths for its images and masks."""
    images = [columns.image] + [columns.mask] * (columns.mask is not None)
    small = [name for name in (columns.label, columns.group) if name is not None]
    texts: dict[str, list[str | None]] = {name: [] for name in small}
    with _opened_tar(file, source) as archive:
        rows = _members(archive)
        found = sorted({field for row in rows.values() for field in row})
        require_columns(found, columns, f"{source}, {PurePosixPath(file).name}")
        if not has_image_suffix(f"image.{columns.image}"):
            raise InputError(f"{source}: column {columns.image!r} holds no images; see --image_column.")
        for row in rows.values():
            for name in small:
                text = archive.extractfile(row[name]).read().decode().strip() if name in row else None
                if text and name in _NUMBERS:
                    text = _number(text, f"{source}: {PurePosixPath(file).name}: {row[name].name}")
                texts[name].append(text)
    stored = {name: pa.array(values, pa.string()) for name, values in texts.items()}
    for name in images:
        members = [row.get(name) for row in rows.values()]
        stored[name] = encoded_images([one and shard_path(file, one.offset_data, one.size) for one in members])
    stored[NAME_COLUMN] = pa.array([f"{key}.{columns.image}" for key in rows], pa.string())
    types = dict.fromkeys(small, Value("string")) | dict.fromkeys(images, Image())
    return _dataset(stored, Features(types | {NAME_COLUMN: Value("string")}))


def _number(text: str, source: str) -> str:
    """Return the number of a field as `datasets` reads it."""
    try:
        return str(int(text))
    except ValueError as error:
        raise InputError(
            f"{source} holds {text!r}, where `datasets` reads a number; write words into .txt (--label_column txt)."
        ) from error


def _dataset(columns: dict[str, pa.Array | pa.ChunkedArray], features: Features) -> Dataset:
    table = pa.table({name: columns[name] for name in features})
    return Dataset(table.cast(features.arrow_schema))


__all__ = [
    "CONTRACT",
    "NAME_COLUMN",
    "SUFFIXES",
    "check_image_column",
    "is_written_here",
    "load_shard_images",
    "load_shards",
    "with_own_columns",
]
