"""`kgl saliency`: compare saliency methods on the same images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..data.arguments import DataArguments
from ..errors import InputError, check_choices, expand_home, format_count
from ..saliency.methods import METHODS
from ..training.arguments import check_path_or_repo
from .parser import DATA_SOURCES, CommandHelp, HelpGroup, images_to_flags, parse_settings, run_command


@dataclass
class SaliencyGridArguments:
    """Settings of a saliency grid: the classifier, the methods and the images."""

    model: str = field(metadata={"help": "A classifier saved by kgl train: a folder or a Hub id."})
    output: str = field(metadata={"help": "The PNG to write; a new file."})
    methods: list[str] = field(
        default_factory=lambda: ["layercam", "gradcam", "gradcam++", "hirescam", "fullgrad", "smoothgrad"],
        metadata={"help": f"Any of {', '.join(METHODS)}."},
    )
    split: str = field(default="test", metadata={"help": "Split of the images.", "choices": ["train", "test"]})
    count: int = field(default=6, metadata={"help": "How many images with a defect; the classes take turns."})

    def __post_init__(self) -> None:
        expand_home(self, "model", "output")
        check_choices(self, {"split": ("train", "test")})
        unknown = [method for method in self.methods if method not in METHODS]
        if unknown:
            raise InputError(f"--methods {' '.join(unknown)}: choose among {', '.join(METHODS)}.")
        if self.count < 1:
            raise InputError(f"--count {self.count}: it must be at least 1.")
        if Path(self.output).suffix != ".png":
            raise InputError(f"--output {self.output}: its name must end in .png.")
        if Path(self.output).exists():
            raise InputError(f"--output {self.output}: the file exists; choose another name.")
        if not Path(self.output).absolute().parent.is_dir():
            raise InputError(f"--output {self.output}: there is no such folder.")


HELP = CommandHelp(
    command="kgl saliency",
    usage="IMAGES --model CLASSIFIER --output GRID.png [--SETTING VALUE ...]",
    description="Draw held-out images under several saliency methods, to choose the one that makes the priors.",
    example="kgl saliency images --model runs/images/primary --output methods.png",
    positional=("IMAGES", "a folder of images or a table, as for kgl train"),
    groups=(HelpGroup("grid", SaliencyGridArguments), HelpGroup("data", DataArguments)),
)


def parse(argv: Sequence[str]) -> tuple[Any, ...]:
    """Parse the arguments into SaliencyGridArguments and DataArguments."""
    return parse_settings(HELP, argv, images_to_flags, DATA_SOURCES)


def run(args: SaliencyGridArguments, data_args: DataArguments) -> None:
    """Draw the grid."""
    check_path_or_repo("--model", args.model)
    import torch

    from ..data.loading import load_defect_dataset
    from ..evaluation.saliency_grid import draw_saliency_grid
    from ..training.model_init import load_classifier

    model, image_processor = load_classifier(args.model)
    model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
    images = load_defect_dataset(data_args)[args.split]
    title = f"Saliency of the true class, {args.split} images"
    drawn = draw_saliency_grid(Path(args.output), images, model, image_processor, args.methods, args.count, title)
    print(f"{format_count(len(drawn), 'image')} under {format_count(len(args.methods), 'method')}: {args.output}")


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    run_command(HELP.command, lambda: run(*parse(argv)))
