"""
Compare the priors of each saliency method with the true masks.

    python benchmarks/prior_quality.py RUN_DIR [--name NAME]

RUN_DIR is a run of `train.py` on a dataset with masks, which training did not use. Evaluated are the training images
with a defect, which the run's primary classifier was trained on. Pixel AP is at the size of the network's input, maps
enlarged bilinearly; the pointing game and Otsu's mask are on the grid of the maps, where a cell is defect if any of
its pixels is.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from pathlib import Path

import numpy as np
from datasets import disable_progress_bars

from kgl.benchmarks.measure import store
from kgl.data.arguments import DataArguments
from kgl.data.loading import load_defect_dataset
from kgl.data.masks import mask_to_array, mask_to_grid
from kgl.evaluation.maps import pixel_average_precision, pointing_game, precision_and_recall, upsample_maps
from kgl.knowledge.arguments import PriorArguments
from kgl.knowledge.saliency_priors import add_saliency_priors
from kgl.knowledge.thresholds import otsu_threshold
from kgl.saliency.methods import METHODS
from kgl.training.model_init import load_classifier


def compare_with_masks(
    priors: np.ndarray, masks: list[np.ndarray], cells: np.ndarray, size: tuple[int, int]
) -> dict[str, float]:
    """Return the agreement of priors `(N, h, w)` uint8 with masks `(H, W)` at `size` and with cells `(N, h, w)`."""
    predicted = [prior > otsu_threshold(prior) for prior in priors]
    precision, recall = precision_and_recall(predicted, list(cells))
    return {
        "pixel_ap": pixel_average_precision(list(upsample_maps(priors / 255, size)), masks),
        "cell_ap": pixel_average_precision(list(priors), list(cells)),
        "pointing": pointing_game(list(priors), list(cells)),
        "otsu_precision": precision,
        "otsu_recall": recall,
    }


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--name", help="of the file in benchmarks/results; the run folder's by default")
    options = parser.parse_args()
    disable_progress_bars()
    settings = json.loads((options.run / "metrics.json").read_text())["settings"]
    given = {field.name: settings["data"][field.name] for field in fields(DataArguments)}
    images = load_defect_dataset(DataArguments(**given))["train"]
    with_masks = load_defect_dataset(DataArguments(**given | {"train_on_masks": True}))["train"]
    size = (settings["model"]["image_height"], settings["model"]["image_width"])

    masks = [mask_to_array(mask, size) for mask in with_masks["mask"]]
    defective = [row for row, mask in enumerate(masks) if mask is not None and mask.any()]
    masks = [masks[row] for row in defective]
    print(f"{len(defective)} images with a defect\n")
    print("| method | pixel AP | cell AP | pointing game | Otsu precision | Otsu recall |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    model, image_processor = load_classifier(str(options.run / "primary"))
    results: dict[str, dict[str, float]] = {}
    for method in METHODS:
        priors = add_saliency_priors(images.select(defective), model, image_processor, args=PriorArguments(method))
        stored = np.asarray(priors["saliency_prior"], dtype=np.uint8)
        cells = mask_to_grid(np.stack(masks), stored.shape[1:])
        results[method] = compare_with_masks(stored, masks, cells, size)
        print(f"| {method} | {' | '.join(f'{value:.3f}' for value in results[method].values())} |", flush=True)
    # The best that any map on this grid can reach.
    ceiling = results["true_masks"] = compare_with_masks(cells.astype(np.uint8) * 255, masks, cells, size)
    print("| true masks on the grid | " + " | ".join(f"{value:.3f}" for value in ceiling.values()) + " |")
    name = f"priors_{options.name or options.run.name}"
    store(name, {"settings": settings, "defective_images": len(defective)}, results)


if __name__ == "__main__":
    main()
