"""The page of `kgl audit` with strips in a browser."""

import numpy as np
import pandas as pd
import pytest
from browser import chromium, loaded_images

from kgl.data.schema import defect_dataset
from kgl.labelling.audit import Suspect
from kgl.labelling.audit_page import write_page


SIZES = [(64, 400), (256, 1600), (1600, 256), (20, 1600), (1600, 20), (200, 240)]  # height, width


@pytest.fixture
def page(tmp_path):
    """A page with a suspect of each size, beside four images of that size."""
    sizes = [size for size in SIZES for _ in range(5)]
    labels = ["good", "good", "good", "\u5212\u75d5", "\u5212\u75d5"] * len(SIZES)
    images = defect_dataset(
        images=[np.full(size, 99, dtype=np.uint8) for size in sizes], labels=labels, names=sorted(set(labels)),
        file_names=[f"{height} x {width}, {index}.png" for index, (height, width) in enumerate(sizes)],
    )  # fmt: skip
    suspects = [Suspect(row, 0.1, 1, ["classifier"], ["why"]) for row in range(0, len(sizes), 5)]
    table = pd.DataFrame(
        {
            "rank": rank, "file": images[one.row]["file_name"], "label": "good", "suggested_label": labels[-1],
            "trust": 0.1, "reason": "why",
        }
        for rank, one in enumerate(suspects, 1)
    )  # fmt: skip
    pooled = np.repeat(np.arange(len(SIZES)), 5)[:, None].astype(float)
    write_page(tmp_path / "audit.html", images, suspects, table, pooled, "strips")
    return tmp_path / "audit.html"


def test_strips_are_large_enough_on_a_screen_and_on_a_phone(page):
    script = "return [...document.images].map(i => [i.naturalWidth, i.naturalHeight, i.clientWidth, i.clientHeight])"
    with chromium(1200, 900) as driver:
        for width in (1200, 360):
            window = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", window)
            driver.get(page.as_uri())
            assert loaded_images(driver) == (5 * len(SIZES), 5 * len(SIZES))
            assert driver.execute_script("return document.documentElement.scrollWidth") <= width
            for across, down, *shown in driver.execute_script(script):
                ratio = max(across, down) / min(across, down)
                assert min(shown) >= (30 if ratio > 20 else 50) and max(shown) >= (150 if ratio < 2 else 320)
                if ratio < 20:
                    assert shown[0] / shown[1] == pytest.approx(across / down, rel=0.05)
