"""A finished run of `kgl train`, read back: its settings, and its images if they are as they were."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass, fields
from pathlib import Path

from ..data.arguments import DataArguments
from ..data.loading import LoadedDataset, read_images, split_images
from ..data.schema import dataset_fingerprint
from ..errors import InputError
from ..training.arguments import ModelArguments
from ..training.run_dir import SETTINGS_FILE, read_finished_report


_GROUPS = {"model", "data", "prior", "operating", "training"}


@dataclass(frozen=True)
class Run:
    """
    A finished run.

    Attributes:
        folder: of the run.
        data_args: the images and their splits.
        model_args: the classifier.
        seed: of the training.
        fingerprints: of the images of each split, as they were.
    """

    folder: Path
    data_args: DataArguments
    model_args: ModelArguments
    seed: int
    fingerprints: dict[str, str]


def read_run(folder: Path) -> Run:
    """
    Read the settings of a finished run.

    Raises:
        InputError: no such folder, no run, an unfinished one, or one of another version of kgl.
    """
    read_finished_report(folder)
    path = folder / SETTINGS_FILE
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is damaged ({error}).") from error
    if stored.keys() != _GROUPS:
        raise InputError(f"{folder}: it holds the files of another command than kgl train; give the folder of a run.")
    data, model = stored["data"], stored["model"]
    known = {one.name for one in fields(DataArguments)}
    images = {name: value for name, value in data.items() if name not in known}
    splits = {f"{split}_images" for split in ("train", "validation", "test")}
    same = known <= data.keys() and images.keys() <= splits and model.keys() == _names(ModelArguments)
    if not same or "seed" not in stored["training"]:
        raise InputError(
            f"{folder}: the run was made by another version of kgl; train again with this one, into another "
            "--output_dir."
        )
    return Run(
        folder,
        DataArguments(**{name: data[name] for name in known}),
        ModelArguments(**model),
        stored["training"]["seed"],
        {name.removesuffix("_images"): value for name, value in images.items()},
    )


def _names(arguments: type) -> Collection[str]:
    return {one.name for one in fields(arguments)}


def read_run_images(run: Run) -> tuple[LoadedDataset, LoadedDataset]:
    """
    Read the images of a run, in the splits of their source and in those of the run.

    Raises:
        InputError: they cannot be read, or have changed since the run.
    """
    try:
        loaded = read_images(run.data_args)
        split = split_images(loaded, run.data_args)
    except InputError as error:
        raise InputError(f"{run.folder}: the images of the run cannot be read again. {error}") from error
    found = {name: dataset_fingerprint(images) for name, images in split.splits.items()}
    changed = [name for name in run.fingerprints.keys() | found if run.fingerprints.get(name) != found.get(name)]
    if changed:
        raise InputError(
            f"{run.folder}: images or labels have changed since the run ({', '.join(sorted(changed))} images); train "
            "again into another --output_dir first. kgl curve and kgl audit also take the images in place of the run."
        )
    return loaded, split


__all__ = ["Run", "read_run", "read_run_images"]
