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


@pytest.mark.parametrize(("groups", "share", "images"), [(40, 0.17, 20), (150, 0.05, 100), (512, 0.068, 30)])
def test_improbable_counts_are_those_of_a_simulation(groups, share, images):
    """All shares are alike before, and those that gave as many as were counted remain."""
    generator, outside = np.random.default_rng(0), round(share * groups)
    shares = generator.random(2_000_000)
    shares = shares[generator.binomial(groups, shares) == outside]
    counts = generator.binomial(images, np.tile(shares, 20))
    training_range = {"groups": groups, "expected_share": outside / groups}
    improbable = [count for count in range(images + 1) if counted(images, count, training_range).is_improbable()]
    assert improbable and improbable == list(range(improbable[0], images + 1))
    assert (counts >= improbable[0]).mean() < 1.2 * LEVEL < 1.5 * (counts >= improbable[0] - 1).mean()


def test_few_groups_of_training_images_explain_much():
    many, few = ({"groups": groups, "expected_share": 0.3} for groups in (100, 5))
    assert counted(20, 14, many).is_improbable() and not counted(20, 14, few).is_improbable()
    assert not counted(20, 20, {"groups": 1, "expected_share": 0.3}).is_improbable()
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
