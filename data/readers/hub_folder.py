"""Local folders like a repository of the Hub: as `datasets` reads them, but for what it guesses of names and types."""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile, is_zipfile

from datasets import (
    BuilderConfig,
    ClassLabel,
    Dataset,
    DatasetDict,
    Features,
    Image,
    Value,
    load_dataset,
    load_dataset_builder,
)
from datasets import config as datasets_config
from datasets.packaged_modules.folder_based_builder.folder_based_builder import FolderBasedBuilderConfig
from huggingface_hub import metadata_load

from ...errors import InputError, format_count
from ..images import find_files, has_image_suffix, is_hidden
from ..shard_files import check_complete
from ..storage import datasets_cache
from .columns import SPLIT_NAMES, Columns
from .table_files import read_table_file


Splits = dict[str, list[Path]]

_SHARD = re.compile(r"[-_. ]?[0-9].*")  # of a table in several files
_PATTERN = re.compile(r"[*?\[\]{}]|::")  # what datasets reads as a pattern or as a chain of addresses
_TABLES = (".parquet", ".arrow", ".zip", ".tar")
_METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
_SPLIT_WORDS = frozenset(word for words in SPLIT_NAMES.values() for word in words)
_MAX_NAMED = 4
_NAMES_NOTE = "folders and tables are splits by their whole names; words in file names say nothing."


def load_hub_folder(folder: Path, config: str | None, columns: Columns) -> tuple[DatasetDict, list[str]]:
    """
    Return a folder's tables by split, and notes about how they were read.

    `datasets` takes words in names, such as `test_1.png`, for splits, and then leaves out the files without such
    words. Here, folders and tables are splits if that is their whole name (`test/`, `train-00000-of-00001.parquet`),
    and all else is training data. Image files are listed here, and the cells of their `metadata.csv` stay text, of
    which `datasets` makes numbers; tables that hold images, and archives, are read by `datasets`.

    Raises:
        InputError: a name or an archive that `datasets` would misread, or a metadata file that cannot be read.
    """
    root, source = Path(os.path.abspath(folder)), f"--hub_dataset {folder}"
    splits, guessed, listed, in_doubt = _find_splits(root, config, source)
    notes = [f"{source}: {_NAMES_NOTE}"] if in_doubt else []
    if _lists_images(splits, guessed):
        tables, left_out = _read_image_files(root, splits, columns, source)
        return tables, notes + left_out
    _check_tables(root, splits, source)
    readable = _link_readable(root)
    # Named one by one: by the patterns of a README alone, `datasets` would know another folder from its cache.
    patterns = {
        split: [glob.escape(str(readable / file.relative_to(root))) for file in files]
        for split, files in splits.items()
    }
    data_files = patterns if listed else None
    return load_dataset(str(readable), config, data_files=data_files, cache_dir=datasets_cache()), notes


def find_tables(folder: Path, config: str | None) -> tuple[Splits, list[str]]:
    """
    Return a folder's tables by split, as [`load_hub_folder`] reads them, and notes about their names.

    Raises:
        InputError: as [`load_hub_folder`].
    """
    root, source = Path(os.path.abspath(folder)), f"--hub_dataset {folder}"
    splits, _, _, in_doubt = _find_splits(root, config, source)
    _check_tables(root, splits, source)
    return splits, [f"{source}: {_NAMES_NOTE}"] if in_doubt else []


def _find_splits(root: Path, config: str | None, source: str) -> tuple[Splits, BuilderConfig | None, bool, bool]:
    """Return files by split, how `datasets` would read them, whether to name them, and whether it misreads names."""
    readme = root / "README.md"
    configured = readme.is_file() and "configs" in (metadata_load(readme) or {})
    guessed, found = None, {}
    if not _PATTERN.search(str(root)):
        guessed, found = _guess(root, config)
    elif configured:
        raise InputError(f"{source}: with such a name, the files that its README lists cannot be found; rename it.")
    visible = {split: [file for file in files if not _in_hidden_folder(root, file)] for split, files in found.items()}
    has_hidden = visible != found
    found = {split: files for split, files in visible.items() if files}
    splits, in_doubt = (found, False) if configured else _splits_by_name(root, found)
    return splits, guessed, configured or in_doubt or has_hidden, in_doubt


def _guess(root: Path, config: str | None) -> tuple[BuilderConfig | None, Splits]:
    """Return how `datasets` would read a folder, and which files as which split."""
    try:
        guessed = load_dataset_builder(str(root), config, cache_dir=datasets_cache()).config
    except FileNotFoundError:  # nothing but files whose names are read as addresses
        return None, {}
    return guessed, {str(split): list(map(Path, files)) for split, files in (guessed.data_files or {}).items()}


def _in_hidden_folder(root: Path, file: Path) -> bool:
    """Return whether a file is hidden or was made by a file server; `datasets` leaves out names with a dot only."""
    return file.is_relative_to(root) and any(is_hidden(part) for part in file.relative_to(root).parts)


def _link_readable(root: Path) -> Path:
    """Return the folder itself, or a link to it where `datasets` would read its path as a chain of addresses."""
    if "::" not in str(root):
        return root
    # Always the same name, so that the caches of `datasets` hold.
    link = (
        Path(datasets_cache() or datasets_config.HF_DATASETS_CACHE)
        / "kgl_folders"
        / hashlib.sha1(os.fsencode(root)).hexdigest()
    )
    link.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):  # of an earlier run or of another process of this one
        link.symlink_to(root, target_is_directory=True)
    return link


def _splits_by_name(root: Path, found: Splits) -> tuple[Splits, bool]:
    """Return the splits as `datasets` finds them, or by whole names where it reads a file twice or not at all."""
    times_read = Counter(file for files in found.values() for file in files)
    endings = {file.suffix.lower() for file in times_read}
    every = find_files(root)
    images = any(has_image_suffix(file.name) for file in times_read)
    if not times_read:
        endings = {file.suffix.lower() for file in every if file.name not in _METADATA} & set(_TABLES)
        images = not endings
    files = [
        file
        for file in every
        if file.suffix.lower() in endings or (images and (has_image_suffix(file.name) or file.name in _METADATA))
    ]
    if all(times_read[file] == 1 for file in files):
        return found, False
    splits: Splits = {}
    for file in files:
        parts = file.relative_to(root).parts
        entry = root.joinpath(*parts[: 2 if parts[0] == "data" else 1])
        splits.setdefault(_split_of(entry), []).append(file)
    return splits, True


def _split_of(entry: Path) -> str:
    if entry.is_file() and has_image_suffix(entry.name):
        return "train"
    name = entry.name if entry.is_dir() else _SHARD.sub("", entry.stem)
    return next((split for split, names in SPLIT_NAMES.items() if name.casefold() in names), "train")


def _lists_images(splits: Splits, guessed: BuilderConfig | None) -> bool:
    """Return whether the folder holds image files, with or without metadata as text, and nothing else to read."""
    if isinstance(guessed, FolderBasedBuilderConfig) and (
        guessed.drop_labels is not None or guessed.drop_metadata is not None or guessed.metadata_filenames
    ):  # settings of the README
        return False
    files = [file for files in splits.values() for file in files if file.name not in _METADATA[:2]]
    return bool(files) and all(has_image_suffix(file.name) for file in files)


def _check_tables(root: Path, splits: Splits, source: str) -> None:
    every = [file for files in splits.values() for file in files]
    check_complete(every)
    for file in every:
        if "::" in str(file.relative_to(root)):
            raise InputError(f"{source}: {file} cannot be read with :: in its name; rename it.")
        if is_zipfile(file):
            with ZipFile(file) as archive:
                if any(Path(name).name == "metadata.csv" for name in archive.namelist()):
                    raise InputError(
                        f"{source}: {file} holds a metadata.csv, whose text would be read as numbers where it looks "
                        "like some; unpack the archive."
                    )


def _read_image_files(root: Path, splits: Splits, columns: Columns, source: str) -> tuple[DatasetDict, list[str]]:
    """Return the images by split, labelled by their metadata or their folders, and a note about those without."""
    metadata = [file for file in find_files(root) if file.name in _METADATA]
    images = {split: [file for file in files if file.name not in _METADATA] for split, files in splits.items()}
    images = {split: files for split, files in images.items() if files}
    if metadata:
        tables, notes = _read_metadata(root, metadata, images, columns, source)
        if not tables:
            raise InputError(f"{source}: its metadata files have no rows.")
        return tables, notes
    names, notes = _classes_of_folders(root, images, source)
    features = Features(image=Image(), label=ClassLabel(names=names))
    tables = {
        split: Dataset.from_dict(
            {"image": list(map(str, files)), "label": [file.parent.name for file in files]}, features=features
        )
        for split, files in images.items()
    }
    return DatasetDict(tables), notes


def _classes_of_folders(root: Path, images: Splits, source: str) -> tuple[list[str], list[str]]:
    """
    Return the names of the folders that hold the images, and a note where several folders have one name.

    Raises:
        InputError: no folder of images is named after a class, or folders of several depths hold images.
    """
    folders = sorted({file.parent for files in images.values() for file in files})
    names = sorted({folder.name for folder in folders})
    first_of_depth = {len(folder.parts): folder for folder in reversed(folders)}
    if len(first_of_depth) > 1:
        shallow, *_, deep = (first_of_depth[depth] for depth in sorted(first_of_depth))
        raise InputError(
            f"{source}: images lie in folders of different depths, such as {shallow} and {deep}, so that these are no "
            f"classes; give --data_dir {root}, which reads one folder per class with all folders below it."
        )
    if len(names) < 2 or {name.casefold() for name in names} <= _SPLIT_WORDS:
        raise InputError(
            f"{source}: neither folders nor a metadata.csv name the classes of its images, such as those in "
            f"{folders[0]}; sort them into one folder per class, or list them in a table (--data_file)."
        )
    for files in images.values():
        times = Counter(folder.name for folder in {file.parent for file in files})
        repeated = [name for name, count in sorted(times.items()) if count > 1]
        if repeated:
            return names, [
                f"{source}: the classes are the folders that hold the images ({_shorten(names)}), and several are "
                f"called {_shorten(repeated)}; if the folders around them are the classes, give --data_dir {root}."
            ]
    return names, []


def _shorten(names: list[str]) -> str:
    return ", ".join(names[:_MAX_NAMED]) + " ..." * (len(names) > _MAX_NAMED)


def _read_metadata(
    root: Path, metadata: list[Path], images: Splits, columns: Columns, source: str
) -> tuple[DatasetDict, list[str]]:
    """Return the rows of metadata files in the splits of the images that they name, every cell but these as text."""
    splits_of: dict[Path, list[str]] = {}
    for split, files in images.items():
        for file in files:
            splits_of.setdefault(file, []).append(split)
    paths = {name: _path_column(name) for name in (columns.image, columns.mask) if name is not None}
    stored = replace(columns, image=paths[columns.image], mask=paths.get(columns.mask))
    rows: dict[str, list[dict[str, str | None]]] = {split: [] for split in images}
    notes, listed = [], set()
    for file in metadata:
        read = read_table_file(file, stored, f"{source}, {file.relative_to(root)}")
        notes += read.notes
        for row in read.table:
            for name, column in paths.items():
                row[name] = _join(file.parent, row.pop(column))
            listed.add(Path(row[columns.image] or ""))
            for split in splits_of.get(Path(row[columns.image] or ""), [next(iter(images))]):
                rows[split].append(row)
    missing = len(splits_of.keys() - listed)
    if missing:
        notes.append(f"{source}: {format_count(missing, 'image')} without a row in a metadata file left out.")
    used = [name for name in (columns.label, columns.group) if name is not None and name not in paths]
    features = Features({name: Image() for name in paths} | {name: Value("string") for name in used})
    tables = {split: Dataset.from_list(of_split, features=features) for split, of_split in rows.items() if of_split}
    return DatasetDict(tables), notes


def _path_column(name: str) -> str:
    """Return what a metadata file calls the column of paths of a column of images."""
    return "file_name" if name == "image" else f"{name}_file_name"


def _join(folder: Path, value: str | None) -> str | None:
    return None if not value else os.path.normpath(folder / value.replace("\\", "/"))


__all__ = ["find_tables", "load_hub_folder"]
