"""`kgl data`: print a dataset summary and the issues of the data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..data.arguments import DataArguments
from ..errors import InputError, expand_home, format_count
from ..training.arguments import ModelArguments
from .parser import DATA_SOURCES, CommandHelp, HelpGroup, images_to_flags, parse_settings, run_command


if TYPE_CHECKING:
    from ..data.loading import LoadedDataset


@dataclass
class SummaryArguments:
    """Settings of the printed and written summary."""

    listed: int = field(default=3, metadata={"help": "Issues of each kind to print; the others are counted."})
    output: str | None = field(default=None, metadata={"help": "A new .json file for all issues."})

    to_shards: str | None = field(
        default=None,
        metadata={
            "help": "A new folder for the images as parquet shards, with labels, masks, groups and splits, for "
            "--hub_dataset, also with --streaming true.",
            "metavar": "FOLDER",
        },
    )

    def __post_init__(self) -> None:
        expand_home(self, "output", "to_shards")
        if self.listed < 0:
            raise InputError(f"--listed {self.listed}: it must be at least 0.")
        if self.output is not None and Path(self.output).suffix != ".json":
            raise InputError(f"--output {self.output}: its name must end in .json.")
        if self.output is not None and Path(self.output).exists():
            raise InputError(f"--output {self.output}: the file exists; choose another name.")
        if self.output is not None and not Path(self.output).absolute().parent.is_dir():
            raise InputError(f"--output {self.output}: there is no such folder.")


HELP = CommandHelp(
    command="kgl data",
    usage="IMAGES [--SETTING VALUE ...]",
    description="Print classes, sizes, splits and issues of the data, before anything is trained on it; --to_shards "
    "also writes it as shards. Exit code 1 where kgl train could not start: images are unusable or cannot be split; "
    "2 where there is nothing to summarize, such as one class alone.",
    example="kgl data images",
    positional=("IMAGES", "a folder with one folder per class or a published layout, or a table of images and labels"),
    groups=(HelpGroup("output", SummaryArguments), HelpGroup("data", DataArguments)),
)


def parse(argv: Sequence[str]) -> tuple[Any, ...]:
    """Parse the arguments into SummaryArguments and DataArguments."""
    return parse_settings(HELP, argv, images_to_flags, DATA_SOURCES)


def run(args: SummaryArguments, data_args: DataArguments) -> bool:
    """Print the summary, and return whether `kgl train` could start on the data."""
    from ..data.loading import read_images
    from ..data.shard_writer import check_shards_folder
    from ..data.storage import full_disk_as_input_error, write_json
    from ..data.summary import format_summary, squeeze_warning, summarize_images
    from ..data.validation import UNUSABLE

    if args.to_shards is not None:
        check_shards_folder(Path(args.to_shards))
    loaded = read_images(replace(data_args, on_bad_image="skip"))
    summary = summarize_images(loaded, data_args)
    print(format_summary(summary, args.listed))
    if squeezed := squeeze_warning(loaded, ModelArguments().size):
        print(squeezed)
    if args.output is not None:
        with full_disk_as_input_error(Path(args.output).parent):
            write_json(Path(args.output), summary)
        print(f"All issues and figures: {args.output}")
    unusable = any(issue["kind"] == UNUSABLE for issue in summary["issues"]) and data_args.on_bad_image == "error"
    if args.to_shards is not None:
        if unusable:
            raise InputError("--to_shards: repair or remove the unusable images, or give --on_bad_image skip.")
        _write_shards(loaded, Path(args.to_shards))
    return "split_error" not in summary and not unusable


def _write_shards(loaded: LoadedDataset, folder: Path) -> None:
    from ..data.shard_writer import write_shards

    for split, written in write_shards(loaded, folder).items():
        counts = (format_count(written[noun], noun[:-1]) for noun in ("images", "masks", "groups", "shards"))
        print(f"Written, {split}: {', '.join(counts)}, {written['bytes'] / 2**20:.1f} MiB")
    print(f"Shards: {folder}. Read them with --hub_dataset {folder}, in place with --streaming true.")


def main(argv: Sequence[str]) -> None:
    """Run the command; exit code 1 where `kgl train` could not start on what was read."""

    def job() -> None:
        if not run(*parse(argv)):
            raise SystemExit(1)

    run_command(HELP.command, job)
