"""How many images look unlike the training ones: counts, words, and what chance explains."""

import numpy as np
import pytest

from kgl.evaluation.unlike_images import LEVEL, MIN_WINDOW, WINDOW, RecentImages, UnlikeImages


RANGE = {"groups": 150, "expected_share": 0.12}
ANSWERS = ["darker; other features"] * 12 + ["darker"] * 24 + ["other size"] * 2 + [""] * 2


def counted(images: int, unlike: int, training_range: dict = RANGE) -> UnlikeImages:
    return UnlikeImages.of(["darker"] * unlike + [""] * (images - unlike), training_range)


def test_sentence_names_share_words_and_chance():
    found = UnlikeImages.of(ANSWERS, RANGE)
    assert (found.images, found.unlike, found.by_word) == (
        40,
        38,
        {"darker": 36, "other features": 12, "other size": 2},
    )
    assert found.sentence() == (
        "38 of 40 images (95 %) look unlike the training images: darker 36, other features 12, other size 2. "
        "About 12 % would by chance."
    )
    assert found.sentence(latest=True).startswith("38 of the last 40 images (95 %)")


@pytest.mark.parametrize(
    ("training_range", "images"),
    [({"groups": 40, "expected_share": 7 / 41}, 20), ({"groups": 150, "expected_share": 7 / 151}, 100),
     ({"groups": 512, "expected_share": 0.068}, 30)],
)  # fmt: skip
def test_improbable_counts_are_those_of_a_simulation(training_range, images):
    """The share beyond limits chosen by N images varies from one training set to another, as a beta variable does."""
    number = training_range["groups"]
    beyond = round(training_range["expected_share"] * (number + 1))
    generator = np.random.default_rng(0)
    shares = generator.beta(beyond, number + 1 - beyond, 400_000)
    counts = generator.binomial(images, shares)
    improbable = [count for count in range(images + 1) if counted(images, count, training_range).is_improbable()]
    assert improbable and improbable == list(range(improbable[0], images + 1))
    assert (counts >= improbable[0]).mean() < 1.5 * LEVEL < 8 * (counts >= improbable[0] - 1).mean()


def test_nothing_is_improbable_with_hardly_any_training_images():
    assert not counted(1000, 1000, {"groups": 3, "expected_share": 1.0}).is_improbable()
    assert not counted(30, 0).is_improbable()


def test_watch_warns_once_and_only_of_the_latest_images():
    recent = RecentImages(RANGE)
    assert [recent.add("darker") for _ in range(MIN_WINDOW - 1)] == [None] * (MIN_WINDOW - 1)
    assert recent.add("darker").startswith(f"{MIN_WINDOW} of the last {MIN_WINDOW} images (100 %)")
    assert [recent.add("darker") for _ in range(200)] == [None] * 200
    recent = RecentImages(RANGE)
    assert [recent.add("") for _ in range(5000)] == [None] * 5000
    warnings = [recent.add("brighter") for _ in range(WINDOW)]
    (warning,) = [one for one in warnings if one is not None]
    assert f" of the last {WINDOW} images" in warning and "brighter " in warning
