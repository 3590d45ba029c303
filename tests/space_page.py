"""The Space's page in a browser."""

import time
from collections.abc import Callable
from pathlib import Path

from space_server import ROOT


STREAM_ENDED = "Method not implemented."  # Gradio 6's client logs it whenever a stream of events ends


class Page:
    """The page, freshly loaded."""

    def __init__(self, driver: object, address: str, path: str = "/") -> None:
        self.driver, self.address = driver, address
        driver.get(address + path)
        self.until(lambda: self.all(".examples button") and self.all("#results p"))

    def all(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        """Read all texts at once, since the page may replace elements meanwhile."""
        script = "return [...document.querySelectorAll(arguments[0])].map(one => one.innerText.trim())"
        return self.driver.execute_script(script, selector)

    def until(self, condition: Callable[[], object], seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.texts("body")[0]
            time.sleep(0.05)

    def upload(self, *paths: Path, to: str = "#images") -> None:
        self.driver.find_element("css selector", f"{to} input[type=file]").send_keys("\n".join(map(str, paths)))

    def slide(self, selector: str, value: float) -> None:
        self.driver.execute_script(
            "const [slider, value] = arguments; slider.value = value;"
            "slider.dispatchEvent(new Event('input', {bubbles: true}))",
            self.all(f"{selector} input[type=range]")[0], value,
        )  # fmt: skip

    def opacity(self) -> float:
        return float(self.driver.execute_script("return getComputedStyle(document.querySelector('.heat')).opacity"))

    def counts(self) -> list[int]:
        return [int(text) for text in self.texts(".confusion td b")]

    def check(self, tmp: Path) -> None:
        """Check that nothing came from elsewhere, nothing is in the console, and no path is shown."""
        names = "return performance.getEntriesByType('resource').map(entry => entry.name)"
        loaded = self.driver.execute_script(names)
        assert loaded and [one for one in loaded if not one.startswith((self.address, "data:"))] == []
        logged = [line["message"] for line in self.driver.get_log("browser")]
        assert [line for line in logged if STREAM_ENDED not in line] == []
        source = self.driver.page_source
        assert str(tmp) not in source and str(ROOT) not in source and "Traceback" not in source
