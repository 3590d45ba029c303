"""Galleries of the report: which test images they show, their tiles, and what they are sorted and filtered by."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from ..configuration_kgl import KGLConfig
from ..data.masks import mask_to_array
from ..data.storage import write_json
from .maps import upsample_maps
from .metrics import defect_scores
from .overlay import overlay_heat_map, shown_from
from .page import jpeg_uri
from .predictions import Predictions
from .tiles import strip_shape, tile_size


GALLERY_FILE = "gallery.json"  # what the galleries may show at any threshold
_HEAT_MAP = "final: heat map H"
_THUMBNAIL_SCALE = 0.5  # of a tile
_GALLERY_SIZE = 8
_MAX_THUMBNAILS = 200
_MISSED, _FALSE_ALARM, _OTHER_CLASS = "missed defect", "false alarm", "another class"
_LOOK_AGAIN, _RIGHT = "look again", "right"
_FOUND, _RECOGNISED = "Found defects", "Recognised images"  # titles of the galleries of right decisions
MISTAKES = (_MISSED, _FALSE_ALARM, _OTHER_CLASS)


@dataclass(frozen=True)
class Gallery:
    """
    Test images of one kind.

    Attributes:
        title: of the section.
        chosen: which of the images are shown where there are more.
        cases: what the template shows of each image, in the order of the page.
        total: how many such images there are.
    """

    title: str
    chosen: str
    cases: list[dict[str, Any]]
    total: int


def write_galleries(
    path: Path,
    test: Dataset,
    predictions: dict[str, Predictions],
    priors_of: Callable[[Dataset], np.ndarray] | None,
    config: KGLConfig,
) -> None:
    """
    Write what the galleries may show at any threshold: `cases` with all tiles, and `thumbnails`, by row of the image.

    Args:
        path: the JSON to write.
        test: the test images.
        predictions: `primary` and `final` predictions of `test`.
        priors_of: as in [`~kgl.evaluation.report.write_report`].
        config: the final classifier's.
    """
    ranked = _ranked(np.asarray(test["label"]), predictions["final"].probabilities, config)
    # Another threshold only shows more or fewer of the first ones.
    rows = np.unique(np.concatenate([of_kind[:_GALLERY_SIZE] for of_kind in ranked.values()]))
    cases = _gallery_cases(test, rows, predictions, priors_of, config)
    small = np.union1d(rows, ranked["hardest"][:_MAX_THUMBNAILS])
    write_json(path, {"cases": cases, "thumbnails": _thumbnails(test, small, predictions["final"], config)})


def read_galleries(
    path: Path, labels: np.ndarray, final: np.ndarray, config: KGLConfig
) -> tuple[list[Gallery], Gallery]:
    """
    Return the galleries with all tiles, and that of thumbnails, as the config's operating point decides.

    Args:
        path: the file of [`write_galleries`].
        labels: of the test images, `(N,)`.
        final: probabilities of the final classifier, `(N, K)`.
        config: the final classifier's.
    """
    stored = json.loads(path.read_text(encoding="utf-8"))
    thumbnails = stored["thumbnails"]
    facts = {row: _facts(int(row), one, labels, final, config) for row, one in thumbnails.items()}
    decided = {row: facts[row] | _as_decided(case, facts[row]) for row, case in stored["cases"].items()}
    galleries = []
    for title, chosen, rows in _select(labels, final, config):
        shown = [str(row) for row in rows[:_GALLERY_SIZE]]
        if title in (_FOUND, _RECOGNISED):
            # At another threshold, or in a run of an earlier version, some of these have no stored tiles.
            shown = [row for row in shown if row in decided]
            if len(rows) and not shown:
                continue
        galleries.append(Gallery(title, chosen, [decided[row] for row in shown], len(rows)))
    by_score = sorted(facts, key=lambda row: -facts[row]["score"])
    small = [facts[row] | {"src": _source(thumbnails[row], facts[row])} for row in by_score]
    chosen = "those above, and those with the lowest probability of their true class"
    return galleries, Gallery("All test images", chosen, small, len(labels))


def kinds_of_cases(cases: list[dict[str, Any]]) -> list[str]:
    """Return the kinds of decisions among the images of a gallery, mistakes first."""
    found = {case["kind"] for case in cases}
    return [kind for kind in (*MISTAKES, _LOOK_AGAIN, _RIGHT) if kind in found]


def _ranked(labels: np.ndarray, final: np.ndarray, config: KGLConfig) -> dict[str, np.ndarray]:
    """Return the rows of the test images in the order of each gallery, before any decision."""
    rows = np.arange(len(labels))
    ranked = {"hardest": np.argsort(final[rows, labels], kind="stable")}
    if config.defect_free_id is not None:
        scores, defective = defect_scores(final, config.defect_free_id), labels != config.defect_free_id
        ranked["defective"] = rows[defective][np.argsort(scores[defective], kind="stable")]
        ranked["good"] = rows[~defective][np.argsort(-scores[~defective], kind="stable")]
    ranked["surest"] = _surest(ranked["hardest" if config.defect_free_id is None else "defective"][::-1], labels)
    return ranked


def _surest(rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return rows, the surest first, with a few of each class before all others: one class may be the easiest."""
    classes, of_row = np.unique(labels[rows], return_inverse=True)
    place = np.empty(len(rows), dtype=int)  # within the class
    for index in range(len(classes)):
        place[of_row == index] = np.arange((of_row == index).sum())
    return rows[np.argsort(place >= max(1, _GALLERY_SIZE // max(1, len(classes))), kind="stable")]


def _select(labels: np.ndarray, final: np.ndarray, config: KGLConfig) -> list[tuple[str, str, np.ndarray]]:
    """Return title, which images come first, and the rows of each gallery with all tiles."""
    ranked = _ranked(labels, final, config)
    galleries = []
    if config.defect_free_id is not None:
        scores = defect_scores(final, config.defect_free_id)
        missed = ranked["defective"][scores[ranked["defective"]] < config.good_below]
        false_alarms = ranked["good"][scores[ranked["good"]] >= config.threshold]
        found = ranked["surest"][scores[ranked["surest"]] >= config.threshold]
        galleries = [
            ("Missed defects", "those with the lowest P(defect)", missed),
            ("False alarms", "those with the highest P(defect)", false_alarms),
            (_FOUND, "those with the highest P(defect), of each class", found),
        ]
    else:
        recognised = ranked["surest"][(final.argmax(axis=1) == labels)[ranked["surest"]]]
        galleries = [(_RECOGNISED, "the most probable of each class", recognised)]
    return [*galleries, ("Hardest images", "those with the lowest probability of their true class", ranked["hardest"])]


def _facts(
    row: int, thumbnail: dict[str, Any], labels: np.ndarray, final: np.ndarray, config: KGLConfig
) -> dict[str, Any]:
    """
    Return what an image is sorted, filtered and named by.

    `score` is P(defect), or the probability of the true class where no class is free of defects; `decision` is that
    of the threshold, None there.
    """
    probabilities, label = final[row], int(labels[row])
    facts = {name: thumbnail[name] for name in ("file", "label", "shape", "heat")}
    predicted = int(probabilities.argmax())
    facts["predicted_class"] = config.id2label[predicted]
    if config.defect_free_id is None:
        kind = _RIGHT if predicted == label else _OTHER_CLASS
        return facts | {"score": float(probabilities[label]), "kind": kind, "passed": False, "decision": None}
    score = float(defect_scores(probabilities[None], config.defect_free_id)[0])
    decision, is_good = config.decision(score), label == config.defect_free_id
    kind = _RIGHT
    if decision == _LOOK_AGAIN:
        kind = _LOOK_AGAIN
    elif is_good != (decision == "good"):
        kind = _FALSE_ALARM if is_good else _MISSED
    elif not is_good and predicted not in (label, config.defect_free_id):
        kind = _OTHER_CLASS
    return facts | {"score": score, "kind": kind, "passed": decision == "good", "decision": decision}


def _source(tile: dict[str, str], facts: dict[str, Any]) -> str:
    """Return a tile's image, its heat map drawn as of an image that is passed as good, or not."""
    return tile.get("src_if_passed", tile["src"]) if facts["passed"] else tile["src"]


def _as_decided(case: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    return case | {"tiles": [{"title": one["title"], "src": _source(one, facts)} for one in case["tiles"]]}


def _gallery_cases(
    test: Dataset,
    rows: np.ndarray,
    predictions: dict[str, Predictions],
    priors_of: Callable[[Dataset], np.ndarray] | None,
    config: KGLConfig,
) -> dict[str, dict[str, Any]]:
    """Return `predicted` and `tiles` of gallery images, by their row as text."""
    images, names = test.select(rows), test.features["label"].names
    shown = {model: predicted.select(rows) for model, predicted in predictions.items()}
    priors = {} if priors_of is None else {"prior, if it were a training image": priors_of(images)}
    maps = {
        **priors,
        "primary: class map": shown["primary"].class_map,
        "final: class map": shown["final"].class_map,
        _HEAT_MAP: shown["final"].saliency,
    }
    cases = {}
    for index, (row, image) in enumerate(zip(rows.tolist(), images, strict=True)):
        predicted = [
            f"{model}: {_format_prediction(of_model.probabilities[index], names, config)}"
            for model, of_model in shown.items()
        ]
        tiles = _gallery_tiles(image, {title: of_images[index] for title, of_images in maps.items()}, config)
        cases[str(row)] = {"predicted": predicted, "tiles": tiles}
    return cases


def _thumbnails(test: Dataset, rows: np.ndarray, final: Predictions, config: KGLConfig) -> dict[str, dict[str, Any]]:
    """
    Return `file`, `label`, `shape`, `heat` and `src` of images by their row as text; `src_if_passed` as of a tile.

    `heat` is the highest cell of the heat map.
    """
    images, names = test.select(rows).remove_columns("mask"), test.features["label"].names
    thumbnails = {}
    for row, image in zip(rows.tolist(), images, strict=True):
        across, down = tile_size(image["image"])
        small = (max(1, round(across * _THUMBNAIL_SCALE)), max(1, round(down * _THUMBNAIL_SCALE)))
        pixels = np.asarray(image["image"].convert("RGB").resize(small))
        heat = final.saliency[row]
        facts = {"file": image["file_name"], "label": names[image["label"]], "shape": strip_shape(image["image"])}
        thumbnails[str(row)] = facts | {"heat": float(heat.max())} | _heat_tile(pixels, heat, config)
    return thumbnails


def _gallery_tiles(image: dict[str, Any], maps: dict[str, np.ndarray], config: KGLConfig) -> list[dict[str, str]]:
    """Return `title` and `src` of the image, of each map `(h, w)` over it, and of its mask where it has one."""
    photo = image["image"].convert("RGB")
    photo = photo.resize(tile_size(photo))
    size, pixels = (photo.height, photo.width), np.asarray(photo)
    tiles = [{"title": "image", "src": jpeg_uri(pixels)}]
    for title, of_image in maps.items():
        if title == _HEAT_MAP:
            tiles.append({"title": title} | _heat_tile(pixels, of_image, config))
        else:
            overlay = overlay_heat_map(pixels, upsample_maps(of_image[None], size)[0])
            tiles.append({"title": title, "src": jpeg_uri(overlay)})
    mask = mask_to_array(image["mask"], size)
    if mask is not None:
        tiles.append({"title": "true mask", "src": jpeg_uri(mask.astype(np.uint8) * 255)})
    return tiles


def _heat_tile(pixels: np.ndarray, of_image: np.ndarray, config: KGLConfig) -> dict[str, str]:
    """
    Return `src` of the heat map `(h, w)` over an image `(H, W, 3)`, drawn from its threshold on.

    Unless the image is passed as good its highest cells are drawn at least; where that differs, `src_if_passed` is
    the tile without them.
    """
    heat = upsample_maps(of_image[None], pixels.shape[:2])[0]
    lowest = shown_from(of_image, config.heat_threshold, True, config.top_cells)
    tile = {"src": jpeg_uri(overlay_heat_map(pixels, heat, lowest))}
    if lowest < config.heat_threshold:
        tile["src_if_passed"] = jpeg_uri(overlay_heat_map(pixels, heat, config.heat_threshold))
    return tile


def _format_prediction(probabilities: np.ndarray, names: list[str], config: KGLConfig) -> str:
    text = f"{names[probabilities.argmax()]} {probabilities.max():.2f}"
    if config.defect_free_id is None:
        return text
    return f"{text}, P(defect) {defect_scores(probabilities[None], config.defect_free_id)[0]:.3g}"


__all__ = ["GALLERY_FILE", "MISTAKES", "Gallery", "kinds_of_cases", "read_galleries", "write_galleries"]
