"""
How often images and folders look unlike the training ones, if they are like them and if they are not.

    python benchmarks/training_range.py [--into docs/training_range.md] [--figure docs/training_range.png]

Of each data set at most 300 images are taken, groups kept whole. A fifth of them is never trained on and is changed:
blurred, exposed otherwise, made noisy, turned. In each of ten draws the range is measured on 40 or 150 of the others;
the rest and the unchanged fifth are the held-out images. Changes, and images of other data sets, are judged without
the size, which would give most of them away. A folder warns as `kgl predict` does; folders are drawn of the images
again and again. Lines that the results file already holds are not measured again.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image, ImageFilter

from kgl.benchmarks.evidence.formatting import markdown_table, replace_block
from kgl.benchmarks.evidence.plan import TASKS
from kgl.benchmarks.evidence.records import append_lines, stored_lines
from kgl.benchmarks.evidence.task_data import image_processor, load_images, new_model
from kgl.benchmarks.measure import RESULTS
from kgl.evaluation.training_range import (
    SIZES,
    ImageMeasures,
    center_and_scale,
    feature_distances,
    find_range,
    held_out_distances,
    measure_images,
)
from kgl.evaluation.unlike_images import UnlikeImages
from kgl.pipeline_kgl import PROPERTIES, unlike_training


OUTPUT = RESULTS / "training_range.jsonl"
DATA = {"tiles": "magnetic tiles", "boards": "circuit boards", "kolektorsdd": "KolektorSDD"}
TRAINING = (40, 150)
DRAWS = 10
FOLDERS = (20, 50, 100)
_FOLDER_DRAWS = 200
_IMAGES = 300
_STAGES = ["stage2", "stage3", "stage4"]


def _exposed(factor: float) -> Callable[[Image.Image], Image.Image]:
    return lambda image: image.point(lambda value: min(255, round(value * factor)))


def _noisy(image: Image.Image) -> Image.Image:
    pixels = np.asarray(image, dtype=float)
    noise = np.random.default_rng(0).normal(0, 12, pixels.shape[:2])[..., None]  # grey, as a sensor's
    return Image.fromarray((pixels + noise).clip(0, 255).round().astype(np.uint8))


CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "blur, radius 1": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "blur, radius 2": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
    "exposure x 0.7": _exposed(0.7),
    "exposure x 0.85": _exposed(0.85),
    "exposure x 1.2": _exposed(1.2),
    "exposure x 1.4": _exposed(1.4),
    "noise, sigma 12": _noisy,
    "turned by 90 degrees": lambda image: image.transpose(Image.Transpose.ROTATE_90),
}


def split_rows(groups: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the rows to train on and those to change, at most 300 together, groups kept whole."""
    order = shuffled_groups(groups, 0)[:_IMAGES]
    changed = order[: len(order) // 5]
    names = np.asarray(groups)
    return order[~np.isin(names[order], names[changed])], changed


def shuffled_groups(groups: list[str], seed: int) -> np.ndarray:
    """Return all rows, one group after the other, the groups in a random order."""
    _, group_of = np.unique(groups, return_inverse=True)
    rank = np.random.default_rng(seed).permutation(group_of.max() + 1)
    return np.argsort(rank[group_of], kind="stable")


def measure_data(name: str) -> Iterator[dict[str, Any]]:
    """Yield a line per draw and number of training images of a data set."""
    images, processor = load_images(name), image_processor(TASKS[name])
    model = new_model(name, {"head": "stages", "out_features": _STAGES}).eval()
    train_rows, changed_rows = split_rows(images["group"][:])

    def measure(data: str, rows: np.ndarray, change: Callable[[Image.Image], Image.Image]) -> ImageMeasures:
        stored = load_images(data).select(rows).select_columns("image")
        batches = ([change(one.convert("RGB")) for one in batch["image"]] for batch in stored.iter(8))
        return measure_images(model, batches, processor)

    both = measure(name, np.concatenate([train_rows, changed_rows]), lambda image: image)
    unlike = {title: measure(name, changed_rows, change) for title, change in CHANGES.items()}
    for other, title in DATA.items():
        if other != name:
            rows = split_rows(load_images(other)["group"][:])[1]
            unlike[f"images of {title}"] = measure(other, rows, lambda image: image)
    groups = [images["group"][int(row)] for row in train_rows]
    for number in TRAINING:
        for seed in range(DRAWS) if len(train_rows) >= number + 20 else ():
            drawn = shuffled_groups(groups, seed)[:number]
            yield {"data": name, "training_images": number, "seed": seed} | judge(both, drawn, groups, unlike, seed)


def judge(
    both: ImageMeasures, drawn: np.ndarray, groups: list[str], unlike: dict[str, ImageMeasures], seed: int
) -> dict[str, Any]:
    """
    Return how many held-out images and folders are flagged, and how many changed ones.

    Args:
        both: of the images to train on, and of those to change.
        drawn: rows of the first to train on; their whole groups are not held out.
        groups: of the images to train on.
        unlike: by title.
        seed: of the folders.
    """
    training, names = both.select(drawn), np.asarray(groups)
    held_out = both.select(np.append(~np.isin(names, names[drawn]), [True] * (len(both.features) - len(names))))
    center, scale = center_and_scale(training.features)
    distances = held_out_distances(training.features, names[drawn].tolist())

    def flags(images: ImageMeasures, training_range: dict[str, Any], sized: bool) -> np.ndarray:
        values = images.with_distances(feature_distances(images.features, center, scale))
        sizes = zip(values["height"], values["width"], strict=True) if sized else [(0, 0)] * len(images.features)
        properties = zip(*(values[name] for name in PROPERTIES), strict=True)
        return np.array(
            [bool(unlike_training(one, size, training_range)) for one, size in zip(properties, sizes, strict=True)]
        )

    values, generator = training.with_distances(distances), np.random.default_rng(seed)
    with_size = find_range(values, names[drawn])
    without = find_range(values | {name: np.zeros(len(drawn)) for name in SIZES}, names[drawn])
    found = flags(held_out, with_size, sized=True)
    of_changed = {title: flags(images, without, sized=False) for title, images in unlike.items()}
    return {
        "groups": with_size["groups"],
        "expected_share": with_size["expected_share"],
        "held_out": len(found),
        "flagged": float(found.mean()),
        "warned": {str(size): warned(found, size, with_size, generator) for size in FOLDERS if size < len(found)},
        "changes": {
            title: {"flagged": float(one.mean()), "warned": warned(one, FOLDERS[0], without, generator)}
            for title, one in of_changed.items()
        },
    }


def warned(
    flagged: np.ndarray, size: int, training_range: dict[str, Any], generator: np.random.Generator
) -> float | None:
    """Return the share of folders of so many of the images that `kgl predict` warns of; None of fewer images."""
    if size > len(flagged):
        return None
    counts = [int(generator.permutation(flagged)[:size].sum()) for _ in range(_FOLDER_DRAWS)]
    warns = [UnlikeImages(size, count, {}, training_range).is_improbable() for count in range(size + 1)]
    return float(np.mean([warns[count] for count in counts]))


def held_out_table(lines: list[dict[str, Any]]) -> str:
    """Return a table of what is flagged of images like the training ones, a row per data set and number of images."""
    rows = []
    for (name, number), group in _grouped(lines):
        row = {"dataset": DATA[name], "training images": str(number)}
        row["groups"] = f"{np.mean([line['groups'] for line in group]):.0f}"
        row["expected share"] = _percent([line["expected_share"] for line in group])
        row["held-out images that look unlike"] = _percent([line["flagged"] for line in group])
        for size in map(str, FOLDERS):
            known = [line["warned"][size] for line in group if size in line["warned"]]
            row[f"folders of {size} that warn"] = _percent(known) if known else ""
        rows.append(row)
    return markdown_table(rows)


def changes_table(lines: list[dict[str, Any]]) -> str:
    """Return a table of what is flagged of other images, a column per data set and number of training images."""
    columns = {f"{DATA[name]}, {number}": group for (name, number), group in _grouped(lines)}
    titles = list(dict.fromkeys(title for line in lines for title in line["changes"]))
    rows = []
    for title in titles:
        row = {"change": title}
        for column, group in columns.items():
            of_change = [line["changes"][title] for line in group if title in line["changes"]]
            row[column] = ""
            if of_change:
                images, folders = ([one[key] for one in of_change] for key in ("flagged", "warned"))
                row[column] = f"{_percent(images)}, {_percent(folders)}"
        rows.append(row)
    return markdown_table(rows)


def draw_changes(lines: list[dict[str, Any]], path: Path) -> None:
    """Draw the share of images flagged and of folders that warn, a panel per data set, its most training images."""
    most = {name: max(line["training_images"] for line in lines if line["data"] == name) for name in DATA}
    figure, axes = plt.subplots(1, len(DATA), figsize=(4.4 * len(DATA), 4), layout="constrained")
    for axis, (name, number) in zip(axes, most.items(), strict=True):
        group = [line for line in lines if (line["data"], line["training_images"]) == (name, number)]
        titles = ["held-out images", *group[0]["changes"]]
        images = [np.mean([line["flagged"] for line in group])]
        images += [np.mean([line["changes"][title]["flagged"] for line in group]) for title in titles[1:]]
        folders = [np.mean([line["warned"]["20"] for line in group])]
        folders += [np.mean([line["changes"][title]["warned"] for line in group]) for title in titles[1:]]
        places = np.arange(len(titles))
        axis.barh(places - 0.2, 100 * np.array(images), 0.38, color="#3b82a0", label="images that look unlike")
        axis.barh(places + 0.2, 100 * np.array(folders), 0.38, color="#c2410c", label="folders of 20 that warn")
        expected = 100 * np.mean([line["expected_share"] for line in group])
        axis.axvline(expected, color="black", linestyle="--", label="expected share of images")
        axis.set(title=f"{DATA[name]}, {number} training images", xlabel="%", xlim=(0, 100))
        axis.set_yticks(places, titles)
        axis.invert_yaxis()
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=3)
    figure.savefig(path, dpi=110)


def _grouped(lines: list[dict[str, Any]]) -> list[tuple[tuple[str, int], list[dict[str, Any]]]]:
    keys = dict.fromkeys((line["data"], line["training_images"]) for line in lines)
    return [(key, [line for line in lines if (line["data"], line["training_images"]) == key]) for key in keys]


def _percent(values: list[float]) -> str:
    return f"{100 * np.mean(values):.1f} %"


def main() -> None:
    """Measure what is missing, and write tables and figure where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--into", type=Path, help="a page with markers to fill")
    parser.add_argument("--figure", type=Path, help="an image file")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = stored_lines(options.output)
    for name in DATA:
        if name not in {line["data"] for line in lines}:
            new = list(measure_data(name))
            append_lines(options.output, *new)
            lines += new
            print(held_out_table(new), changes_table(new), sep="\n\n", flush=True)
    if options.figure is not None:
        draw_changes(lines, options.figure)
    if options.into is not None:
        text = options.into.read_text()
        for block, table in (("held-out images", held_out_table(lines)), ("changed images", changes_table(lines))):
            text = replace_block(text, block, table)
        options.into.write_text(text)


if __name__ == "__main__":
    main()
