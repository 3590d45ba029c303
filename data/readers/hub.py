"""Reader of datasets on the Hugging Face Hub."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict, Image, Value, load_dataset
from datasets import config as datasets_config
from huggingface_hub.constants import HF_HUB_CACHE

from ...errors import InputError
from ..images import without_decoding
from ..storage import datasets_cache
from .columns import (
    VALIDATION_NAMES,
    Columns,
    read_groups,
    read_labels,
    require_columns,
    root_cause,
    validation_serves_as_test,
)
from .hub_folder import load_hub_folder
from .shards import NAME_COLUMN, is_written_here, load_shards, with_own_columns
from .source import SourceDataset


_ENCODED = ("binary", "large_binary")
_LINK = (
    "lies outside of the folder, where a link leads; copy it into the folder, or, where each class has a folder, give "
    "the folder as --data_dir, which follows links"
)
_NOT_OWN = "is no file of this dataset; read your own table of files with --data_file"
_NAMED = ("string", "large_string", "null")  # paths, which are checked below, and columns without any mask


def read_hub_dataset(name: str, config: str | None, columns: Columns, streaming: bool = False) -> SourceDataset:
    """
    Read a dataset by its Hub id, or a folder that `datasets.load_dataset` reads, in its own splits.

    Where it has a validation split and no test split, the validation split is the test split. Of shards that `kgl
    data` wrote, masks, groups and file names are read too.

    Args:
        name: the id or the folder.
        config: the configuration, where it has several.
        columns: to read.
        streaming: leave the images in their shards; those that `kgl data` wrote keep the column `digest`, too.

    Raises:
        InputError: no such dataset or column, labels that cannot be read, or images that are not the dataset's own.
    """
    source, notes = f"--hub_dataset {name}", []
    try:
        if streaming:
            loaded, notes = load_shards(name, config, columns)
        elif Path(name).is_dir():
            loaded, notes = load_hub_folder(Path(name), config, columns)
        else:
            loaded = load_dataset(name, config, cache_dir=datasets_cache())
    except InputError:
        raise
    except Exception as error:  # loading a repository raises whatever its builder raises
        denied = isinstance(error, OSError) and error.errno in (errno.EACCES, errno.ENOTDIR, errno.EROFS)
        advice = " Set HF_HOME to a folder that can be written." if denied else ""
        failed = "it" if Path(name).is_dir() else "there is no such folder, and it"
        raise InputError(f"{source}: {failed} cannot be loaded. {root_cause(error)}{advice}") from error
    tables = loaded if isinstance(loaded, DatasetDict) else DatasetDict(train=loaded)
    if streaming and not Path(name).is_dir() and not tables:
        raise InputError(f"{source}: it lists no files, so it cannot be streamed; leave out --streaming.")
    columns = with_own_columns(columns, next(iter(tables.values())).column_names)
    for split, table in tables.items():
        require_columns(table.column_names, columns, f"{source}, split {split}")
        tables[split] = _cast_images(table, columns, source)
    split_names = _assign_splits(list(tables))
    if split_names.get("test") in VALIDATION_NAMES:
        notes.append(f"{source}: {validation_serves_as_test(split_names['test'])}")
    _, names = read_labels(tables[split_names["train"]], columns, source)
    splits = {
        split: _to_schema(tables[of_source], of_source, columns, names, name)
        for split, of_source in split_names.items()
    }
    return SourceDataset(splits, source, tuple(notes))


def _cast_images(table: Dataset, columns: Columns, source: str) -> Dataset:
    """
    Return a table whose images and masks are of type `Image`: where `datasets` did not write them, they are bytes.

    Raises:
        InputError: a column holds something else.
    """
    types = {"--image_column": (columns.image, _ENCODED), "--mask_column": (columns.mask, (*_ENCODED, *_NAMED))}
    for option, (name, castable) in types.items():
        feature = None if name is None else table.features[name]
        if feature is None or isinstance(feature, Image):
            continue
        content = feature.get("bytes") if isinstance(feature, dict) else feature
        if not (isinstance(content, Value) and content.dtype in castable):
            raise InputError(f"{source}: column {name!r} holds {feature}, not images; see {option}.")
        table = table.cast_column(name, Image())
    return table


def _assign_splits(found: list[str]) -> dict[str, str]:
    """Return which split of the source is our train, validation and test split."""
    assigned = {"train": "train" if "train" in found else found[0]}
    held_out = [split for split in found if split != assigned["train"]]
    validation = next((split for split in VALIDATION_NAMES if split in held_out), None)
    if "test" in held_out:
        assigned["test"] = "test"
        if validation is not None:
            assigned["validation"] = validation
    elif validation is not None:  # the only split held out is the test split
        assigned["test"] = validation
    return assigned


def _to_schema(table: Dataset, split: str, columns: Columns, names: list[str], hub_dataset: str) -> Dataset:
    source = f"--hub_dataset {hub_dataset}"
    labels, classes = read_labels(table, columns, source)
    unknown = sorted(set(classes) - set(names))
    if unknown:
        raise InputError(f"{source}: split {split} has the classes {', '.join(unknown)}, which train lacks.")
    renamed = {columns.image: "image"} | ({columns.mask: "mask"} if columns.mask else {})
    rows = without_decoding(table.select_columns(list(renamed)).rename_columns(renamed))
    in_shards = NAME_COLUMN in table.column_names
    if is_written_here(table.column_names):
        file_names = table["file_name"][:]
    else:
        paths = pc.struct_field(rows.with_format("arrow")["image"][:], "path").to_pylist()
        paths = table[NAME_COLUMN][:] if in_shards else paths
        file_names = [f"{split}/{row}{f'-{Path(path).name}' if path else ''}" for row, path in enumerate(paths)]
    rows = rows.cast_column("image", Image()).add_column("file_name", file_names)
    rows = rows.add_column("group", read_groups(table, columns, file_names))
    rows = rows.add_column("label", [names.index(label) for label in labels], feature=ClassLabel(names=names))
    if columns.mask is None:
        rows = rows.add_column("mask", [None] * len(rows), feature=Image())
    else:
        rows = rows.cast_column("mask", Image())
    names = ["image", "label", "mask", "group", "file_name"]
    if not in_shards:
        _check_own_files(rows, hub_dataset, f"{source}, split {split}")
    elif is_written_here(table.column_names):
        rows, names = rows.add_column("digest", table["digest"][:]), [*names, "digest"]
    return rows.select_columns(names)


def _check_own_files(dataset: Dataset, hub_dataset: str, source: str) -> None:
    """
    Check that images and masks are files of the dataset: a stranger's table may name any file of this machine.

    Raises:
        InputError: an image or mask that is somewhere else.
    """
    in_cache = Path(HF_HUB_CACHE) / f"datasets--{hub_dataset.replace('/', '--')}"
    # Downloads are named by digests that nobody can guess.
    allowed = (Path(hub_dataset), in_cache, Path(datasets_config.DOWNLOADED_DATASETS_PATH))
    roots = [root.resolve() for root in allowed]
    rows = without_decoding(dataset).with_format("arrow")
    for column in ("image", "mask"):
        stored = rows[column][:]
        without_bytes = pc.and_(pc.is_valid(stored), pc.is_null(pc.struct_field(stored, "bytes")))
        for row in np.flatnonzero(without_bytes.to_numpy()).tolist():
            path = stored[row]["path"].as_py()
            if not path:
                raise InputError(f"{source}, row {row + 1}: {column} is empty.")
            file = Path(path.rpartition("::")[2] if path.startswith("zip://") else path)  # a member of an archive
            # A relative path depends on the working directory, and an address leads anywhere.
            target = _resolve_or_none(file) if file.is_absolute() else None
            if target is None or not any(target.is_relative_to(root) for root in roots):
                by_link = Path(os.path.normpath(file)).is_relative_to(os.path.abspath(hub_dataset))
                reason = _LINK if by_link else _NOT_OWN
                raise InputError(f"{source}, row {row + 1}: {column} {path} {reason}.")


def _resolve_or_none(file: Path) -> Path | None:
    try:
        return file.resolve()
    except (OSError, RuntimeError):  # a name that is too long, or links in a circle
        return None


__all__ = ["read_hub_dataset"]
