"""Requests to the Space's app in the soak: whether each was answered rightly, and what the limits did."""

from __future__ import annotations

import html
import re
from collections import Counter
from dataclasses import dataclass
from typing import Any

import numpy as np


# The limits that docs/space.md states.
MAX_IMAGES, MAX_UPLOADS, MAX_AT_ONCE, MAX_QUEUED, MAX_FILE_BYTES = 96, 60, 32, 32, 20_000_000
SECONDS = 60.0  # of the rate limits
QUEUE_FULL = "Queue is full"
_CARD = re.compile(
    r'<article class="card[^"]*" data-score="([^"]+)".*?<h3>(.*?)</h3>.*?Most probable class: <b>(.*?)</b>', re.DOTALL
)
_PROBLEM = re.compile(r'<p class="problem" role="alert"><b>(.*?)</b> (.*?)</p>')


@dataclass(frozen=True)
class Upload:
    """An image file and its answer: class and P(defect), or a part of the sentence that leaves it out."""

    suffix: str
    content: bytes
    label: str = ""
    score: float = float("nan")
    problem: str = ""


@dataclass
class Request:
    """A request, when it was sent and answered, and what came of it."""

    kind: str
    address: str
    units: int
    sent: float
    answered: float = 0.0
    outcome: str = "lost"  # or answered, refused, queue full, left, wrong
    note: str = ""
    queued: bool = False  # or refused by the queue


def judge(page: str, sent: dict[str, Upload]) -> str:
    """Return what is wrong with the results of images on the page; empty where all are right."""
    cards = {html.unescape(name): (label, float(score)) for score, name, label in _CARD.findall(page)}
    problems = dict(_PROBLEM.findall(page))
    if cards.keys() | problems.keys() != sent.keys() or len(cards) + len(problems) != len(sent):
        return f"{sorted(sent)} were answered by {sorted([*cards, *problems])}"
    for name, upload in sent.items():
        if upload.problem:
            if upload.problem not in problems.get(name, ""):
                return f"{name}: {problems.get(name)!r} instead of {upload.problem!r}"
        elif name not in cards or cards[name][0] != upload.label or abs(cards[name][1] - upload.score) > 1e-6:
            return f"{name}: {cards.get(name)} instead of {(upload.label, upload.score)}"
    return ""


def check_limit(requests: list[Request], most: int) -> dict[str, int]:
    """
    Return how often requests of a client were admitted above a rate limit, or refused below it, as far as is certain.

    The moment of a decision is only known to lie between a request and its answer. `above` counts admitted requests
    that begin a minute in which more than `most` units were certainly admitted, `below` refusals before whose moment
    there was certainly room.
    """
    admitted = [one for one in requests if one.outcome in ("answered", "wrong")]
    sent, answered, units = (np.array([getattr(one, of) for one in admitted]) for of in ("sent", "answered", "units"))
    above = sum(units[(sent >= start) & (answered < start + SECONDS)].sum() > most for start in sent)
    below = sum(
        units[(answered > one.sent - SECONDS) & (sent < one.answered)].sum() + one.units <= most
        for one in requests
        if one.outcome == "refused"
    )
    return {"above": int(above), "below": int(below)}


def check_queue(requests: list[Request], most: int) -> int:
    """
    Return how many requests were refused for a full queue when certainly fewer than `most` others waited.

    A client that left before the answer may have waited for a minute, images are classified in less; a request without
    an answer, to the end.
    """
    queued = [one for one in requests if one.queued and one.outcome != "queue full"]
    joined = np.array([one.sent for one in queued])
    without = {"left": SECONDS, "lost": np.inf}
    answered = np.array([one.answered or one.sent + without[one.outcome] for one in queued])
    return sum(
        int(((joined < one.answered) & (answered > one.sent)).sum()) < most
        for one in requests
        if one.outcome == "queue full"
    )


def count_requests(requests: list[Request]) -> dict[str, Any]:
    """Return the outcomes of every kind of request, what the limits did, and notes of what was not right."""
    kinds: dict[str, Counter[str]] = {}
    for one in requests:
        kinds.setdefault(one.kind, Counter())[one.outcome] += 1
    limits = {
        name: check_limit([one for one in requests if one.kind == name], most)
        for name, most in (("images above the rate", MAX_IMAGES), ("uploads above the rate", MAX_UPLOADS))
    }
    queue = check_queue(requests, MAX_QUEUED)
    notes = [f"{one.kind}: {one.note}" for one in requests if one.outcome in ("lost", "wrong")]
    return {"kinds": {kind: dict(counts) for kind, counts in kinds.items()}, "limits": limits,
            "refused_with_room": queue, "notes": notes[:20]}  # fmt: skip
