"""Advice on a run's results, in words: which classifier to use, and how firm the threshold is."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from ..errors import format_count
from .calibration import choose_operating_point, recall_rule
from .metrics import METRIC_TITLES
from .validation_scores import ValidationScores, difference_interval


_MIN_LOSS = 0.01  # of AP, below which two classifiers count as equal
_FEW_DEFECTIVE = 20  # validation images, with fewer of which a threshold is rough
_MANY_FALSE_ALARMS = 0.2  # of the good validation images
_MIN_FALL = 0.01  # of the good validation images, by which a suggested threshold has fewer false alarms
_MIN_RECALL = 0.8  # of the validation defects, below which no threshold is suggested


def describe_loss(report: dict[str, Any]) -> str | None:
    """
    Return that the final classifier ranks the test images worse than the primary one, None if it does not.

    It is worse by .01 AP at least, of defects against good images where a class is free of them.

    Args:
        report: the content of `metrics.json`.
    """
    primary, final = (report["results"][model] for model in ("primary", "final"))
    name = _ranking_metric(report)
    paired = report["differences"].get(name)
    if paired is None or not paired["difference"] <= -_MIN_LOSS:  # NaN with images of one kind
        return None
    low, high = paired["interval"]
    return (
        f"The final classifier ranks the {format_count(report['images']['test'], 'test image')} worse than the "
        f"primary one: {METRIC_TITLES[name]} {final[name]:.3f} against {primary[name]:.3f} (difference "
        f"{paired['difference']:+.3f}, 95 % interval {low:+.3f} to {high:+.3f}"
        f"{': it may be chance' if high >= 0 else ''})."
    )


def compare_classifiers(report: dict[str, Any], scores: ValidationScores | None) -> str | None:
    """
    Return what [`describe_loss`] does, how both classifiers decide, and what to do about it.

    Which classifier to use is for the validation images where its AP on them is known: they chose the thresholds and
    nothing else, and a choice by the test images would make their figures too good. Only a clear difference on them
    advises the primary one.

    Args:
        report: the content of `metrics.json`.
        scores: of the validation images; None where they are not stored.
    """
    loss, name = describe_loss(report), _ranking_metric(report)
    if loss is None:
        return None
    interval = None if scores is None else difference_interval(scores)
    clear = report["differences"][name]["interval"][1] < 0
    choice = _choose(report, name, clear, scores is not None, interval)
    parts = [loss, _describe_decisions(report["results"]), choice]
    return " ".join(part for part in parts if part)


def _ranking_metric(report: dict[str, Any]) -> str:
    return "defect_ap" if "defect_ap" in report["results"]["final"] else "ap"


def _describe_decisions(results: dict[str, Any]) -> str:
    """Return both classifiers' defects found and false alarms on the test images, "" where they decide none."""
    texts = []
    for model in ("primary", "final"):
        counts = results[model].get("decisions_at_operating_point", results[model].get("decisions_at_half"))
        if counts is None:
            return ""
        found, alarms = (counts[kind]["called_defective"] for kind in ("defective", "good"))
        defects, good = (sum(counts[kind].values()) for kind in ("defective", "good"))
        texts.append(f"{model}/ finds {found} of {defects} defects and calls {alarms} of {good} good images defective")
    threshold = "its own threshold" if "decisions_at_operating_point" in results["final"] else "P(defect) 0.5"
    return f"Each at {threshold}, {'; '.join(texts)}."


def describe_decisions_at_half(report: dict[str, Any]) -> str | None:
    """
    Return what the final classifier misses of the test images at 0.5, None where a threshold was chosen.

    Args:
        report: the content of `metrics.json`.
    """
    counts = report["results"]["final"].get("decisions_at_half")
    if counts is None:
        return None
    missed, alarms = counts["defective"]["called_good"], counts["good"]["called_defective"]
    defects, good = (sum(counts[kind].values()) for kind in ("defective", "good"))
    return (
        f"At P(defect) 0.5 the final classifier misses {missed} of {format_count(defects, 'defect')} in "
        f"{format_count(report['images']['test'], 'held-out test image')} and calls {alarms} of {good} good ones "
        "defective."
    )


def _choose(report: dict[str, Any], name: str, clear: bool, stored: bool, interval: list[float] | None) -> str:
    """
    Return what to do, by the validation images where both classifiers' AP on them is known.

    Args:
        report: the content of `metrics.json`.
        name: of the AP.
        clear: whether the interval on the test images lies below 0.
        stored: whether the scores of the validation images are.
        interval: of the difference on the validation images, None where their scores are not stored or their groups
            are too few.
    """
    on_validation = [(report["validation"][model] or {}).get(name) for model in ("primary", "final")]
    use = "use primary/, which has no heat map"
    if not report["settings"]["model"]["fine_tune"]:
        use += ", or try --fine_tune true, which pays on some sets"
    keep = "keep final/, unless it ranks more labelled images worse too"
    if None in on_validation:
        advice = use if clear else keep
        return f"{advice[0].upper()}{advice[1:]}."
    primary, final = on_validation
    images = f"The {format_count(report['validation']['final']['images'], 'validation image')}"
    if final >= primary:
        figures = f"AP {final:.3f}, primary {primary:.3f}"
        advice = "compare both on more labelled images before you choose" if clear else "keep final/"
        return f"{images} rank final no worse: {figures}; {advice}."
    figures = f"AP of final {final:.3f}, of primary {primary:.3f}"
    if not stored:
        return f"{images} give {figures}: {keep}."
    if interval is None:
        return f"{images} are of too few independent groups to tell ({figures}): {keep}."
    figures += f", 95 % interval of the difference {interval[0]:+.3f} to {interval[1]:+.3f}"
    if interval[1] < 0:
        return f"{images} rank final worse too ({figures}): {use}."
    return f"{images} are too few to tell ({figures}): {keep}."


def describe_threshold(point: dict[str, Any], run: str, scores: ValidationScores | None) -> str | None:
    """
    Return how firm a threshold is and what would help, None where it neither rests on few images nor alarms often.

    A threshold that finds k of n independent validation defects is to be expected to find `k / (n + 1)` of further
    ones. Near-duplicates and images of one part count once, as found where all of them are.

    Args:
        point: the operating point of a model's config.
        run: the run's folder, for the command that helps.
        scores: of the validation images, for what the command would change; None where they are not stored.
    """
    alarms, independent = point["false_alarm_rate"], _independent_defects(point, scores)
    few = independent.count < _FEW_DEFECTIVE
    if not few and alarms <= _MANY_FALSE_ALARMS:
        return None
    sentence = f"The threshold rests on {'only ' if few else ''}{independent.images}"
    if few:
        expected = f"{independent.found} of {independent.count + 1} further defects on average"
        sentence += f": a threshold from so few finds {expected}"
        if independent.found_with_look_again is not None:
            sentence += f" ({independent.found_with_look_again} with those to be looked at again)"
    sentence += f"{', and this one' if few else ': it'} calls "
    if point["marks_all_good"]:
        sentence += f"all {point['good']} good validation images defective, so it does not sort"
    else:
        sentence += f"{_percent(alarms)} of the {point['good']} good validation images defective"
    helps = ["more defective validation images (label more, or --validation_share)"] if few else []
    band = None if scores is None else _suggest_band(point, run, scores)
    if band is not None:
        helps.append(band)
    return f"{sentence}. What helps: {'; '.join(helps)}." if helps else f"{sentence}."


def missing_threshold(report: dict[str, Any]) -> str | None:
    """
    Return why a run has no decision threshold, and how one is got; None where it has one.

    Args:
        report: the content of `metrics.json`.
    """
    validation = report["validation"]["final"]
    if validation is not None and validation["operating_point"] is not None:
        return None
    if report["settings"]["data"]["defect_free_label"] is None:
        return (
            "No threshold was chosen: no class is named as free of defects. If one is, train again with "
            "--defect_free_label and another --output_dir."
        )
    if validation is None:
        return (
            "No threshold was chosen, so 0.5 is used: there are no validation images. Train again with "
            "--validation_share above 0 (default: 0.2), two or more independent images of each class, and another "
            "--output_dir."
        )
    return (
        "No threshold was chosen, so 0.5 is used: the validation images are all good or all defective. Give more "
        "images of the other kind, of different groups, and train again with another --output_dir."
    )


@dataclass(frozen=True)
class _Defects:
    """Defective validation images in words, and how many independent ones there are and are found."""

    images: str
    count: int
    found: int
    found_with_look_again: int | None


def _independent_defects(point: dict[str, Any], scores: ValidationScores | None) -> _Defects:
    defective, again = point["defective"], point.get("look_again_recall")
    images = format_count(defective, "defective validation image")
    groups = 0 if scores is None or scores.groups is None else len(np.unique(scores.groups[scores.defective]))
    if groups in (0, defective):
        of_band = None if again is None else round(again * defective)
        return _Defects(images, defective, round(point["recall"] * defective), of_band)
    lowest = pd.Series(scores.final[scores.defective]).groupby(scores.groups[scores.defective]).min()
    edges = (point["threshold"], point.get("look_again_threshold"))
    found, of_band = (None if edge is None else int((lowest >= edge).sum()) for edge in edges)
    images += ", near-duplicates of each other or of one group" if groups == 1 else f" of {groups} independent groups"
    return _Defects(images, groups, found, of_band)


def _suggest_band(point: dict[str, Any], run: str, scores: ValidationScores) -> str | None:
    """
    Return the command for a higher threshold above a band to look at again, with its figures.

    It is the first lower recall at which false alarms on the validation images fall by .01 of the good ones: .8 at
    least, or a single defect fewer. None where there is no such recall, or where the user has chosen the rule of the
    threshold already. The band's lower end misses no validation defect, as the threshold before.
    """
    if point["chosen"] != recall_rule(1):
        return None
    defective, alarms, tried = point["defective"], point["false_alarm_rate"], 1.0
    for fewer in range(1, defective):
        recall = int(100 * (defective - fewer) / defective + 1e-9) / 100
        if recall <= 0 or (recall < _MIN_RECALL and fewer > 1):
            break
        if recall == tried:  # more than 100 defects: several round to the same hundredth
            continue
        tried = recall
        other = choose_operating_point(scores.final, scores.defective, recall, None, 1.0)
        if alarms - other["false_alarm_rate"] >= _MIN_FALL - 1e-9:
            before, after, found = map(_percent, (alarms, other["false_alarm_rate"], other["recall"]))
            good, bad = map(_percent, (alarms - other["false_alarm_rate"], 1 - other["recall"]))
            return (
                f"`kgl threshold {shlex.quote(run)} --wanted_recall {recall:g} --look_again_recall 1`, without "
                f"training: on the validation images false alarms fall from {before} to {after} and defects "
                f"found from 100 % to {found}; {good} of the good and {bad} of the defective ones are to be looked at "
                "again, and none is missed"
            )
    return None


def _percent(share: float) -> str:
    """Return a share in whole percent, halves rounded up: of 4.5 % and 3.5 % Python's rounding makes 4 % twice."""
    return f"{int(100 * share + 0.5 + 1e-9)} %"


__all__ = [
    "compare_classifiers",
    "describe_loss",
    "describe_decisions_at_half",
    "describe_threshold",
    "missing_threshold",
]
