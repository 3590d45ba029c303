"""Reader of datasets on the Hugging Face Hub."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset, DatasetDict, Image, load_dataset
from datasets import config as dataset_config
from huggingface_hub.constants import HF_HUB_CACHE

from ...errors import InputError
from ..images import without_decoding
from .table import _VALIDATION, Columns, _class_names, _groups, _require_columns, root_cause


def read_hub_dataset(name: str, config: str | None, columns: Columns) -> dict[str, Dataset]:
    """
    A dataset of the Hub by its id (or a folder that `datasets.load_dataset` reads); its own splits where it has
    several; a validation split is the test split where there is no other.

    Raises:
        InputError: no such dataset or column, or labels that cannot be read.
    """
    where = f"--hub_dataset {name}"
    try:
        loaded = load_dataset(name, config)
    except Exception as error:  # whatever reading a stranger's repository may raise, the user is told what
        raise InputError(f"{where}: it cannot be loaded. {root_cause(error)}") from error
    tables = loaded if isinstance(loaded, DatasetDict) else DatasetDict(train=loaded)
    for split, table in tables.items():
        _require_columns(table, columns, f"{where}, split {split}")
        if not isinstance(table.features[columns.image], Image):
            raise InputError(f"{where}: column {columns.image!r} holds no images but {table.features[columns.image]}.")
    first = "train" if "train" in tables else next(iter(tables))
    _, names = _class_names(tables[first], columns, where)
    between = next((split for split in _VALIDATION if split in tables and split != first), None)
    parts = {"train": first, "validation": between, "test": "test" if "test" in tables and first != "test" else None}
    if parts["test"] is None:  # judged on what there is
        parts |= {"test": between, "validation": None}
    return {
        part: _from_hub(tables[split], split, columns, names, name)
        for part, split in parts.items()
        if split is not None
    }


def _from_hub(table: Dataset, split: str, columns: Columns, names: list[str], hub_dataset: str) -> Dataset:
    where = f"--hub_dataset {hub_dataset}"
    labels, there = _class_names(table, columns, where)
    unknown = sorted(set(there) - set(names))
    if unknown:
        raise InputError(f"{where}: split {split} has {', '.join(unknown)}, which train has not.")
    kept = {columns.image: "image"} | ({columns.mask: "mask"} if columns.mask else {})
    grouping = table
    table = without_decoding(table.select_columns(list(kept)).rename_columns(kept))
    file_names = [f"{split}/{row}" for row in range(len(table))]
    paths = pc.struct_field(table.with_format("arrow")["image"][:], "path").to_pylist()
    file_names = [f"{at}-{Path(path).name}" if path else at for at, path in zip(file_names, paths, strict=True)]
    dataset = table.cast_column("image", Image()).add_column("file_name", file_names)
    dataset = dataset.add_column("group", _groups(grouping, columns, file_names))
    indices = [names.index(label) for label in labels]
    dataset = dataset.add_column("label", indices).cast_column("label", ClassLabel(names=names))
    if columns.mask is None:
        dataset = dataset.add_column("mask", [None] * len(dataset), feature=Image())
    else:
        dataset = dataset.cast_column("mask", Image())
    _check_own_files(dataset, hub_dataset, f"{where}, split {split}")
    return dataset.select_columns(["image", "label", "mask", "group", "file_name"])


def _check_own_files(dataset: Dataset, hub_dataset: str, where: str) -> None:
    """
    A stranger's table may name any file of this machine; only what came with it is opened.

    Raises:
        InputError: an image or mask lies elsewhere.
    """
    of_the_hub = Path(HF_HUB_CACHE) / f"datasets--{hub_dataset.replace('/', '--')}"
    # Downloads are called by digests that nobody guesses.
    roots = [root.resolve() for root in (Path(hub_dataset), of_the_hub, Path(dataset_config.DOWNLOADED_DATASETS_PATH))]
    rows = without_decoding(dataset).with_format("arrow")
    for column in ("image", "mask"):
        stored = rows[column][:]
        named = pc.and_(pc.is_valid(stored), pc.is_null(pc.struct_field(stored, "bytes")))
        for row in np.flatnonzero(named.to_numpy()).tolist():
            path = stored[row]["path"].as_py()
            if not path:
                raise InputError(f"{where}, row {row + 1}: {column} is empty.")
            file = Path(path.rpartition("::")[2] if path.startswith("zip://") else path)  # a member of an archive
            # A relative one would be opened from wherever this runs, an address from anywhere.
            leads_to = _resolve_or_none(file) if file.is_absolute() else None
            if leads_to is None or not any(leads_to.is_relative_to(root) for root in roots):
                raise InputError(
                    f"{where}, row {row + 1}: {column} {path} is no file of this dataset; a table of your own that "
                    "names files is read with --dataset table."
                )


def _resolve_or_none(file: Path) -> Path | None:
    try:
        return file.resolve()
    except (OSError, RuntimeError):  # a name longer than any file's, or links in a circle
        return None


__all__ = ["read_hub_dataset"]
