"""Debian's Chromium without a screen; tests skip where it is not installed."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest


@contextmanager
def chromium(width: int = 1200, height: int = 900) -> Iterator[object]:
    """A browser window; what pages log is kept."""
    if shutil.which("chromium") is None or shutil.which("chromedriver") is None:
        pytest.skip("needs Debian's chromium and chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver")
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    for flag in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars",
        "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage",
        f"--window-size={width},{height}",
    ):  # fmt: skip
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def loaded_images(driver: object) -> tuple[int, int]:
    """Return the number of images on a page, and of those that show something."""
    driver.execute_async_script(
        "const done = arguments[0]; Promise.all([...document.images].map(i => i.decode().catch(() => 0))).then(done)"
    )
    widths = driver.execute_script("return [...document.images].map(i => i.naturalWidth)")
    return len(widths), sum(width > 0 for width in widths)
