"""Reader of datasets on the Hugging Face Hub."""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict, Image, load_dataset, load_dataset_builder
from datasets import config as datasets_config
from huggingface_hub import metadata_load
from huggingface_hub.constants import HF_HUB_CACHE

from ...errors import InputError
from ..images import find_files, has_image_suffix, without_decoding
from .columns import SPLIT_NAMES, VALIDATION_NAMES, Columns, read_groups, read_labels, require_columns, root_cause
from .source import SourceDataset


_SHARD = re.compile(r"[-_. ]?[0-9].*")  # of a table in several files


def read_hub_dataset(name: str, config: str | None, columns: Columns) -> SourceDataset:
    """
    Read a dataset by its Hub id, or a folder that `datasets.load_dataset` reads, in its own splits.

    Where it has a validation split and no test split, the validation split is the test split.

    Raises:
        InputError: no such dataset or column, labels that cannot be read, or images that are not the dataset's own.
    """
    source, files, notes = f"--hub_dataset {name}", None, []
    try:
        if Path(name).is_dir():
            files, notes = _files_by_split(Path(name), config)
        loaded = load_dataset(name, config, data_files=files)
    except Exception as error:  # loading a repository raises whatever its builder raises
        raise InputError(f"{source}: it cannot be loaded. {root_cause(error)}") from error
    tables = loaded if isinstance(loaded, DatasetDict) else DatasetDict(train=loaded)
    for split, table in tables.items():
        require_columns(table.column_names, columns, f"{source}, split {split}")
        feature = table.features[columns.image]
        if not isinstance(feature, Image):
            raise InputError(f"{source}: column {columns.image!r} holds {feature}, not images; see --image_column.")
    split_names = _assign_splits(list(tables))
    _, names = read_labels(tables[split_names["train"]], columns, source)
    splits = {
        split: _to_schema(tables[of_source], of_source, columns, names, name)
        for split, of_source in split_names.items()
    }
    return SourceDataset(splits, source, tuple(notes))


def _files_by_split(folder: Path, config: str | None) -> tuple[dict[str, list[str]] | None, list[str]]:
    """
    Return patterns of a folder's files by split, None where `datasets` finds each file once, and notes about them.

    `datasets` takes words in names, such as `test_1.png`, for splits, and then leaves out the files without such
    words. Here, folders and tables are splits if that is their whole name (`test/`, `train-00000-of-00001.parquet`),
    and all else is training data.
    """
    readme, root = folder / "README.md", Path(os.path.abspath(folder))
    try:
        guess = load_dataset_builder(str(folder), config).config.data_files or {}
    except FileNotFoundError:  # brackets in the folder's name, which are read as a pattern
        guess = {}
    if readme.is_file() and "configs" in (metadata_load(readme) or {}):
        # Named one by one: by the patterns of a README alone, `datasets` would know another folder from its cache.
        return {str(split): [glob.escape(file) for file in of_split] for split, of_split in guess.items()}, []
    times_read = Counter(Path(file) for of_split in guess.values() for file in of_split)
    endings = {file.suffix.lower() for file in times_read}
    images = not endings or any(has_image_suffix(file.name) for file in times_read)
    files = [
        file
        for file in find_files(root)
        if file.suffix.lower() in endings or (images and (has_image_suffix(file.name) or file.stem == "metadata"))
    ]
    if all(times_read[file] == 1 for file in files):
        return None, []
    patterns: dict[str, list[str]] = {}
    for file in files:
        parts = file.relative_to(root).parts
        entry = root.joinpath(*parts[: 2 if parts[0] == "data" else 1])
        pattern = glob.escape(str(entry)) + ("" if entry == file else "/**")
        of_split = patterns.setdefault(_split_of(entry), [])
        if pattern not in of_split:
            of_split.append(pattern)
    note = "folders and tables are splits by their whole names; words in file names say nothing."
    return patterns, [f"--hub_dataset {folder}: {note}"]


def _split_of(entry: Path) -> str:
    if entry.is_file() and has_image_suffix(entry.name):
        return "train"
    name = entry.name if entry.is_dir() else _SHARD.sub("", entry.stem)
    return next((split for split, names in SPLIT_NAMES.items() if name.casefold() in names), "train")


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
    paths = pc.struct_field(rows.with_format("arrow")["image"][:], "path").to_pylist()
    file_names = [f"{split}/{row}{f'-{Path(path).name}' if path else ''}" for row, path in enumerate(paths)]
    rows = rows.cast_column("image", Image()).add_column("file_name", file_names)
    rows = rows.add_column("group", read_groups(table, columns, file_names))
    rows = rows.add_column("label", [names.index(label) for label in labels], feature=ClassLabel(names=names))
    if columns.mask is None:
        rows = rows.add_column("mask", [None] * len(rows), feature=Image())
    else:
        rows = rows.cast_column("mask", Image())
    _check_own_files(rows, hub_dataset, f"{source}, split {split}")
    return rows.select_columns(["image", "label", "mask", "group", "file_name"])


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
                raise InputError(
                    f"{source}, row {row + 1}: {column} {path} is no file of this dataset; read your own table of "
                    "files with --data_file."
                )


def _resolve_or_none(file: Path) -> Path | None:
    try:
        return file.resolve()
    except (OSError, RuntimeError):  # a name that is too long, or links in a circle
        return None


__all__ = ["read_hub_dataset"]
