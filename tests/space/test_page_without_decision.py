"""The page in a browser, for a model without a defect-free class, in a folder as a Space has it."""

import shutil

from browser import chromium
from space_page import Page
from space_server import ROOT, encode, noise, save_model, served, write


def test_space_of_a_model_without_defect_free_class(tmp_path):
    space = tmp_path / "space"
    shutil.copytree(ROOT / "space", space, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "examples", space / "examples")
    model = save_model(tmp_path / "model", defect_free_label=None)
    image = write(tmp_path, "part.png", encode(noise()))
    variables = {"KGL_MODEL": str(model), "KGL_TRUST_REMOTE_CODE": "1", "GRADIO_ROOT_PATH": "/x"}
    with served(tmp_path, folder=space, **variables) as (address, _), chromium(1200, 900) as driver:
        page = Page(driver, address, "/x/")
        page.upload(image)
        page.until(lambda: page.all(".card"))
        assert page.texts(".line")[0].startswith("Most probable class: ")
        for absent in (".decision", ".meter", "#threshold", "#confusion", "#labelled"):
            assert not page.all(absent)
        page.check(tmp_path)
