"""The app as users see it: one server and one browser per module."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from browser import chromium
from space_page import Page
from space_server import LOOK_AGAIN, TABLE, THRESHOLD, save_model, served


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path, Path]]:
    """Address, folder and log of the app with a tiny model and a labelled set."""
    tmp = tmp_path_factory.mktemp("served")
    point = {"threshold": THRESHOLD, "chosen": "for <i>tests", "recall": 0.9, "false_alarm_rate": 0.1}
    point |= {"defective": 10, "good": 20, "look_again_threshold": LOOK_AGAIN}
    save_model(tmp / "model", operating_point=point)
    (tmp / "labelled.csv").write_text(TABLE)
    flags = ("--model", str(tmp / "model"), "--trust_remote_code")
    with served(tmp, *flags, KGL_LABELLED=str(tmp / "labelled.csv")) as (address, log):
        yield address, tmp, log


@pytest.fixture(scope="module")
def browser(server: tuple[str, Path, Path]) -> Iterator[object]:
    with chromium(1200, 900) as driver:
        yield driver


@pytest.fixture
def page(browser: object, server: tuple[str, Path, Path]) -> Page:
    return Page(browser, server[0])
