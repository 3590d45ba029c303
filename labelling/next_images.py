"""Rank unlabelled images by what their labels would bring, into a CSV and a contact sheet."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from datasets import Dataset, Features, List, Value, concatenate_datasets
from transformers import BaseImageProcessor

from ..configuration_kgl import KGLConfig
from ..data.duplicates import find_near_duplicates
from ..data.images import find_images, load_pixel_values, without_decoding
from ..data.schema import defect_dataset, image_digests
from ..data.storage import write_text
from ..data.validation import inspect_images
from ..errors import InputError, format_count
from ..evaluation.metrics import defect_scores
from ..heads_kgl import pool_maps, top_cells
from ..knowledge.saliency_priors import model_digest
from ..knowledge.sharded_map import Columns, sharded_map
from ..modeling_kgl import KGLForImageClassification, class_probabilities
from ..saliency.activations import eval_mode
from ..training.model_init import load_classifier
from .contact_sheet import draw_contact_sheet
from .labelled_images import default_device
from .output import CACHE, delete_cache
from .runs import Run, read_run_images
from .strategies import STRATEGIES, Candidates, decision_entropy, standardize


_BATCH = 32
_COLUMNS = Features(
    {
        "digest": Value("string"),
        "probabilities": List(Value("float64")),
        "pooled": List(Value("float32")),
        "score": Value("float32"),
        "heat_map": List(List(Value("float32"))),
    }
)


@dataclass(frozen=True)
class Unlabelled:
    """
    The images to choose among, and how many of a folder are not among them.

    Attributes:
        images: columns `image` and `file_name`, one image of each group of near-duplicates.
        unusable: name of each file that cannot be read, and why.
        known: how many are near-duplicates of labelled images.
        repeated: how many are near-duplicates of another one in the folder.
        distance: bits of 256 within which images are near-duplicates.
        smaller: where fewer images are left than asked for, a distance that keeps more, and how many it keeps.
    """

    images: Dataset
    unusable: list[tuple[str, str]]
    known: int
    repeated: int
    distance: int
    smaller: tuple[int, int] | None


def find_unlabelled(folder: Path, run: Run, count: int, duplicate_distance: int | None) -> tuple[Unlabelled, Dataset]:
    """
    Read the images of a folder that are no near-duplicates of labelled images or of each other.

    Args:
        folder: searched at any depth.
        run: whose images are labelled.
        count: how many are asked for.
        duplicate_distance: bits of 256 within which images are near-duplicates; by default the run's.

    Returns:
        The images, and the training images of the run.

    Raises:
        InputError: the folder is missing, empty, or the one that the run was trained on; no image is left.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: there is no such folder of unlabelled images.")
    own = run.data_args.data_dir
    if own is not None and folder.resolve() == Path(own).resolve():
        raise InputError(
            f"{folder}: it is the folder that {run.folder} was trained on; give one of unlabelled images."
        )
    paths = find_images(folder)
    if not paths:
        raise InputError(f"{folder}: there is no image in it.")
    loaded, split = read_run_images(run)
    names = [path.relative_to(folder).as_posix() for path in paths]
    images = defect_dataset(
        images=[str(path) for path in paths], labels=["unknown"] * len(paths), names=["unknown"], file_names=names
    )
    found = inspect_images(images)
    usable = found.usable
    unusable = [(name, problem) for name, problem in zip(names, found.problems, strict=True) if problem is not None]
    distance = loaded.duplicate_distance if duplicate_distance is None else duplicate_distance
    labelled, hashes = loaded.inspection.hashes[loaded.inspection.usable], found.hashes[usable]
    fresh, known = keep_unlike(labelled, hashes, distance)
    smaller = find_smaller_distance(labelled, hashes, distance, count) if len(fresh) < count else None
    if len(fresh) == 0:
        advice = "" if smaller is None else ", or --duplicate_distance {}, which keeps {}".format(*smaller)
        raise InputError(
            f"{folder}: nothing to label in it: of {format_count(len(paths), 'image')}, {len(unusable)} are unusable "
            f"and {known} near-duplicates (within {distance} of 256 bits) of images that {run.folder} has; give other "
            f"images{advice}."
        )
    repeated = len(usable) - known - len(fresh)
    unlabelled = Unlabelled(images.select(usable[fresh]), unusable, known, repeated, distance, smaller)
    return unlabelled, split.splits["train"]


def keep_unlike(labelled: np.ndarray, hashes: np.ndarray, distance: int) -> tuple[np.ndarray, int]:
    """
    Return the rows of images unlike all labelled ones, the first of each group of near-duplicates.

    Args:
        labelled: perceptual hashes `(M, 4)` of labelled images.
        hashes: `(N, 4)` of unlabelled ones.
        distance: bits within which images are near-duplicates.

    Returns:
        Row numbers, ascending, and how many images are near-duplicates of labelled ones.
    """
    numbers = find_near_duplicates(np.concatenate([labelled, hashes]), distance)
    known = np.isin(numbers[len(labelled) :], numbers[: len(labelled)])
    _, first = np.unique(numbers[len(labelled) :], return_index=True)
    return np.sort(first[~known[first]]), int(known.sum())


def find_smaller_distance(
    labelled: np.ndarray, hashes: np.ndarray, distance: int, count: int
) -> tuple[int, int] | None:
    """
    Return the largest smaller distance at which [`keep_unlike`] keeps enough images, and how many it keeps.

    Args:
        labelled: perceptual hashes `(M, 4)` of labelled images.
        hashes: `(N, 4)` of unlabelled ones.
        distance: bits within which fewer than `count` are kept.
        count: how many are enough; where distance 0 keeps fewer, as many as it keeps.

    Returns:
        The distance and the number, None where no smaller distance keeps more.
    """

    @cache
    def kept(smaller: int) -> int:
        return len(keep_unlike(labelled, hashes, smaller)[0])

    most = kept(0)
    if most <= kept(distance):
        return None
    low, high = 0, distance  # at low enough are kept, at high too few: the number falls with the distance
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if kept(middle) >= min(count, most) else (low, middle)
    return low, kept(low)


def predict_images(
    images: Dataset, model: KGLForImageClassification, image_processor: BaseImageProcessor, folder: Path
) -> Dataset:
    """
    Return probabilities, pooled features, the mean of the highest cells of `H`, and the heat map of each image.

    They are written to `folder` as they are computed; a stopped pass resumes.
    """
    settings = f"{image_processor.to_dict()} {model_digest(model)}"

    def identify(rows: Columns) -> str:
        return hashlib.sha1(f"{settings} {image_digests(rows)}".encode()).hexdigest()

    @torch.no_grad()
    def compute(rows: Columns, loaded: list[torch.Tensor]) -> Columns:
        with eval_mode(model):
            output = model(torch.cat(loaded).to(model.device))
        return {
            "digest": image_digests(rows),
            "probabilities": class_probabilities(output.logits.float()).cpu().tolist(),
            "pooled": list(pool_maps(output.feature_maps).float().cpu().numpy()),
            "score": top_cells(output.saliency.float(), model.config.top_cells)[:, 0].cpu().tolist(),
            "heat_map": output.saliency[:, 0].float().sigmoid().cpu().tolist(),
        }

    rows = without_decoding(images.select_columns(["image"]))
    load = partial(load_pixel_values, image_processor=image_processor)
    table = sharded_map(
        rows, load, compute, identify, folder, features=_COLUMNS, batch_size=_BATCH,
        title="Unlabelled and training images",
    )  # fmt: skip
    return table.with_format("numpy")


def run_next(
    unlabelled: Unlabelled, train: Dataset, run: Run, output: Path, count: int, strategy: str
) -> dict[str, Any]:
    """
    Write `next.csv`, the ranked images, and `next.png`, the images beside their heat maps.

    Args:
        unlabelled: to choose among.
        train: the training images of the run.
        run: whose final classifier judges them.
        output: a claimed folder.
        count: how many to choose; all where there are fewer.
        strategy: one of [`STRATEGIES`].

    Returns:
        The columns of `next.csv`.
    """
    model, image_processor = load_classifier(str(run.folder / "final"))
    model.to(default_device())
    both = concatenate_datasets([unlabelled.images.select_columns(["image"]), train.select_columns(["image"])])
    table = predict_images(both, model, image_processor, output / CACHE / "predictions")
    number = len(unlabelled.images)
    probabilities, config = np.asarray(table["probabilities"][:])[:number], model.config
    pooled, scores = np.asarray(table["pooled"][:]), np.asarray(table["score"][:])[:number]
    uncertainty = decision_entropy(probabilities, config.defect_free_id, config.threshold)
    candidates = Candidates(uncertainty, scores, *standardize(pooled[:number], pooled[number:]))
    chosen = STRATEGIES[strategy](candidates, count, np.random.default_rng(run.seed))
    columns = _describe(chosen, candidates, probabilities, unlabelled.images["file_name"][:], model, strategy)
    heat_maps = [np.asarray(table[int(row)]["heat_map"]) for row in chosen]
    draw_contact_sheet(output / "next.png", unlabelled.images.select(chosen), heat_maps, columns, config)
    csv = pd.DataFrame(columns).to_csv(index=False, float_format="%.6g", lineterminator="\n")
    write_text(output / "next.csv", csv)
    delete_cache(output)
    return columns


def _describe(
    chosen: np.ndarray,
    candidates: Candidates,
    probabilities: np.ndarray,
    names: list[str],
    model: KGLForImageClassification,
    strategy: str,
) -> dict[str, list[Any]]:
    """Return the columns of the ranked table."""
    config = model.config
    more_unusual = [float((candidates.anomaly < candidates.anomaly[row]).mean()) for row in chosen]
    columns: dict[str, list[Any]] = {"rank": list(range(1, len(chosen) + 1)), "file": [names[row] for row in chosen]}
    columns["predicted_label"] = [config.id2label[int(probabilities[row].argmax())] for row in chosen]
    if config.defect_free_id is not None:
        columns["defect_score"] = defect_scores(probabilities[chosen], config.defect_free_id).tolist()
    columns["uncertainty"] = candidates.uncertainty[chosen].tolist()
    columns["anomaly"] = candidates.anomaly[chosen].tolist()
    columns["why"] = [
        _why(strategy, candidates.uncertainty[row], unusual, columns, index, config)
        for index, (row, unusual) in enumerate(zip(chosen, more_unusual, strict=True))
    ]
    return columns


def _why(
    strategy: str, uncertainty: float, unusual: float, columns: dict[str, list[Any]], index: int, config: KGLConfig
) -> str:
    """Return why an image was chosen, in words."""
    reasons = []
    if strategy == "random":
        reasons.append("chosen at random")
    if "uncertainty" in strategy or "both" in strategy:
        point = ""
        if "defect_score" in columns:
            chosen = config.operating_point is not None
            threshold = f"threshold {config.threshold:.2f}" if chosen else "no threshold was chosen"
            point = f" (P(defect) {columns['defect_score'][index]:.2f}, {threshold})"
        reasons.append(f"undecided by {uncertainty:.2f} bits{point}")
    if "anomaly" in strategy or "both" in strategy:
        reasons.append(f"more unusual than {unusual:.0%} of the folder")
    if "divers" in strategy:
        reasons.append("unlike the training images and those above")
    return "; ".join(reasons)


__all__ = ["Unlabelled", "find_smaller_distance", "find_unlabelled", "keep_unlike", "predict_images", "run_next"]
