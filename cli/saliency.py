"""`kgl saliency`: compare saliency methods on the same images."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import torch
from datasets import Dataset

from ..data.arguments import DataArguments
from ..data.images import to_pixel_values
from ..data.loading import load_defect_dataset
from ..errors import InputError
from ..evaluation.visualization import draw_image_grid, select_grid_rows
from ..knowledge.saliency_priors import check_classes
from ..saliency.compute import compute_saliency
from ..saliency.maps import to_peak_one
from ..saliency.methods import METHODS
from ..training.model_init import load_classifier
from .parser import parse_settings, run_command


@dataclass
class GridArguments:
    """Whose maps, by which methods, of how many images."""

    model: str = field(metadata={"help": "A classifier saved by kgl-train: a folder or a Hub id."})
    output: str = field(metadata={"help": "The PNG to write; it must not exist yet."})
    methods: list[str] = field(
        default_factory=lambda: ["layercam", "gradcam", "gradcam++", "hirescam", "fullgrad", "smoothgrad"],
        metadata={"help": f"Any of {', '.join(METHODS)}."},
    )
    split: str = field(default="test", metadata={"help": "Which images.", "choices": ["train", "test"]})
    count: int = field(default=6, metadata={"help": "How many images with a defect, the classes taking turns."})

    def __post_init__(self) -> None:
        unknown = [method for method in self.methods if method not in METHODS]
        if unknown:
            raise InputError(f"--methods {' '.join(unknown)}: choose among {', '.join(METHODS)}.")
        if self.count < 1:
            raise InputError(f"--count {self.count}: it must be at least 1.")
        if Path(self.output).suffix != ".png":
            raise InputError(f"--output {self.output}: its name must end in .png.")
        if Path(self.output).exists():
            raise InputError(f"--output {self.output}: it exists already; choose another name.")
        if not Path(self.output).absolute().parent.is_dir():
            raise InputError(f"--output {self.output}: there is no such folder.")


def run(args: GridArguments, data_args: DataArguments) -> Dataset:
    """Draw the maps of the true class, each method's scaled by its own peak; the images drawn are returned."""
    model, image_processor = load_classifier(args.model)
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    split = load_defect_dataset(data_args)[args.split]
    names = split.features["label"].names
    check_classes(names, model)
    defect_free = model.config.defect_free_label  # its prior is blank
    rows = split.select([index for index, label in enumerate(split["label"]) if names[label] != defect_free])
    rows = rows.select(select_grid_rows(rows, args.count, defect_free))

    pixel_values = to_pixel_values(rows["image"], image_processor).to(model.device)
    targets = torch.tensor([model.config.label2id[names[label]] for label in rows["label"]], device=model.device)
    try:
        maps = {
            method: to_peak_one(compute_saliency(model, pixel_values, targets, method)).cpu().numpy()
            for method in args.methods
        }
    except ValueError as error:
        raise InputError(f"--methods: {error}") from error
    with torch.no_grad():
        certainty = model(pixel_values).logits.softmax(dim=1).gather(1, targets[:, None])[:, 0].tolist()
    captions = {"image": [f"P(true class) {value:.2f}" for value in certainty]}
    size = tuple(pixel_values.shape[-2:])
    title = f"Saliency of the true class, {args.split} images"
    try:
        draw_image_grid(Path(args.output), rows, maps, size, title, "share of the map's own peak", captions)
    except OSError as error:
        raise InputError(f"--output {args.output}: it cannot be written. {error}") from error
    print(f"{len(rows)} images under {len(maps)} methods in {args.output}")
    return rows


def main() -> None:
    """The command `kgl-saliency-grid`."""
    command = "kgl-saliency-grid"
    run_command(command, lambda: run(*parse_settings(command, (GridArguments, DataArguments), sys.argv[1:])))


__all__ = ["GridArguments", "main", "run"]
