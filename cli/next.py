"""`kgl next`: which images to label next."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.arguments import MAX_DUPLICATE_DISTANCE, MAX_MEGAPIXELS_HELP, check_megapixels
from ..errors import InputError, check_choices, expand_home, format_count
from ..labelling.choices import DEFAULT_STRATEGY, STRATEGIES
from .parser import CommandHelp, HelpGroup, parse_settings, run_command
from .unusable import report_unusable


if TYPE_CHECKING:
    from ..labelling.next_images import Unlabelled


_PRINTED = 5


@dataclass
class NextArguments:
    """Settings of the choice: the run, the unlabelled images, and how many to choose by what."""

    run: str = field(metadata={"help": "The folder of a finished run."})
    unlabelled: str = field(metadata={"help": "A folder of unlabelled images, searched at any depth."})
    count: int = field(default=20, metadata={"help": "How many images to choose."})
    by: str = field(
        default=DEFAULT_STRATEGY,
        metadata={
            "help": "What is chosen by: how undecided the classifier is, how unusual the image is, or both; "
            "diverse_both: images unlike each other among the highest of these.",
            "choices": list(STRATEGIES),
        },
    )
    duplicate_distance: int | None = field(
        default=None,
        metadata={
            "help": "Images whose perceptual hashes differ in at most this many of 256 bits from a labelled image or "
            "from another one are left out; by default as in the run."
        },
    )
    output: str | None = field(
        default=None, metadata={"help": "A new folder, by default beside the run; a stopped command resumes in it."}
    )
    max_image_megapixels: int | None = field(default=None, metadata={"help": MAX_MEGAPIXELS_HELP})

    def __post_init__(self) -> None:
        expand_home(self, "run", "unlabelled", "output")
        check_choices(self, {"by": STRATEGIES})
        check_megapixels(self.max_image_megapixels)
        if self.count < 1:
            raise InputError(f"--count {self.count}: it must be at least 1.")
        distance = self.duplicate_distance
        if distance is not None and not 0 <= distance <= MAX_DUPLICATE_DISTANCE:
            raise InputError(f"--duplicate_distance {distance}: it must lie in 0..{MAX_DUPLICATE_DISTANCE}.")


HELP = CommandHelp(
    command="kgl next",
    usage="RUN UNLABELED_DIR [--SETTING VALUE ...]",
    description="Rank unlabelled images by what their labels would bring: next.csv, and next.png with heat maps. "
    "Near-duplicates of labelled images, and of each other, are left out.",
    example="kgl next runs/images line/monday --count 20",
    groups=(HelpGroup("settings", NextArguments),),
    positional_flags={"--run": "RUN", "--unlabelled": "UNLABELED_DIR"},
)


def parse(argv: Sequence[str]) -> tuple[Any, ...]:
    """Parse the arguments into NextArguments."""
    return parse_settings(HELP, argv, _to_flags)


def _to_flags(arguments: list[str]) -> list[str]:
    if len(arguments) > 2:
        raise InputError(f"Give one run and one folder of unlabelled images, not {' '.join(arguments)}.")
    flags = ("--run", "--unlabelled")
    return [part for pair in zip(flags, arguments, strict=False) for part in pair]


def run(args: NextArguments) -> None:
    """Choose the images."""
    from ..data.images import set_max_megapixels
    from ..data.run_folders import is_output_folder
    from ..labelling.next_images import find_unlabelled, run_next
    from ..labelling.output import check_output, claimed_output
    from ..labelling.runs import read_run

    if is_output_folder(Path(args.unlabelled)) and not is_output_folder(Path(args.run)):
        raise InputError(
            f"{args.unlabelled} is a run and {args.run} is none; give the run first: `kgl next {args.unlabelled} "
            f"{args.run}`."
        )
    set_max_megapixels(args.max_image_megapixels)
    of_run, folder = read_run(Path(args.run)), Path(args.unlabelled)
    output = Path(args.output) if args.output is not None else _default_output(of_run.folder, folder)
    settings = {
        "run": of_run.fingerprints,
        "unlabelled": str(folder.resolve()),
        "count": args.count,
        "by": args.by,
        "duplicate_distance": args.duplicate_distance,
    }
    check_output(output, "next", settings)
    unlabelled, train = find_unlabelled(folder, of_run, args.count, args.duplicate_distance)
    with claimed_output(output, "next", settings | {"images": unlabelled.images["file_name"][:]}):
        chosen = run_next(unlabelled, train, of_run, output, args.count, args.by)
    print(f"{format_count(len(unlabelled.images), 'image')} to choose among; left out: {_left_out(unlabelled)}.")
    if unlabelled.unusable:
        print(f"{format_count(len(unlabelled.unusable), 'unusable image')} left out:", file=sys.stderr)
    report_unusable(unlabelled.unusable, output)
    number = len(chosen["file"])
    for index in range(min(_PRINTED, number)):
        print(f"  {chosen['rank'][index]}. {chosen['file'][index]}: {chosen['why'][index]}")
    if number > _PRINTED:
        print(f"  and {number - _PRINTED} more in next.csv")
    asked = f", of the {args.count} asked for" if number < args.count else ""
    print(f"{format_count(number, 'image')} to label next{asked}: {output / 'next.csv'}, shown in next.png.")
    print(
        "Label them, add them to the training images, and train again with another --output_dir: a finished "
        "run is not overwritten."
    )


def _left_out(unlabelled: Unlabelled) -> str:
    """Return how many images were left out and, where some can be kept, the setting that keeps more of them."""
    counts = f"{unlabelled.known} near-duplicates of labelled images and {unlabelled.repeated} of each other"
    if unlabelled.known + unlabelled.repeated == 0:
        return counts
    counts = f"{counts} (within {unlabelled.distance} of 256 bits"
    if unlabelled.smaller is None:
        return f"{counts})"
    return f"{counts}; " + "--duplicate_distance {} with another --output keeps {})".format(*unlabelled.smaller)


def _default_output(run_folder: Path, unlabelled: Path) -> Path:
    name = run_folder.resolve().name
    return run_folder.resolve().parent / f"{name}_next_{unlabelled.resolve().name}"


def main(argv: Sequence[str]) -> None:
    """Run the command."""
    run_command(HELP.command, lambda: run(*parse(argv)))
