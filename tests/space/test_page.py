"""The page in a browser."""

import numpy as np
import pytest
from PIL import Image
from space_server import LOOK_AGAIN, ROOT, THRESHOLD, encode, make_png, noise, stored_names, write

import quotas


MARKUP = "&lt;i&gt;'&amp;"  # Gradio removes the rest from a file's name


@pytest.fixture
def narrow(page):
    page.driver.set_window_size(400, 800)
    yield page
    page.driver.set_window_size(1200, 900)


def upload_noise(page, folder):
    """Upload three images and return their scores."""
    page.upload(*(write(folder, f"part_{index}.png", encode(noise(300, 200, index))) for index in range(3)))
    page.until(lambda: len(page.all(".card")) == 3)
    return [float(card.get_attribute("data-score")) for card in page.all(".card")]


def decisions(scores, threshold):
    below = ["? Look again" if score >= LOOK_AGAIN else "✓ Good" for score in scores]
    return ["✕ Defective" if score >= threshold else word for score, word in zip(scores, below, strict=True)]


def test_uploaded_images_are_classified(page, server, tmp_path):
    driver, scores = page.driver, upload_noise(page, tmp_path)
    assert page.texts(".card h3") == ["part_0.png", "part_1.png", "part_2.png"]
    assert len(set(scores)) == 3
    assert page.texts(".card .decision") == decisions(scores, THRESHOLD)
    assert all(f"{score:.3f}" in text for score, text in zip(scores, page.texts(".card"), strict=True))
    shown = "return [...document.querySelectorAll('.overlay img')].map(one => one.naturalWidth * one.clientWidth > 0)"
    assert driver.execute_script(shown) == [True] * 6
    over = "return ['.image', '.heat'].map(one => JSON.stringify(document.querySelector(one).getBoundingClientRect()))"
    assert len(set(driver.execute_script(over))) == 1
    driver.save_screenshot(str(tmp_path / "page.png"))
    assert np.asarray(Image.open(tmp_path / "page.png").convert("L")).std() > 10
    stored = [name for name in stored_names(server[1]) if "." in name]
    assert stored == ["part_0.png", "part_1.png", "part_2.png"]
    page.check(server[1])


def test_strips_are_large_enough(page, server, tmp_path):
    sizes = [(1600, 256), (400, 64), (4000, 64), (64, 400), (300, 200)]
    names = [f"{width}_{height}.png" for width, height in sizes]
    page.upload(*(write(tmp_path, name, encode(noise(*size, 0))) for name, size in zip(names, sizes, strict=True)))
    page.until(lambda: len(page.all(".card")) == len(sizes))
    script = "return [...document.querySelectorAll('.overlay')].map(one => [one.clientWidth, one.clientHeight])"
    for name, (width, height) in zip(page.texts(".card h3"), page.driver.execute_script(script), strict=True):
        assert min(width, height) >= 50 and max(width, height) >= 250, (name, width, height)
    page.driver.save_screenshot(str(tmp_path / "page.png"))
    page.check(server[1])


def test_opacity_slider(page, server, tmp_path):
    upload_noise(page, tmp_path)
    assert page.opacity() == pytest.approx(0.6)
    page.slide("#heat", 0.25)
    page.until(lambda: page.opacity() == pytest.approx(0.25))
    page.check(server[1])


def test_threshold_slider(page, server, tmp_path):
    driver, scores = page.driver, upload_noise(page, tmp_path)
    assert page.counts() == [2, 1, 1, 1]  # at the exact stored threshold
    assert "for <i>tests. On those images (10 defective, 20 good)" in page.texts("body")[0]
    between = sorted(scores)[1] + 1e-4
    for threshold, counts in ((round(between, 3), None), (0.95, [0, 3, 0, 2]), (0.2, [3, 0, 1, 1])):
        page.slide("#threshold", threshold)
        expected = decisions(scores, threshold)
        page.until(lambda: page.texts(".card .decision") == expected)  # noqa: B023
        boxed = "return [...document.querySelectorAll('.boxes')].map(one => getComputedStyle(one).display != 'none')"
        assert driver.execute_script(boxed) == [
            score >= min(threshold, LOOK_AGAIN) for score in scores
        ]  # none if good
        if counts is not None:
            page.until(lambda: page.counts() == counts)  # noqa: B023
    page.slide("#threshold", round(THRESHOLD, 3))
    page.until(lambda: page.counts() == [2, 1, 1, 1])
    line = "return Number(getComputedStyle(document.documentElement).getPropertyValue('--threshold'))"
    assert driver.execute_script(line) == THRESHOLD
    page.check(server[1])


def test_narrow_window_needs_no_sideways_scrolling(narrow, server, tmp_path):
    upload_noise(narrow, tmp_path)
    wide, window = narrow.driver.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= window
    narrow.check(server[1])


def test_examples(page, server):
    names = page.texts(".examples button")
    assert names == sorted(path.stem for path in (ROOT / "examples").iterdir())
    page.all(".examples button")[-1].click()
    page.until(lambda: page.texts(".card h3") == [f"{names[-1]}.png"])
    page.check(server[1])


def test_labelled_set_is_replaced(page, server, tmp_path):
    table = b"label,defect_score\ngood,0.9\nscratch,0.9\n"
    page.upload(write(tmp_path, f"{MARKUP}.csv", table), to="#labelled")
    page.until(lambda: page.counts() == [1, 0, 1, 0])
    assert f"{MARKUP}.csv: 2 images" in page.texts("#confusion")[0]
    page.upload(write(tmp_path, "other.csv", b"label\ngood\n"), to="#labelled")
    page.until(lambda: page.all("#confusion .problem"))
    assert page.texts("#confusion .problem")[0].startswith("other.csv cannot be used: it has neither column")
    assert page.counts() == [1, 0, 1, 0]  # of the set before
    page.slide("#threshold", 0.95)
    page.until(lambda: page.counts() == [0, 1, 0, 1])
    page.check(server[1])


def test_unusable_images_are_named_and_the_rest_is_classified(page, server, tmp_path):
    page.upload(
        write(tmp_path, f"{MARKUP}0.png", b"broken"),
        write(tmp_path, "huge.png", make_png(30_000, 30_000)),
        write(tmp_path, "deep.png", encode(Image.fromarray(np.zeros((16, 16), dtype=np.uint16)))),
        write(tmp_path, f"{MARKUP}.png", encode(noise())),
    )
    page.until(lambda: page.all(".card"))
    assert page.texts("#results .problem") == [
        f"{MARKUP}0.png was left out: the file is not a readable image. Use one of PNG, JPEG, BMP, TIFF, WEBP.",
        "huge.png was left out: the image has more than 50 million pixels. Resize or crop it.",
        "deep.png was left out: the image has more than 8 bits per channel. Convert it to 8 bits.",
    ]
    assert page.texts(".card h3") == [f"{MARKUP}.png"]
    assert page.all(".card .image")[0].get_attribute("alt") == f"{MARKUP}.png"
    page.check(server[1])


def test_too_large_and_too_many_files(page, server, tmp_path):
    page.upload(write(tmp_path, "large.png", bytes(quotas.MAX_FILE_BYTES + 1)))
    page.until(lambda: "maximum allowed size" in page.texts("body")[0])
    assert not page.all(".card")
    count = quotas.MAX_IMAGES_PER_REQUEST + 1
    page.upload(*(write(tmp_path, f"{index}.png", encode(noise(8, 8))) for index in range(count)))
    page.until(lambda: page.texts("#results .problem") == ["33 images: upload at most 32 at once."])
    page.check(server[1])


def test_images_per_minute_are_limited(page, server, tmp_path):
    """Keep this last: no image is admitted for a minute afterwards."""
    for turn in range(quotas.MAX_IMAGES_PER_MINUTE // quotas.MAX_IMAGES_PER_REQUEST + 1):
        names = [f"{turn}_{index}.png" for index in range(quotas.MAX_IMAGES_PER_REQUEST)]
        page.upload(*(write(tmp_path, name, encode(noise(8, 8))) for name in names))
        page.until(lambda: page.texts("h3") == names or page.texts("#results .problem"))  # noqa: B023
        if page.texts("#results .problem"):
            break
    assert page.texts("#results .problem") == ["Too many images: at most 96 per minute. Wait a minute and try again."]
    page.check(server[1])
