"""`kgl predict`: predict image files and folders."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.arguments import MAX_MEGAPIXELS_HELP, check_megapixels
from ..errors import InputError, expand_home, format_count
from ..training.arguments import check_path_or_repo
from .parser import CommandHelp, HelpGroup, is_one_of_several, parse_settings, run_command
from .unusable import report_unusable


if TYPE_CHECKING:
    from ..evaluation.predict_folder import FolderPredictions


@dataclass
class PredictArguments:
    """Settings of a prediction: the images, the classifier and the output folder."""

    paths: list[str] = field(
        metadata={
            "help": "Image files, and folders that are searched at any depth; or parquet and WebDataset shards of "
            "images, which get no overlays."
        }
    )
    model: str = field(metadata={"help": "A classifier saved by kgl train: a folder or a Hub id."})
    output: str = field(
        metadata={"help": "Folder for predictions.csv and overlays/; a stopped command resumes in it."}
    )
    batch_size: int = field(default=16, metadata={"help": "Batch size."})
    box_threshold: float | None = field(
        default=None,
        metadata={"help": "Heat-map value in 0..1 from which a cell is shown and boxed; the model's own by default."},
    )
    watch: float | None = field(
        default=None,
        metadata={
            "help": "Keep running: look at the folders every this many seconds and predict new and changed images, "
            "until Ctrl-C or SIGTERM.",
            "metavar": "SECONDS",
        },
    )
    max_image_megapixels: int | None = field(default=None, metadata={"help": MAX_MEGAPIXELS_HELP})

    def __post_init__(self) -> None:
        expand_home(self, "paths", "model", "output")
        if self.batch_size < 1:
            raise InputError(f"--batch_size {self.batch_size}: it must be at least 1.")
        check_megapixels(self.max_image_megapixels)
        if self.box_threshold is not None and not 0 <= self.box_threshold <= 1:
            raise InputError(f"--box_threshold {self.box_threshold}: it must lie in 0..1.")
        if self.watch is not None and not 0.1 <= self.watch <= 86_400:
            raise InputError(f"--watch {self.watch}: it must lie in 0.1..86400 seconds.")


HELP = CommandHelp(
    command="kgl predict",
    usage="PATHS ... --model CLASSIFIER --output FOLDER [--SETTING VALUE ...]",
    description="Write predictions.csv, one row per image, and the images under their heat maps. Exit code 1 where "
    "images could not be used.",
    example="kgl predict line/monday --model runs/images/final --output predictions",
    groups=(HelpGroup("settings", PredictArguments),),
    positional_flags={"--paths": "PATHS"},
)


def parse(argv: Sequence[str]) -> tuple[Any, ...]:
    """Parse the arguments into PredictArguments."""
    return parse_settings(HELP, argv, lambda paths: ["--paths", *paths])


def run(args: PredictArguments) -> None:
    """
    Predict, and print the counts.

    Raises:
        SystemExit: 1 where images could not be used.
    """
    several = is_one_of_several()
    if several and args.watch is not None:
        raise InputError("--watch goes with one process; start it without torchrun or accelerate launch.")
    for path in args.paths if not several else ():  # several processes check them together
        if not os.path.exists(path):  # Path.exists raises where a folder cannot be entered
            raise InputError(f"{path}: there is no such file or folder.")
    if not several:
        check_path_or_repo("--model", args.model)
    from ..data.images import set_max_megapixels
    from ..evaluation.predict_folder import changed_sentence, predict_folder, utf8_name
    from ..evaluation.predict_shards import find_shards, predict_shards
    from ..evaluation.predict_together import predict_together
    from ..evaluation.watch_folders import watch_folders

    set_max_megapixels(args.max_image_megapixels)
    paths, output = [Path(path) for path in args.paths], Path(args.output)
    shards = find_shards(paths)
    if shards and args.watch is not None:
        raise InputError("--watch looks for new image files; leave it out for shards.")
    if shards or several:
        predict = predict_shards if shards else predict_together
        done = predict(shards or paths, args.model, output, args.batch_size, args.box_threshold)
        if done is None:
            return
    elif args.watch is None:
        done = predict_folder(paths, args.model, output, args.batch_size, args.box_threshold)
    else:
        done = watch_folders(paths, args.model, output, args.watch, args.batch_size, args.box_threshold)
    if done.changed:
        print(changed_sentence(done.changed))
    images = format_count(done.images, "image")
    print(f"{images}: {format_decisions(done)}{len(done.unusable)} unusable. Table: {output / 'predictions.csv'}")
    print_unlike(done, warn=args.watch is None)  # a watch has warned as the images came
    unusable = [(utf8_name(str(one.path)), one.reason) for one in done.unusable]
    report_unusable(unusable, output, say=args.watch is None)  # a watch has named them as they were found
    if unusable:
        raise SystemExit(1)


def print_unlike(done: FolderPredictions, warn: bool) -> None:
    """Print how many images look unlike the training ones; to standard error where chance does not explain them."""
    if done.unlike is None or done.unlike.unlike == 0:
        return
    if warn and done.unlike.is_improbable():
        print(f"Warning: {done.unlike.sentence()}", file=sys.stderr)
    else:
        print(done.unlike.sentence())


def format_decisions(done: FolderPredictions) -> str:
    """Return how many images were decided how; nothing where the model makes no decision."""
    look_again = "" if done.look_again is None else f"{done.look_again} look again, "
    if done.defective + done.good + (done.look_again or 0) == 0:
        return ""
    return f"{done.defective} defective, {look_again}{done.good} good, "


def main(argv: Sequence[str]) -> None:
    """Run the command; exit code 1 where images could not be used."""
    run_command(HELP.command, lambda: run(*parse(argv)))
