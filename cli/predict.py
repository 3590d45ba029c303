"""`kgl predict`: predict image files and folders."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path

from ..evaluation.predict_folder import run
from .parser import run_command


def main() -> None:
    """The command `kgl-predict`; exit code 1 where images could not be used."""
    parser = ArgumentParser(
        prog="kgl-predict",
        description="What a trained classifier says of images, and where it looked.",
        allow_abbrev=False,
    )
    parser.add_argument("paths", nargs="+", type=Path, help="Images, and folders that are searched at any depth.")
    parser.add_argument("--model", required=True, help="A classifier saved by kgl-train: a folder or a Hub id.")
    parser.add_argument(
        "--output", required=True, type=Path, help="Gets predictions.csv and overlays/; a stopped run goes on."
    )
    parser.add_argument("--batch_size", type=int, default=16, help="Images a forward pass (default: 16).")
    parser.add_argument(
        "--box_threshold", type=float, default=0.5, help="Boxes go around what is this hot, in 0..1 (default: 0.5)."
    )
    args = parser.parse_args()

    def job() -> None:
        problems = run(**vars(args))
        print(f"{args.output / 'predictions.csv'} and {args.output / 'overlays'} are written.")
        if problems:
            print(f"{len(problems)} could not be used:", file=sys.stderr)
            for problem in problems:
                print(f"  {problem.path}: {problem.why}", file=sys.stderr)
            raise SystemExit(1)

    run_command(parser.prog, job)


__all__ = ["main"]
