"""How many images look unlike the training ones, and whether that is more than chance."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from scipy.stats import betabinom


LEVEL = 0.001  # probability below which a number of images is called improbable
LEVEL_OF_WATCH = 1e-5  # the same for a window that is looked at again with every image
WINDOW, MIN_WINDOW = 50, 20  # latest decisions


@dataclass(frozen=True)
class UnlikeImages:
    """
    Images that look unlike the training ones.

    Attributes:
        images: how many images were looked at.
        unlike: how many of them look unlike.
        by_word: how many for each word of the pipeline's `unlike_training`, the most frequent first.
        training_range: of the model's config.
    """

    images: int
    unlike: int
    by_word: dict[str, int]
    training_range: dict[str, Any]

    @classmethod
    def of(cls, answers: Iterable[str], training_range: dict[str, Any]) -> UnlikeImages:
        """Count the answers of images, each the words of `unlike_training` joined with `"; "`."""
        answers = list(answers)
        words = Counter(word for answer in answers if answer for word in answer.split("; "))
        return cls(len(answers), sum(map(bool, answers)), dict(words.most_common()), training_range)

    def is_improbable(self, level: float = LEVEL) -> bool:
        """
        Return whether chance alone gives so many with a probability below `level`.

        How many of the training images pass the limits of the others tells the share to expect, as uncertain as one
        that was counted on so many groups: their number is beta-binomial, from a uniform prior of the share.
        """
        groups, share = self.training_range["groups"], self.training_range["expected_share"]
        counted = (1 + share * groups, 1 + (1 - share) * groups)
        return bool(betabinom.sf(self.unlike - 1, self.images, *counted) < level)

    def sentence(self, latest: bool = False) -> str:
        """Return the counts in words; `latest`: of the last images alone."""
        words = ", ".join(f"{word} {count}" for word, count in self.by_word.items())
        images = f"the last {self.images}" if latest else str(self.images)
        return (
            f"{self.unlike} of {images} images ({100 * self.unlike / self.images:.0f} %) look unlike the training "
            f"images: {words}. About {100 * self.training_range['expected_share']:.0f} % would by chance."
        )


class RecentImages:
    """
    The latest decisions of a watch, at most [`WINDOW`].

    Args:
        training_range: of the model's config.
    """

    def __init__(self, training_range: dict[str, Any]) -> None:
        self._range, self._answers, self._warned = training_range, deque(maxlen=WINDOW), False

    def add(self, answer: str) -> str | None:
        """Add an image's answer; return a warning the first time that too many are unlike, else None."""
        self._answers.append(answer)
        if self._warned or len(self._answers) < MIN_WINDOW or not answer:
            return None
        found = UnlikeImages.of(self._answers, self._range)
        self._warned = found.is_improbable(LEVEL_OF_WATCH)
        return found.sentence(latest=True) if self._warned else None


__all__ = ["LEVEL", "MIN_WINDOW", "WINDOW", "RecentImages", "UnlikeImages"]
