"""
How well each saliency method's priors agree with the true masks, plain and cross-fitted.

    python benchmarks/prior_quality.py RUN_DIR [--name NAME]

RUN_DIR is a run of `train.py --prior_folds K` on a dataset with masks, which training did not see. Looked at are the
training images with a defect, because theirs are the priors: *plain* by the primary that was trained on them all,
*cross-fitted* by the one of the fold that left them out. Pixel AP is taken at the size of the network's input, maps
enlarged bilinearly; the pointing game and Otsu's mask cell by cell, a cell being defect where any pixel of it is.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from pathlib import Path

import numpy as np
from datasets import Dataset, concatenate_datasets
from measure import store

from kgl.data.arguments import DataArguments
from kgl.data.loading import load_defect_dataset
from kgl.data.masks import mask_to_array, mask_to_grid
from kgl.data.splits import group_folds
from kgl.evaluation.maps import pixel_average_precision, pointing_game, precision_and_recall, upsample_maps
from kgl.knowledge.arguments import PriorArguments
from kgl.knowledge.saliency_priors import add_saliency_priors
from kgl.knowledge.thresholds import otsu_threshold
from kgl.saliency.methods import METHODS
from kgl.training.model_init import load_classifier


def agreement(
    priors: np.ndarray, masks: list[np.ndarray], cells: np.ndarray, size: tuple[int, int]
) -> dict[str, float]:
    """Stored priors `(N, h, w)` against masks `(H, W)` at `size`, and against their cells `(N, h, w)`."""
    found = [prior > otsu_threshold(prior) for prior in priors]
    precision, recall = precision_and_recall(found, list(cells))
    return {
        "pixel_ap": pixel_average_precision(list(upsample_maps(priors / 255, size)), masks),
        "cell_ap": pixel_average_precision(list(priors), list(cells)),
        "pointing": pointing_game(list(priors), list(cells)),
        "otsu_precision": precision,
        "otsu_recall": recall,
    }


def priors_of(run: Path, phase: str, images: Dataset, method: str) -> Dataset:
    """The images with the priors that a phase's classifier makes of them."""
    model, image_processor = load_classifier(str(run / phase))
    return add_saliency_priors(images, model, image_processor, args=PriorArguments(method))


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", help="of the file in benchmarks/results; the run's folder's by default")
    options = parser.parse_args()
    settings = json.loads((options.run / "run.json").read_text())
    given = {field.name: settings["data"][field.name] for field in fields(DataArguments)}
    unmarked = load_defect_dataset(DataArguments(**given))["train"]
    marked = load_defect_dataset(DataArguments(**given | {"train_on_masks": True}))["train"]
    size = (settings["model"]["image_height"], settings["model"]["image_width"])
    folds = group_folds(unmarked, settings["prior"]["prior_folds"], given["split_seed"], "--prior_folds")

    masks = [mask_to_array(mask, size) for mask in marked["mask"]]
    defective = [index for index, mask in enumerate(masks) if mask is not None and mask.any()]
    masks = [masks[index] for index in defective]
    print(f"{len(defective)} images with a defect\n")
    print("| method | priors | pixel AP | cell AP | pointing game | Otsu precision | Otsu recall |")
    print("| --- | --- | ---: | ---: | ---: | ---: | ---: |")
    results = {}
    for method in METHODS:
        plain = priors_of(options.run, "primary", unmarked.select(defective), method)
        parts = [
            (held, priors_of(options.run, f"primary_fold{fold}", unmarked.select(held), method))
            for fold, held in enumerate([[i for i in held_out if i in set(defective)] for _, held_out in folds])
        ]
        order = np.argsort(np.concatenate([held for held, _ in parts]))
        cross_fitted = concatenate_datasets([part for _, part in parts]).select(order)
        for kind, priors in (("plain", plain), ("cross-fitted", cross_fitted)):
            stored = np.asarray(priors["saliency_prior"], dtype=np.uint8)
            cells = mask_to_grid(np.stack(masks), stored.shape[1:])
            row = results[f"{method}, {kind}"] = agreement(stored, masks, cells, size)
            print(f"| {method} | {kind} | " + " | ".join(f"{value:.3f}" for value in row.values()) + " |", flush=True)
    ceiling = results["the true masks on the grid"] = agreement(cells.astype(np.uint8) * 255, masks, cells, size)
    print("| the true masks on the grid | | " + " | ".join(f"{value:.3f}" for value in ceiling.values()) + " |")
    store(f"priors_{options.name or options.run.name}", {"settings": settings, "images": len(defective)}, results)


if __name__ == "__main__":
    main()
