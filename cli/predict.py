"""`kgl predict`: predict image files and folders."""

from __future__ import annotations

import sys
from argparse import ArgumentParser
from pathlib import Path

from ..evaluation.predict_folder import predict_folder
from .parser import run_command


def main() -> None:
    """Run the command `kgl-predict`; exit code 1 where images could not be read."""
    parser = ArgumentParser(
        prog="kgl-predict",
        description="Predict images with a trained classifier, and draw where it saw a defect.",
        allow_abbrev=False,
    )
    parser.add_argument("paths", nargs="+", type=Path, help="Images, and folders that are searched at any depth.")
    parser.add_argument("--model", required=True, help="A classifier saved by kgl-train: a folder or a Hub id.")
    parser.add_argument(
        "--output",
        required=True,
        type=Path,
        help="Folder for predictions.csv and overlays/; started again, it continues.",
    )
    parser.add_argument("--batch_size", type=int, default=16, help="Images per forward pass (default: 16).")
    parser.add_argument(
        "--box_threshold",
        type=float,
        default=0.5,
        help="Heat-map value, in 0..1, at and above which a pixel belongs to a box (default: 0.5).",
    )
    args = parser.parse_args()

    def job() -> None:
        result = predict_folder(**vars(args))
        decisions = f": {result.defective} defective, {result.good} good" if result.defective + result.good else ""
        print(f"{result.images} images predicted{decisions}.")
        print(f"See {args.output / 'predictions.csv'} and {args.output / 'overlays'}.")
        if result.unusable:
            print(f"{len(result.unusable)} images could not be used:", file=sys.stderr)
            for image in result.unusable:
                print(f"  {image.path}: {image.reason}", file=sys.stderr)
            raise SystemExit(1)

    run_command(parser.prog, job)


__all__ = ["main"]
