"""
Make the pictures of docs/labelling.md and docs/training.md: what the commands themselves write, on generated surfaces.

    python benchmarks/example_pictures.py --cache_dir CACHE [--into docs]

Surfaces are written into a folder per class, and into one without labels; three labels of a copy are wrong. On them
`kgl train`, `kgl threshold`, `kgl next`, `kgl audit` and `kgl curve` are run with `kgl-tiny`. Pages are photographed
by Chromium without a screen. Commands that are finished in the cache folder print their results again.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path

from PIL import Image

from kgl.data.synthetic import CLASSES, generate_surface


COUNTS = {"good": 80, "scratch": 26, "pit": 26, "stain": 26}
WRONG = {"scratch/4.png": "good", "stain/7.png": "pit", "good/11.png": "stain"}
BACKBONE = ["--backbone", "kgl-tiny", "--image_height", "96", "--image_width", "96"]
_SIZE = 96


def make_surfaces(folder: Path) -> None:
    """Write the surfaces with labels, a copy with wrong ones, and surfaces without labels."""
    for label, count in COUNTS.items():
        (folder / "surfaces" / label).mkdir(parents=True)
        for index in range(count):
            image = generate_surface(label, _SIZE, index).image
            Image.fromarray(image).save(folder / "surfaces" / label / f"{index}.png")
    shutil.copytree(folder / "surfaces", folder / "doubtful")
    for name, label in WRONG.items():
        shutil.move(folder / "doubtful" / name, folder / "doubtful" / label / f"was_{name.replace('/', '_')}")
    (folder / "monday").mkdir()
    for index in range(120):
        image = generate_surface(CLASSES[index % 8 if index % 8 < len(CLASSES) else 0], _SIZE, 7000 + index).image
        Image.fromarray(image).save(folder / "monday" / f"{index:03d}.png")


def run(folder: Path, *arguments: str) -> None:
    """Run a command in the folder, and show what it prints."""
    print(f"\n$ kgl {' '.join(arguments)}", flush=True)
    code = "from kgl.cli.main import main; main()"
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-c", code, *arguments], check=True, cwd=folder, env=environment)


def photograph(page: Path, width: int, height: int, target: Path) -> None:
    """Write the top of a page."""
    shot = page.with_suffix(".shot.png")
    command = ["chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--window-size={width},{height}", f"--screenshot={shot}", page.resolve().as_uri()]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL, timeout=180)
    save_small(shot, target)


def save_small(source: Path, target: Path) -> None:
    """Write an image without photographs with 128 colours as PNG, others as JPEG."""
    image = Image.open(source).convert("RGB")
    if target.suffix == ".png":
        image = image.quantize(128)
    image.save(target, optimize=True, quality=75)


def main() -> None:
    """Run the commands and write the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cache_dir", type=Path, required=True)
    parser.add_argument("--into", type=Path, help="a folder")
    options = parser.parse_args()
    folder = options.cache_dir
    if not (folder / "surfaces").exists():
        make_surfaces(folder)
    run(folder, "train", "surfaces", *BACKBONE)
    run(folder, "threshold", "runs/surfaces", "--wanted_recall", "0.9", "--look_again_recall", "1")
    run(folder, "next", "runs/surfaces", "monday", "--count", "9")
    run(folder, "audit", "doubtful", *BACKBONE)
    run(folder, "curve", "runs/surfaces")
    if options.into is not None:
        runs = folder / "runs"
        photograph(runs / "surfaces" / "report.html", 1000, 430, options.into / "threshold_report.png")
        photograph(runs / "doubtful_audit" / "audit.html", 1000, 1120, options.into / "audit.jpg")
        save_small(runs / "surfaces_next_monday" / "next.png", options.into / "next.jpg")
        save_small(runs / "surfaces_curve" / "curve.png", options.into / "curve.png")


if __name__ == "__main__":
    main()
