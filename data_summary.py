"""What was understood of a folder of pictures, before anything is trained on it. A command."""

from __future__ import annotations

import sys
from collections import Counter
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict

from kgl.commands import parse_settings, run_command
from kgl.data import DataArguments, defect_free_label, duplicate_distance, read_pictures, split_pictures
from kgl.errors import InputError
from kgl.runs import write_json
from kgl.scan import Oddity, Scan
from kgl.schema import masks_in


@dataclass
class SummaryArguments:
    """How much of it is told."""

    listed: int = field(default=10, metadata={"help": "Findings of each kind to print; the rest is counted."})
    output: str | None = field(
        default=None, metadata={"help": "A .json file for all findings; it must not exist yet."}
    )

    def __post_init__(self) -> None:
        if self.output is not None and Path(self.output).exists():
            raise InputError(f"--output {self.output}: it exists already; choose another name.")


def summary(args: DataArguments) -> dict[str, Any]:
    """
    Counts, classes, sizes, groups, splits, and everything odd.

    Pictures that cannot be used are among the oddities; `no_split` says why there is no split where there is none.

    Raises:
        InputError: there is nothing to read at all.
    """
    pictures, scan, oddities = read_pictures(replace(args, on_bad_image="skip"))
    told = {
        "defect_free": defect_free_label(args),
        "duplicate_distance": duplicate_distance(args),
        "splits_that_it_comes_with": {name: _of_split(split) for name, split in pictures.items()},
        **_of_scan(scan),
        "oddities": [asdict(one) for one in _counted(oddities, pictures)],
    }
    try:
        splits = split_pictures(pictures, args)
    except InputError as error:
        return told | {"no_split": str(error)}
    # Masks are left out of the training split unless it is trained on them: their number would mislead.
    return told | {"splits": {name: _of_split(split) | {"masks": None} for name, split in splits.items()}}


def _of_split(split: Dataset) -> dict[str, Any]:
    names = split.features["label"].names
    counts = Counter(split["label"][:])
    return {
        "pictures": len(split),
        "classes": {name: counts[index] for index, name in enumerate(names)},
        "groups": len(set(split["group"][:])),
        "masks": masks_in(split),
    }


def _of_scan(scan: Scan) -> dict[str, Any]:
    sizes = [size for size, problem in zip(scan.sizes, scan.problems, strict=True) if problem is None]
    widths, heights = (np.asarray(side) for side in zip(*sizes, strict=True))
    return {
        "widths": [int(value) for value in np.quantile(widths, (0, 0.5, 1), method="nearest")],
        "heights": [int(value) for value in np.quantile(heights, (0, 0.5, 1), method="nearest")],
        "modes": dict(Counter(mode for mode in scan.modes if mode)),
    }


def _counted(oddities: list[Oddity], pictures: DatasetDict) -> list[Oddity]:
    """What was found, and classes that are too small to learn from."""
    train = pictures["train"]
    counts = Counter(train["label"])
    small = [name for index, name in enumerate(train.features["label"].names) if counts[index] < 2]
    return [*oddities, *(Oddity("class of fewer than two pictures", (name,)) for name in small)]


def told(findings: dict[str, Any], listed: int) -> str:
    """[`summary`] in words."""
    lines = []
    for title, splits in (("As it comes", "splits_that_it_comes_with"), ("To train, validate and test", "splits")):
        if splits not in findings:
            continue
        lines.append(f"{title}:")
        for name, split in findings[splits].items():
            classes = ", ".join(f"{count} {label}" for label, count in split["classes"].items())
            groups = f"{split['groups']} independent groups"
            if split["masks"] is not None:
                groups += f", {split['masks']} with a mask"
            lines.append(f"  {name}: {split['pictures']} pictures ({classes}); {groups}")
    if "no_split" in findings:
        lines.append(f"No split: {findings['no_split']}")
    good = findings["defect_free"]
    distance = findings["duplicate_distance"]
    lines.append(f"Pictures at most {distance} of 256 bits apart show the same (--duplicate_distance)")
    lines.append(f"Class without defects: {good or 'none is named (--defect_free_label)'}")
    for side in ("widths", "heights"):
        lines.append(f"{side.capitalize()}: {' / '.join(map(str, findings[side]))} pixels (least, median, most)")
    lines.append("Modes: " + ", ".join(f"{count} {mode}" for mode, count in findings["modes"].items()))
    by_kind: dict[str, list[Oddity]] = {}
    for one in findings["oddities"]:
        by_kind.setdefault(one["kind"], []).append(Oddity(**one))
    for kind, of_kind in by_kind.items():
        lines.append(f"Odd, {kind}: {len(of_kind)}")
        lines += [f"  {one}" for one in of_kind[:listed]]
        if len(of_kind) > listed:
            lines.append(f"  and {len(of_kind) - listed} more")
    if not by_kind:
        lines.append("Nothing odd.")
    return "\n".join(lines)


def run(args: SummaryArguments, data_args: DataArguments) -> int:
    """Print the summary; what keeps kgl-train from starting: pictures that cannot be used, no split."""
    findings = summary(data_args)
    print(told(findings, args.listed))
    if args.output is not None:
        write_json(Path(args.output), findings)
    unusable = sum(one["kind"] == "cannot be used" for one in findings["oddities"])
    return (unusable if data_args.on_bad_image == "error" else 0) + ("no_split" in findings)


def main() -> None:
    """The command `kgl-data`: `kgl-data FOLDER` or flags; exit code 1 where kgl-train could not start."""
    arguments = sys.argv[1:]
    if arguments and not arguments[0].startswith("-") and not Path(arguments[0]).is_file():  # no recipe
        arguments = ["--data_dir", *arguments]

    def job() -> None:
        if run(*parse_settings("kgl-data", (SummaryArguments, DataArguments), arguments)):
            raise SystemExit(1)

    run_command("kgl-data", job)


__all__ = ["SummaryArguments", "main", "run", "summary", "told"]


if __name__ == "__main__":
    main()
