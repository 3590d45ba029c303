"""What the commands on labelled images share: RUN or IMAGES, the backbone, and the output folder."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ..data.arguments import DataArguments
from ..errors import InputError, check_choices, expand_home
from ..labelling.choices import HEADS
from ..training.arguments import check_path_or_repo
from .parser import DATA_SOURCES, images_to_flags


if TYPE_CHECKING:
    from ..labelling.labelled_images import LabelledImages

SOURCES = DATA_SOURCES | {"--run"}
_WANTED = "give the folder of a finished run, or images as for kgl train"
POSITIONAL = ("RUN|IMAGES", "the folder of a finished run, or images as for kgl train")


@dataclass
class LabelledArguments:
    """The labelled images, the backbone of their features, and the output folder."""

    run: str | None = field(default=None, metadata={"help": "The folder of a finished run, with its settings."})
    backbone: str | None = field(
        default=None,
        metadata={
            "help": "Pretrained backbone: a folder, a Hub id, timm/NAME or kgl-tiny; by default the run's, or "
            "ResNet-18."
        },
    )
    image_height: int | None = field(
        default=None, metadata={"help": "IMAGES: they are resized to this height, by default 160."}
    )
    image_width: int | None = field(
        default=None, metadata={"help": "IMAGES: they are resized to this width, by default 160."}
    )
    heads: str = field(
        default="regression",
        metadata={
            "help": "regression: the primary classifier alone, a tenth of a second per fit. final: with the heat map, "
            "many times as long.",
            "choices": list(HEADS),
        },
    )
    output: str | None = field(
        default=None,
        metadata={"help": "A new folder, by default beside the run or below runs/; a stopped command resumes in it."},
    )

    def __post_init__(self) -> None:
        expand_home(self, "run", "backbone", "output")
        check_choices(self, {"heads": HEADS})
        for name in ("image_height", "image_width"):
            value = vars(self)[name]
            if value is not None and value < 1:
                raise InputError(f"--{name} {value}: it must be at least 1.")
            if value is not None and self.run is not None:
                raise InputError(f"--{name} goes with IMAGES; a run has its own.")


def run_or_images_to_flags(arguments: list[str]) -> list[str]:
    """
    Return the flags of a positional RUN or IMAGES argument: a folder with `run.json` is a run.

    Raises:
        InputError: there is more than one, or it is a classifier or a folder of runs.
    """
    from ..data.run_folders import describe_runs, is_output_folder

    if len(arguments) == 1:
        folder = Path(arguments[0]).expanduser()
        if is_output_folder(folder):
            return ["--run", arguments[0]]
        if (runs := describe_runs(folder)) is not None:
            raise InputError(f"{runs}.")
        if (folder / "config.json").is_file() and is_output_folder(folder.absolute().parent):
            raise InputError(
                f"{folder}: this is one classifier of a run; give the folder of the run, {folder.parent}."
            )
    return images_to_flags(arguments)


def read(args: LabelledArguments, data_args: DataArguments) -> LabelledImages:
    """
    Read the images.

    Raises:
        InputError: they or the run cannot be used, or settings of images are given beside a run.
    """
    if args.run is not None and data_args != DataArguments():
        raise InputError(f"Settings of images go with IMAGES; the run {args.run} has its own.")
    if args.run is None and data_args.data_dir is not None:
        _check_has_images(Path(data_args.data_dir))
    if args.backbone is not None:
        check_path_or_repo("--backbone", args.backbone)
    from ..data.summary import squeeze_warning
    from ..labelling.labelled_images import read_labelled_images

    size = None
    if args.image_height is not None or args.image_width is not None:
        size = args.image_height or 160, args.image_width or 160
    labelled = read_labelled_images(args.run and Path(args.run), data_args, args.backbone, size)
    if labelled.run is None and (squeezed := squeeze_warning(labelled.loaded, labelled.model_args.size)):
        print(squeezed)
    return labelled


def _check_has_images(folder: Path) -> None:
    """
    Check that a folder that is no run holds an image.

    Raises:
        InputError: there is no such folder, or no image in it.
    """
    from ..data.images import has_image_suffix

    if not folder.exists():
        raise InputError(f"{folder}: there is no such folder; {_WANTED}.")
    if folder.is_dir() and not any(has_image_suffix(path.name) for path in folder.rglob("*")):
        raise InputError(f"{folder}: there is no run and no image in it; {_WANTED}.")


def output_of(args: LabelledArguments, labelled: LabelledImages, command: str) -> Path:
    """Return the output folder, the default one where none is given."""
    return Path(args.output) if args.output is not None else labelled.output_dir(command)


__all__ = ["POSITIONAL", "SOURCES", "LabelledArguments", "output_of", "read", "run_or_images_to_flags"]
