"""Priors from the primary classifier's own saliency, as dataset columns."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from datasets import ClassLabel, Dataset, Features, Image, IterableDataset, Value, concatenate_datasets
from transformers import BaseImageProcessor

from ..data.images import load_pixel_values, to_pixel_values, without_decoding
from ..data.progress import progress_bar
from ..data.schema import digest_rows, image_digests
from ..errors import InputError
from ..modeling_kgl import KGLForImageClassification
from ..saliency.activations import eval_mode
from ..saliency.compute import compute_saliency
from ..saliency.maps import to_grid, to_uint8
from .arguments import PriorArguments
from .prior_columns import load_mask, prior_columns, prior_features
from .sharded_map import Columns, Row, map_batches, sharded_map


_TITLE = "Saliency priors"
_Loaded = tuple[torch.Tensor, np.ndarray | None]  # pixel values (1, 3, H, W), and the mask on the grid


def add_saliency_priors(
    dataset: Dataset,
    model: KGLForImageClassification,
    image_processor: BaseImageProcessor,
    batch_size: int = 16,
    args: PriorArguments | None = None,
) -> Dataset:
    """
    Return the dataset with the columns `saliency_prior`, `prior_threshold` and `prior_weight`, computed in memory.

    `saliency_prior` (`(h, w)` uint8) is the saliency map of the true class on the grid of the model's features, its
    peak at 255; blank for images of the config's defect-free class. Where a row has a `mask`, the mask on that grid
    takes its place: 255 in each cell with a defect pixel, else 0. `prior_threshold` (uint8) is Otsu's threshold of the
    map, see [`~kgl.knowledge.thresholds.otsu_threshold`]. `prior_weight` (float32) is 0 for an empty map or
    mask of an image with a defect, else 1.

    Args:
        dataset: columns `image`, `label` and optionally `mask`.
        model: the primary classifier; its mode is left unchanged.
        image_processor: the one that the model was trained with.
        batch_size: images per forward pass.
        args: Grad-CAM++ of the pooled features, by default.

    Raises:
        InputError: the classes are not the model's, it lacks a layer, or a map is not finite.
    """
    load, compute, features = _prior_functions(dataset, model, image_processor, args or PriorArguments())
    with progress_bar(title=_TITLE, total=len(dataset), unit=" images") as bar:
        priors = map_batches(
            without_decoding(dataset), load, compute, features=features, batch_size=batch_size, bar=bar
        )
    return concatenate_datasets([dataset, priors], axis=1)


def write_saliency_priors(
    dataset: Dataset | IterableDataset,
    model: KGLForImageClassification,
    image_processor: BaseImageProcessor,
    folder: Path,
    batch_size: int = 16,
    args: PriorArguments | None = None,
) -> Dataset:
    """
    Write the columns of [`add_saliency_priors`] to `folder`, for datasets of any size.

    Called by every process of `accelerate launch`, the processes share the work. A stopped call resumes, a finished
    one computes nothing, and results of another model, other images or other settings are never reused.

    Returns:
        A table of the priors alone, in the order of the rows, with the images' `digest` and, where the dataset has it,
        their `file_name`. [`with_priors`] joins it with the images.

    Raises:
        InputError: as [`add_saliency_priors`]; `folder` holds something else, or the disk is full.
    """
    args = args or PriorArguments()
    load, compute_priors, prior_features = _prior_functions(dataset, model, image_processor, args)
    kept = {name: dataset.features[name] for name in ("file_name",) if name in dataset.features}
    features = Features(kept | {"digest": Value("string")} | prior_features)
    names = dataset.features["label"].names
    settings = json.dumps(
        [asdict(args), image_processor.to_dict(), model_digest(model), sorted(features)], sort_keys=True, default=str
    )

    def identify(rows: Columns) -> str:
        return hashlib.sha1(f"{settings} {digest_rows(rows, names)}".encode()).hexdigest()

    def compute(rows: Columns, loaded: list[_Loaded]) -> Columns:
        columns = compute_priors(rows, loaded)
        return {name: rows[name] for name in kept} | {"digest": image_digests(rows)} | columns

    return sharded_map(
        without_decoding(dataset), load, compute, identify, folder, features=features, batch_size=batch_size,
        title=_TITLE,
    )  # fmt: skip


def _prior_functions(
    dataset: Dataset | IterableDataset,
    model: KGLForImageClassification,
    image_processor: BaseImageProcessor,
    args: PriorArguments,
) -> tuple[Callable[[Row], _Loaded], Callable[[Columns, list[_Loaded]], Columns], Features]:
    """Return what loads an undecoded row, what computes the prior columns of a batch, and the columns' types."""
    features = dataset.features or {}
    if not isinstance(features.get("image"), Image) or not isinstance(features.get("label"), ClassLabel):
        raise InputError("The dataset needs columns image and label of the types datasets.Image and ClassLabel.")
    names = features["label"].names
    check_classes(names, model)
    first = next(iter(dataset), None)
    if first is None:
        raise InputError("The dataset has no images.")
    grid = check_saliency_method(to_pixel_values([first["image"]], image_processor).to(model.device), model, args)

    def load(row: Row) -> _Loaded:
        return load_pixel_values(row, image_processor), load_mask(row, grid)

    def compute(rows: Columns, loaded: list[_Loaded]) -> Columns:
        images, masks = zip(*loaded, strict=True)
        pixel_values = torch.cat(images).to(model.device)
        targets = torch.tensor([model.config.label2id[names[label]] for label in rows["label"]], device=model.device)
        with _uncalibrated(model):
            maps = compute_saliency(model, pixel_values, targets, args.prior_method, args.prior_layers)
        maps = to_uint8(to_grid(maps, grid), rows.get("file_name"))
        good = np.array([names[label] == model.config.defect_free_label for label in rows["label"]])
        return prior_columns(maps, np.ones(len(maps), dtype=np.float32), good, masks)

    return load, compute, Features(prior_features(grid))


@contextmanager
def _uncalibrated(model: KGLForImageClassification) -> Iterator[None]:
    """Set the temperature to 1 within: it was fitted on validation images, which must not decide on priors."""
    temperature, model.config.temperature = model.config.temperature, 1.0
    try:
        yield
    finally:
        model.config.temperature = temperature


@torch.no_grad()
def check_saliency_method(
    pixel_values: torch.Tensor, model: KGLForImageClassification, args: PriorArguments
) -> tuple[int, int]:
    """
    Try the saliency method on images `(B, 3, H, W)` and return the grid `(h, w)` of the model's features.

    Raises:
        InputError: the method fails; the message names `--prior_method`, and `--prior_layers` where given.
    """
    try:
        compute_saliency(model, pixel_values, None, args.prior_method, args.prior_layers)
    except ValueError as error:
        layers = f" --prior_layers {' '.join(args.prior_layers)}" if args.prior_layers else ""
        raise InputError(f"--prior_method {args.prior_method}{layers}: {error}") from error
    with eval_mode(model):
        return tuple(model(pixel_values).saliency.shape[-2:])


def model_digest(model: KGLForImageClassification) -> str:
    """Return a SHA-1 of the weights and of the config, without its decision and what only describes the file."""
    config = model.config.to_dict()
    config.pop("operating_point")  # of no map and no score; another one is chosen without training
    for name in ("_name_or_path", "architectures", "auto_map", "custom_pipelines", "dtype", "transformers_version"):
        config.pop(name, None)
        config["backbone_config"].pop(name, None)
    digest = hashlib.sha1(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def check_classes(names: list[str], model: KGLForImageClassification) -> None:
    """
    Check that a dataset's classes are the model's, in any order.

    Raises:
        InputError: they are not.
    """
    if set(names) != set(model.config.label2id):
        raise InputError(
            f"The dataset's classes {names} are not the model's {list(model.config.label2id)}; rename them, or take a "
            "model of these classes."
        )


__all__ = [
    "add_saliency_priors",
    "check_classes",
    "check_saliency_method",
    "model_digest",
    "write_saliency_priors",
]
