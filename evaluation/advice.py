"""Advice on a run's results, in words: which classifier to use, and how firm the threshold is."""

from __future__ import annotations

from typing import Any

from ..errors import format_count
from .metrics import METRIC_TITLES


_MIN_LOSS = 0.01  # of AP, below which two classifiers count as equal
_FEW_DEFECTIVE = 20  # validation images, with fewer of which a threshold is rough
_MANY_FALSE_ALARMS = 0.2  # of the good validation images


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


def compare_classifiers(report: dict[str, Any]) -> str | None:
    """
    Return what [`describe_loss`] does and what to do about it.

    Which classifier to use is for the validation images where its AP on them is known: they chose the thresholds and
    nothing else, and a choice by the test images would make their figures too good.
    """
    loss, name = describe_loss(report), _ranking_metric(report)
    if loss is None:
        return None
    return f"{loss} {_choose(report, name, clear=report['differences'][name]['interval'][1] < 0)}"


def _ranking_metric(report: dict[str, Any]) -> str:
    return "defect_ap" if "defect_ap" in report["results"]["final"] else "ap"


def _choose(report: dict[str, Any], name: str, clear: bool) -> str:
    """Return what to do, by the validation images where both classifiers' AP on them is known."""
    on_validation = [(report["validation"][model] or {}).get(name) for model in ("primary", "final")]
    use = "use primary/, which has no heat map"
    if not report["settings"]["model"]["fine_tune"]:
        use += ", or try --fine_tune true, which pays on some sets"
    compare = "compare both on more labelled images before you choose"
    if None in on_validation:
        return f"{use[0].upper()}{use[1:]}." if clear else f"{compare[0].upper()}{compare[1:]}."
    primary, final = on_validation
    images = format_count(report["validation"]["final"]["images"], "validation image")
    figures = f"{final:.3f} against {primary:.3f}"
    if final < primary:
        return f"The {images}, which should decide, rank it worse too ({figures}): {use}."
    return f"The {images}, which should decide, do not ({figures}): {compare if clear else 'keep final/'}."


def describe_threshold(point: dict[str, Any], run: str) -> str | None:
    """
    Return how firm a threshold is and what would help, None where it neither rests on few images nor alarms often.

    A threshold that finds k of n validation defects is to be expected to find `k / (n + 1)` of further ones.

    Args:
        point: the operating point of a model's config.
        run: the run's folder, for the command that helps.
    """
    defective, recall, alarms = point["defective"], point["recall"], point["false_alarm_rate"]
    few = defective < _FEW_DEFECTIVE
    if not few and alarms <= _MANY_FALSE_ALARMS:
        return None
    found = round(recall * defective)
    images = f"{'only ' if few else ''}{format_count(defective, 'defective validation image')}"
    sentence = f"The threshold rests on {images}"
    if few:
        sentence += f": a threshold from so few finds {found} of {defective + 1} further defects on average"
    sentence += f"{', and this one' if few else ': it'} calls "
    if point["marks_all_good"]:
        sentence += f"all {point['good']} good validation images defective, so it does not sort"
    else:
        sentence += f"{100 * alarms:.0f} % of the {point['good']} good validation images defective"
    helps = ["more defective validation images (label more, or --validation_share)"] if few else []
    lower = int(100 * (found - 1) / defective + 1e-9) / 100  # the next recall below, for fewer alarms
    if alarms > 0 and lower > 0:
        helps.append(
            f"`kgl threshold {run} --wanted_recall {lower:g}`, for fewer false alarms and more missed defects, "
            "without training"
        )
    return f"{sentence}. What helps: {'; '.join(helps)}." if helps else f"{sentence}."


__all__ = ["compare_classifiers", "describe_loss", "describe_threshold"]
