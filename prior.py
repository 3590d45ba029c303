"""Phase 1 to phase 2: what a primary classifier looked at, as columns of the training set. Also a command."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Array2D, Dataset, Features, Value, concatenate_datasets
from safetensors import SafetensorError
from transformers import BaseImageProcessor, PreTrainedConfig
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl.collator import to_pixel_values
from kgl.commands import parse_settings, run_command
from kgl.configuration_kgl import KGLConfig
from kgl.data import DataArguments, load_defect_dataset, mask_array
from kgl.errors import InputError
from kgl.modeling_kgl import KGLForImageClassification
from kgl.runs import save_whole
from kgl.saliency import compute_saliency, to_uint8
from kgl.saliency.activations import undisturbed


def add_saliency_priors(
    dataset: Dataset, model: KGLForImageClassification, image_processor: BaseImageProcessor, batch_size: int = 16
) -> Dataset:
    """
    Add the columns `saliency_prior` (`(h, w)` uint8, the map's peak at 255) and `prior_weight` (float32).

    The prior is the LayerCAM map of the true class. Images of the config's defect-free class get a blank one; where
    a row has a `mask`, it takes the prior's place, a cell counting as defect where any of its pixels does. Weights
    are 1.

    Args:
        dataset: columns `image`, `label` and, where there are any, `mask`.
        model: the primary classifier; left in the mode it was in.
        image_processor: the one the model was trained with.
        batch_size: images a forward pass.
    """
    names = dataset.features["label"].names
    if set(names) != set(model.config.label2id):
        raise InputError(f"The data set's classes {names} are not the model's {list(model.config.label2id)}.")
    with undisturbed(model):
        grid = _grid(dataset, model, image_processor)
    features = Features(saliency_prior=Array2D(grid, "uint8"), prior_weight=Value("float32"))

    def priors_of(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        targets = torch.tensor([model.config.label2id[names[label]] for label in batch["label"]], device=model.device)
        pixel_values = to_pixel_values(batch["image"], image_processor).to(model.device)
        maps = to_uint8(compute_saliency(model, pixel_values, targets))
        if model.config.defect_free_id is not None:
            maps[(targets == model.config.defect_free_id).cpu().numpy()] = 0
        for index, mask in enumerate(batch.get("mask", [])):
            if mask is not None:
                maps[index] = _mask_on_grid(mask_array(mask, (mask.height, mask.width)), grid)
        return {"saliency_prior": list(maps), "prior_weight": [1.0] * len(maps)}

    priors = dataset.map(
        priors_of,
        batched=True,
        batch_size=batch_size,
        remove_columns=dataset.column_names,
        features=features,
        keep_in_memory=True,  # under 3 kB an image, and nothing stale from a cache
        load_from_cache_file=False,
        new_fingerprint="saliency-priors",  # hashing the model would take longer than using it
        desc="Saliency priors",
    )
    return concatenate_datasets([dataset, priors], axis=1)


@torch.no_grad()
def _grid(dataset: Dataset, model: KGLForImageClassification, image_processor: BaseImageProcessor) -> tuple[int, int]:
    pixel_values = to_pixel_values([dataset[0]["image"]], image_processor).to(model.device)
    return tuple(model(pixel_values).saliency.shape[-2:])


def _mask_on_grid(mask: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """A mask `(H, W)` bool as a prior `(h, w)`: 255 where any pixel of the cell is defect."""
    pixels = torch.from_numpy(mask).float().view(1, 1, *mask.shape)
    return (torch.nn.functional.adaptive_max_pool2d(pixels, grid)[0, 0] * 255).numpy().astype(np.uint8)


@dataclass
class PriorArguments:
    """Which model makes the priors, and where they go."""

    model: str = field(metadata={"help": "A classifier saved by kgl-train: a folder or a Hub id."})
    output_dir: str = field(metadata={"help": "A new folder for the data set with its priors (load_from_disk)."})
    batch_size: int = field(default=16, metadata={"help": "Pictures a forward pass."})

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"--batch_size {self.batch_size}: it must be at least 1.")


def run(args: PriorArguments, data_args: DataArguments) -> None:
    """Write the training split of a data set, with its priors, to a new folder."""
    output_dir = Path(args.output_dir)
    if output_dir.exists():
        raise InputError(f"--output_dir {output_dir}: it exists already; choose a new folder.")
    try:
        if PreTrainedConfig.get_config_dict(args.model)[0].get("model_type") != KGLConfig.model_type:
            raise InputError(f"--model {args.model}: it is a model, but none that kgl-train saved.")
        model = KGLForImageClassification.from_pretrained(args.model)
        image_processor = ViTImageProcessorPil.from_pretrained(args.model)  # what kgl-train saves
    except (OSError, SafetensorError) as error:
        raise InputError(f"--model {args.model}: it is no saved classifier of kgl. {error}") from error
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    train = load_defect_dataset(data_args)["train"]
    save_whole(add_saliency_priors(train, model, image_processor, args.batch_size), output_dir)
    print(f"Priors of {len(train)} pictures in {output_dir}")


def main() -> None:
    """The command `kgl-prior`."""
    run_command("kgl-prior", lambda: run(*parse_settings("kgl-prior", (PriorArguments, DataArguments), sys.argv[1:])))


__all__ = ["PriorArguments", "add_saliency_priors", "main", "run"]


if __name__ == "__main__":
    main()
