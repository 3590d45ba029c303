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
from datasets import Array2D, ClassLabel, Dataset, Features, Image, IterableDataset, Value, concatenate_datasets
from datasets.fingerprint import generate_random_fingerprint
from transformers import BaseImageProcessor

from ..data.images import decode_image, to_pixel_values, without_decoding
from ..data.masks import mask_to_array, mask_to_grid
from ..data.schema import digest_rows, image_digests
from ..errors import InputError
from ..modeling_kgl import KGLForImageClassification
from ..saliency.activations import eval_mode
from ..saliency.compute import compute_saliency
from ..saliency.maps import to_grid, to_uint8
from .arguments import PriorArguments
from .sharded_map import Columns, sharded_map


def add_saliency_priors(
    dataset: Dataset,
    model: KGLForImageClassification,
    image_processor: BaseImageProcessor,
    batch_size: int = 16,
    args: PriorArguments | None = None,
) -> Dataset:
    """
    Add the columns `saliency_prior` (`(h, w)` uint8, the map's peak at 255) and `prior_weight` (float32).

    The prior is the saliency map of the true class on the grid of the model's features. Images of the config's
    defect-free class get a blank one; where a row has a `mask`, it takes the prior's place, a cell counting as defect
    where any of its pixels does. Both count 1. What the others count is `args.prior_weighting`'s to say. A map or mask
    of an image with a defect that is empty counts 0.

    Args:
        dataset: columns `image`, `label` and, where there are any, `mask`.
        model: the primary classifier; left in the mode it was in.
        image_processor: the one the model was trained with.
        batch_size: images a forward pass.
        args: Grad-CAM++ of the pooled features, each map counting 1, by default.

    Raises:
        InputError: classes that are not the model's, a layer that it does not have, a map that is not finite.
    """
    priors_of, features = _priors_of(dataset, model, image_processor, args or PriorArguments())
    priors = without_decoding(dataset).map(
        priors_of,
        batched=True,
        batch_size=batch_size,
        remove_columns=dataset.column_names,
        features=features,
        keep_in_memory=True,  # under 3 kB an image, and nothing stale from a cache
        load_from_cache_file=False,
        new_fingerprint=generate_random_fingerprint(),  # what another model gave is another dataset
        desc="Saliency priors",
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
    The columns that [`add_saliency_priors`] adds, on disk at `folder` and for sets of any size.

    Called by every process of `accelerate launch`, they share the work. Stopped and called again it goes on; finished
    before it computes nothing, and what another model, other images or other settings gave is never taken.

    Returns:
        A table of the priors alone, in the order of the rows, with the images' `digest` and, where there is such a
        column, their `file_name`. [`with_priors`] puts it beside the images.

    Raises:
        InputError: as [`add_saliency_priors`]; `folder` holds something else, or the disk is full.
    """
    args = args or PriorArguments()
    priors_of, features = _priors_of(dataset, model, image_processor, args)
    kept = {name: dataset.features[name] for name in ("file_name",) if name in dataset.features}
    names = dataset.features["label"].names
    settings = json.dumps([asdict(args), image_processor.to_dict(), model_digest(model)], sort_keys=True, default=str)

    def identify(rows: Columns) -> str:
        return hashlib.sha1(f"{settings} {digest_rows(rows, names)}".encode()).hexdigest()

    def compute(rows: Columns) -> Columns:
        return {name: rows[name] for name in kept} | {"digest": image_digests(rows)} | priors_of(rows)

    return sharded_map(
        without_decoding(dataset),
        compute,
        identify,
        folder,
        features=Features(kept | {"digest": Value("string")} | features),
        batch_size=batch_size,
        title="Saliency priors",
    )


def with_priors(dataset: Dataset, priors: Dataset) -> Dataset:
    """
    The dataset with the columns that [`write_saliency_priors`] made of it.

    Raises:
        InputError: the priors are of other images.
    """
    images = "digest" if "digest" in dataset.column_names else "image"
    if image_digests(without_decoding(dataset.select_columns([images]))[:]) != priors[:]["digest"]:
        raise InputError("These priors are of other images, or of the same in another order.")
    return concatenate_datasets([dataset, priors.select_columns(["saliency_prior", "prior_weight"])], axis=1)


def _priors_of(
    dataset: Dataset | IterableDataset,
    model: KGLForImageClassification,
    image_processor: BaseImageProcessor,
    args: PriorArguments,
) -> tuple[Callable[[Columns], Columns], Features]:
    """The function from a batch of undecoded rows to their priors and weights, and its columns' types."""
    features = dataset.features or {}
    if not isinstance(features.get("image"), Image) or not isinstance(features.get("label"), ClassLabel):
        raise InputError("The dataset has no columns image and label of the types datasets.Image and ClassLabel.")
    names = features["label"].names
    check_classes(names, model)
    first = next(iter(dataset), None)
    if first is None:
        raise InputError("The dataset has no images.")
    grid = check_saliency_method(to_pixel_values([first["image"]], image_processor).to(model.device), model, args)

    def priors_of(rows: Columns) -> Columns:
        images = [decode_image(image) for image in rows["image"]]
        pixel_values = to_pixel_values(images, image_processor).to(model.device)
        targets = torch.tensor([model.config.label2id[names[label]] for label in rows["label"]], device=model.device)
        with _uncalibrated(model):
            maps = compute_saliency(model, pixel_values, targets, args.prior_method, args.prior_layers)
            weights = _weights(model, pixel_values, targets, args.prior_weighting)
        maps = to_uint8(to_grid(maps, grid), rows.get("file_name"))
        good = np.array([names[label] == model.config.defect_free_label for label in rows["label"]])
        maps[good], weights[good] = 0, 1
        for index, mask in enumerate(map(decode_image, rows.get("mask", []))):
            if mask is not None:
                whole = mask_to_array(mask, (mask.height, mask.width))
                maps[index], weights[index] = mask_to_grid(whole[None], grid)[0] * np.uint8(255), 1
        # A defect's map or mask that is empty does not say that there is none.
        weights[~good & (maps.max(axis=(1, 2)) == 0)] = 0
        return {"saliency_prior": list(maps), "prior_weight": weights.tolist()}

    return priors_of, Features(saliency_prior=Array2D(grid, "uint8"), prior_weight=Value("float32"))


@contextmanager
def _uncalibrated(model: KGLForImageClassification) -> Iterator[None]:
    """Within, at temperature 1: validation images, which choose it, have no say in priors."""
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
    The grid of the model's features, once the method has worked on one image.

    Raises:
        InputError: it does not; the message names `--prior_method`, and `--prior_layers` where they are given.
    """
    try:
        compute_saliency(model, pixel_values, None, args.prior_method, args.prior_layers)
    except ValueError as error:
        layers = f" --prior_layers {' '.join(args.prior_layers)}" if args.prior_layers else ""
        raise InputError(f"--prior_method {args.prior_method}{layers}: {error}") from error
    with eval_mode(model):
        return tuple(model(pixel_values).saliency.shape[-2:])


@torch.no_grad()
def _weights(
    model: KGLForImageClassification, pixel_values: torch.Tensor, targets: torch.Tensor, weighting: str
) -> np.ndarray:
    if weighting == "keep_all":
        return np.ones(len(targets), dtype=np.float32)
    with eval_mode(model):
        probabilities = model(pixel_values).logits.float().softmax(dim=1)
    if weighting == "drop_wrong":
        return (probabilities.argmax(dim=1) == targets).float().cpu().numpy()
    return probabilities.gather(1, targets[:, None])[:, 0].cpu().numpy()


def model_digest(model: KGLForImageClassification) -> str:
    """A SHA-1 of the weights and of what the config says of the network and its classes."""
    config = model.config.to_dict()
    foreign = "_name_or_path", "architectures", "auto_map", "custom_pipelines", "dtype", "transformers_version"
    for of_the_file in foreign:
        config.pop(of_the_file, None)
        config["backbone_config"].pop(of_the_file, None)
    digest = hashlib.sha1(json.dumps(config, sort_keys=True, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def check_classes(names: list[str], model: KGLForImageClassification) -> None:
    """
    Raises:
        InputError: a dataset's classes are not the model's, in whatever order.
    """
    if set(names) != set(model.config.label2id):
        raise InputError(f"The dataset's classes {names} are not the model's {list(model.config.label2id)}.")


__all__ = [
    "add_saliency_priors",
    "check_classes",
    "check_saliency_method",
    "model_digest",
    "with_priors",
    "write_saliency_priors",
]
