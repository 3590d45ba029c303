"""The page: its parts here, the whole of it in the environment of a Space, which has no kgl, and in a browser."""

import argparse
import asyncio
import base64
import io
import json
import os
import re
import secrets
import shutil
import socket
import struct
import subprocess
import time
import urllib.error
import urllib.request
import zlib
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from browser import chromium
from PIL import Image
from tiny import tiny_model
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from kgl import app


ROOT = Path(__file__).resolve().parents[2]
SPACE_PYTHON = ROOT / ".venv-space" / "bin" / "python"
THRESHOLD = 0.43215  # not on the slider's steps
EVIL = "<img src=x onerror=alert(1)>.png"
EVIL_FILE = "&lt;i&gt;'&amp;"  # Gradio takes the rest out of a file's name
CLASSES = ["good", "scratch", "<b>pit"]
LABELLED = """file_name,label,guided: P(defect)
a.png,good,0.1
b.png,good,0.6
c.png,scratch,0.3
d.png,scratch,0.9
e.png,<b>pit,0.5
"""
GRADIO_S_OWN = "Method not implemented."  # what Gradio 6's client logs whenever a stream of events ends


def png(width: int, height: int, bits: int = 8, colours: int = 2, pixels: bytes = b"") -> bytes:
    """A PNG by hand: of any size in its header, and of 16 bits a channel, which Pillow writes in grey only."""
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def saved(image: Image.Image, format: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def noise(width: int = 60, height: int = 40, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8))


# ------------------------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "no image that can be read"),
        (b"no image", "no image that can be read"),
        (saved(noise(), "GIF"), "no image that can be read"),
        (saved(noise())[:900], "damaged"),
        (png(30_000, 30_000), "more than 50 million pixels"),
        (png(10_000, 9_500), "more than 50 million pixels"),  # which Pillow would only warn of
        (saved(noise(7, 60)), "below 8 pixels"),
        (png(16, 16, bits=16, pixels=bytes(16 * (1 + 16 * 6))), "more than 8 bits"),
        (saved(Image.fromarray(np.zeros((16, 16), dtype=np.uint16))), "more than 8 bits"),
        (bytes(app.UPLOAD_BYTES + 1), "larger than 20 MB"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(raw, why):
    with pytest.raises(app.Refused, match=why) as refused:
        app.read_image(raw)
    assert "/" not in str(refused.value)


def test_a_image_too_large_is_never_decoded(monkeypatch):
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("decoded"))
    with pytest.raises(app.Refused, match="million pixels"):
        app.read_image(png(8_000, 8_000))


def test_images_are_upright_and_in_rgb():
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    turned = app.read_image(saved(noise().transpose(Image.Transpose.ROTATE_90), exif=exif))
    assert turned.mode == "RGB" and np.array_equal(np.asarray(turned)[..., 0], np.asarray(noise()))
    for mode, format in (("P", "PNG"), ("1", "TIFF"), ("RGBA", "WEBP"), ("L", "BMP"), ("CMYK", "JPEG")):
        assert app.read_image(saved(noise().convert(mode), format)).mode == "RGB"


def test_the_confusion_of_a_small_set():
    labelled = app.read_labelled(LABELLED.encode(), "small.csv", CLASSES, "good")
    assert labelled.scores.tolist() == [0.1, 0.6, 0.3, 0.9, 0.5]
    for threshold, counts in ((0, (3, 0, 2, 0)), (0.5, (2, 1, 1, 1)), (0.6, (1, 2, 1, 1)), (1, (0, 3, 0, 2))):
        assert app.confusion(labelled, threshold) == app.Confusion(*counts)
    half = app.confusion(labelled, 0.5)
    assert (half.recall, half.false_alarm_rate, half.precision) == (2 / 3, 1 / 2, 2 / 3)
    assert app.confusion(labelled, 1).precision is None
    assert "called so</th><td>none</td>" in app.confusion_html(labelled, 1)


def test_the_tables_that_a_run_leaves(tmp_path):
    """kgl's own writer and the page's reader agree."""
    from datasets import ClassLabel, Dataset

    from kgl.evaluation.predictions import Predictions, write_predictions

    test = Dataset.from_dict({"file_name": ["a", "b"], "label": [0, 1]}).cast_column(
        "label", ClassLabel(names=CLASSES)
    )
    probabilities = np.array([[0.75, 0.125, 0.125], [0.25, 0.5, 0.25]])
    judged = {"guided": Predictions(probabilities, *np.zeros((2, 2, 1, 1)))}
    write_predictions(
        tmp_path / "predictions.csv", test, judged, {"guided": tiny_model(id2label=dict(enumerate(CLASSES))).config}
    )
    labelled = app.read_labelled((tmp_path / "predictions.csv").read_bytes(), "predictions.csv", CLASSES, "good")
    assert labelled.scores.tolist() == [0.25, 0.75] and labelled.defective.tolist() == [False, True]


@pytest.mark.parametrize(
    ("table", "why"),
    [
        ("", "no column `label`"),
        ("file,defect_score\na,0.1\n", "no column `label`"),
        ("label,score\ngood,0.1\n", r"none of the columns `guided: P\(defect\)` and `defect_score`"),
        ("label,defect_score,boxes\ngood,0.1,[]\n", "what the classifier says, not what is true"),
        ("label,defect_score\n", "no rows"),
        ("label,defect_score\ngood,0.1\nrust,0.2\n", "line 3: `label` is 'rust', no class"),
        ("label,defect_score\ngood,much\n", "line 2: `defect_score` is 'much', no number"),
        ("label,defect_score\ngood\n", "line 2: `defect_score` is None, no number"),
        ("label,defect_score\ngood,1.5\n", "line 2: `defect_score` is 1.5: it must lie in 0..1"),
        ("label,defect_score\ngood,nan\n", "must lie in 0..1"),
        ('label,defect_score\n"good,0.1\n', "no CSV"),
        (b"label\xff", "no text in UTF-8"),
        ("label,defect_score\n" + "good,0.1\n" * 100_001, "more than 100,000 rows"),
    ],
)
def test_other_tables_are_refused(table, why):
    with pytest.raises(app.Refused, match=why):
        app.read_labelled(table if isinstance(table, bytes) else table.encode(), "table.csv", CLASSES, "good")


def test_the_limiter_forgets(monkeypatch):
    now = [0.0]
    limiter = app.Limiter(3, seconds=10, clock=lambda: now[0])
    assert limiter.admits("a", 2) and not limiter.admits("a", 2) and limiter.admits("a")
    assert not limiter.admits("a") and limiter.admits("b")
    now[0] = 9
    assert not limiter.admits("a") and limiter.admits("b")
    now[0] = 10  # the window slides: what was at 0 is over
    assert limiter.admits("a", 3) and limiter.admits("b", 2) and not limiter.admits("b")
    now[0] = 100
    assert limiter.admits("c") and len(limiter) == 1
    monkeypatch.setattr(app, "CLIENTS", 5)
    for index in range(20):
        limiter.admits(f"client {index}")
    assert len(limiter) == 5


UPLOAD, JOIN = "/gradio_api/upload", "/gradio_api/queue/join"


def passed(gate: app.Gate, method: str, path: str, headers: dict, root: str = "", chunks=(b"",)) -> tuple[int, str]:
    """What the gate answers; or 200 and what the server behind it got of the body, "cut" where it was cut off."""
    sent, arriving = [], [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]

    async def receive():
        return arriving.pop(0)

    async def send(message):
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": raw, "client": ("1.2.3.4", 5)}
    asyncio.run(gate(scope | ({"root_path": root} if root else {}), receive, send))
    return sent[0]["status"], sent[1]["body"].decode()


async def behind(scope, receive, send):
    """Reads two chunks."""
    got = [await receive() for _ in range(2)]
    told = "cut" if got[1]["type"] == "http.disconnect" else "whole"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": told.encode()})


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("GET", "/", {}, 200),
        ("GET", "/assets/index.js", {}, 200),
        ("GET", "/gradio_api/file=/etc/passwd", {}, 403),
        ("GET", "/file=app.py", {}, 403),
        ("GET", "/gradio_api/proxy=https://example.com", {}, 403),
        ("GET", "/gradio_api/deep_link", {}, 403),
        ("POST", "/gradio_api/process_recording", {}, 403),
        ("POST", "/gradio_api/component_server", {"content-length": "5"}, 403),
        ("DELETE", "/", {}, 403),
        ("POST", UPLOAD, {}, 411),
        ("POST", UPLOAD, {"content-length": "-1"}, 411),
        ("POST", UPLOAD, {"content-length": "5", "transfer-encoding": "chunked"}, 411),
        ("POST", UPLOAD, {"content-length": "640000001"}, 413),
        ("POST", UPLOAD, {"content-length": "640000000"}, 200),
        ("POST", JOIN, {"transfer-encoding": "chunked"}, 411),
        ("POST", JOIN, {"content-length": "1000001"}, 413),
        ("POST", JOIN, {"content-length": "1000000"}, 200),
    ],
)
@pytest.mark.parametrize("root", ["", "/x"])
def test_the_gate(method, path, headers, status, root, tmp_path):
    gate = app.Gate(behind, app.Limiter(1), app.Store(tmp_path))
    assert passed(gate, method, root + path, headers, root, (b"", b""))[0] == status
    if (path, status) == (UPLOAD, 200):
        again, why = passed(gate, method, root + path, headers, root)
        assert again == 429 and "wait" in why


def test_the_gate_counts_what_arrives(tmp_path, monkeypatch):
    store = app.Store(tmp_path)
    gate = app.Gate(behind, app.Limiter(9), store)
    short = {"content-length": "5"}
    half = bytes(app.REQUEST_BYTES // 2)
    assert passed(gate, "POST", JOIN, short, chunks=(half, half)) == (200, "whole")
    assert passed(gate, "POST", JOIN, short, chunks=(half, half + b" ")) == (200, "cut")
    assert passed(gate, "GET", "/config", {}, chunks=(b"", half * 3)) == (200, "cut")
    assert store.used == 0
    monkeypatch.setattr(app, "STORED_BYTES", app.REQUEST_BYTES)
    assert passed(gate, "POST", UPLOAD, short, chunks=(half, b"12")) == (200, "whole")
    assert passed(gate, "POST", UPLOAD, short, chunks=(half, b"12")) == (200, "cut")
    status, why = passed(gate, "POST", UPLOAD, short)
    assert status == 503 and "wait" in why
    store.sweep()
    assert passed(gate, "POST", UPLOAD, short, chunks=(half, b"12")) == (200, "whole")


def test_the_store_keeps_nothing_for_long(tmp_path):
    store, past = app.Store(tmp_path), time.time() - app.KEPT_SECONDS - 1
    for name in ("old/a.png", "young/a.png"):
        write(tmp_path / name.split("/")[0], "a.png", bytes(1000))
    for path in ("old/a.png", "old", "young"):
        os.utime(tmp_path / path, (past, past))
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    store.sweep()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.png", "dangling", "old", "young"]
    assert 1000 < store.used < 20_000
    os.utime(tmp_path / "old", (past, past))
    store.sweep()
    assert not (tmp_path / "old").exists()


def said(defect_score: float | None = 0.5, label: str = "<b>pit") -> dict:
    return {
        "label": label, "score": 0.5, "scores": {"good": 0.5, label: 0.5}, "defect_score": defect_score,
        "heat_map": Image.new("L", (1000, 500), 128), "boxes": [{"xmin": 1, "ymin": 2, "xmax": 11, "ymax": 22}],
    }  # fmt: skip


def test_a_card_holds_its_images_and_only_text():
    image = Image.new("RGB", (1000, 500), (90, 90, 90))
    card = app.image_card(EVIL, image, said(), 0.5)
    assert 'data-decision="defective"' in card and 'data-decision="good"' in app.image_card(
        EVIL, image, said(), np.nextafter(0.5, 1)
    )
    assert "<img src=x" not in card and "&lt;img src=x" in card and "<b>pit" not in card and "&lt;b&gt;pit" in card
    assert '<rect x="1" y="2" width="10" height="20"/>' in card
    sources = re.findall(r'src="data:image/\w+;base64,([^"]+)"', card)
    assert len(sources) == card.count("<img") == 2
    sizes = [Image.open(io.BytesIO(base64.b64decode(source))).size for source in sources]
    assert sizes == [(800, 400), (256, 128)]
    bare = app.image_card("a.png", image, said(None), 0.5)
    assert "decision" not in bare and "data-score" not in bare and "Most probable class" in bare
    assert app.problem_line(EVIL, "<i>") == (
        '<p class="problem" role="alert"><b>&lt;img src=x onerror=alert(1)&gt;.png</b> &lt;i&gt;</p>'
    )


def test_where_the_operating_point_is_from():
    assert "one half" in app.point_html(None) and "0.250" in app.point_html({"threshold": 0.25})
    point = {"threshold": 0.25, "chosen": "<why>", "recall": 0.5, "false_alarm_rate": 0.1, "defective": 4, "good": 10}
    told = app.point_html(point)
    assert "&lt;why&gt; (4 defective, 10 good)" in told and "50.0 % of the defects" in told and "10.0 %" in told


def given(model: object, **others: object) -> argparse.Namespace:
    settings = {"model": model, "trust_remote_code": True, "labelled": None, "examples": None} | others
    return argparse.Namespace(**settings)


def save_model(folder: Path, **config_kwargs: object) -> Path:
    model = tiny_model(id2label=dict(enumerate(CLASSES)), **config_kwargs)
    model.save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def test_what_it_is_started_with_is_checked(tmp_path, auto_image_processor):
    folder, store = save_model(tmp_path / "model"), app.Store(tmp_path)
    table = tmp_path / "table.csv"
    table.write_text("label\ngood\n")
    (tmp_path / "examples" / "folder.png").mkdir(parents=True)
    (tmp_path / "examples" / "broken.png").write_bytes(b"broken")
    weights = save_model(tmp_path / "cut") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:500])
    code = save_model(tmp_path / "raises") / "modeling_kgl.py"
    code.write_text(f"{code.read_text()}\nraise RuntimeError(7)\n")
    (tmp_path / "run" / "final").mkdir(parents=True)
    for args, why in (
        (given(None), "--model: say which"),
        (given(tmp_path / "cut"), "--model .*cut: it cannot be loaded .* deserializing header"),
        (given(tmp_path / "raises"), "--model .*raises: it cannot be loaded .*train. RuntimeError: 7$"),
        (given(folder, trust_remote_code=False), "--trust_remote_code: a classifier's folder holds the code"),
        (given(str(tmp_path / "none")), "--model .*none: it cannot be loaded"),
        (given("owner/none"), "--model owner/none: it cannot be loaded"),
        (given(tmp_path / "run"), "--model .*run: this is a run's folder; take .*run/final"),
        (given(folder, labelled=tmp_path / "none.csv"), "--labelled .*none.csv: there is no such file"),
        (given(folder, examples=tmp_path / "none"), "--examples .*none: there is no such folder"),
        (given(folder, labelled=table), "--labelled .*table.csv: it has none of the columns"),
    ):
        with pytest.raises(app.Refused, match=why) as refused:
            app.prepared(args, store)
        assert "\n" not in str(refused.value) and "Traceback" not in str(refused.value)
    with pytest.raises(app.Refused, match=r"^broken\.png: it is no image"):
        app.examples_html([tmp_path / "examples" / "broken.png"])
    no_decision = save_model(tmp_path / "all_defects", defect_free_label=None)
    with pytest.raises(app.Refused, match="no defect-free class"):
        app.prepared(given(no_decision, labelled=table), store)


def test_no_pickle_is_loaded(tmp_path, auto_image_processor):
    import torch

    folder = save_model(tmp_path / "model")
    (folder / "model.safetensors").unlink()
    torch.save(tiny_model().state_dict(), folder / "pytorch_model.bin")
    with pytest.raises(app.Refused, match=r"it cannot be loaded.*safetensors"):
        app.load(str(folder), True)


def test_the_examples_that_come_with_it():
    found = sorted((ROOT / "examples").iterdir())
    assert 4 <= len(found) <= app.EXAMPLES and sum(path.stat().st_size for path in found) < 100_000
    assert app.examples_html(found).count("<button") == len(found)


def test_examples_are_files(tmp_path, monkeypatch):
    image = write(tmp_path, "<b>.PNG", saved(noise()))
    write(tmp_path, "notes.txt", b"")
    (tmp_path / "folder.png").mkdir()
    model = argparse.Namespace(config=None)
    monkeypatch.setattr(app, "load", lambda *_: argparse.Namespace(model=model))
    monkeypatch.setattr(app, "build", lambda inspect, labelled, examples, store: (examples, {}))
    assert app.prepared(given("model", examples=tmp_path), app.Store(tmp_path))[0] == [image]
    assert "<b>" not in app.examples_html([image])


# ------------------------------------------------------------------------------------------------ the page as a whole


def space(
    tmp: Path, *flags: str, folder: Path = ROOT, code: str = "", **variables: str
) -> tuple[list[str], dict[str, str]]:
    """How the page in `folder`, or `code`, is started in the environment of a Space."""
    if not SPACE_PYTHON.exists():
        pytest.skip("needs .venv-space: make .venv-space/installed")
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environment = keep | {
        "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TMPDIR": str(tmp / "temporary"),
        "HF_MODULES_CACHE": str(tmp / "modules"),
    }  # fmt: skip
    (tmp / "temporary").mkdir(exist_ok=True)
    start = ["-c", code] if code else [str(folder / "app.py")]
    return [str(SPACE_PYTHON), *start, *flags], environment | variables


def kept(tmp: Path) -> list[str]:
    """The files and folders that a server started in `tmp` has stored."""
    return sorted(path.name for path in (tmp / "temporary").glob("kgl-app-*/**/*"))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def served(tmp: Path, *flags: str, folder: Path = ROOT, code: str = "", **variables: str):
    """The address of the page, and what its server logs. At SIGTERM it leaves nothing behind."""
    port = free_port()
    command, environment = space(tmp, *flags, folder=folder, code=code, GRADIO_SERVER_PORT=str(port), **variables)
    log = tmp / "log.txt"
    with log.open("w") as output:
        process = subprocess.Popen(command, env=environment, cwd=tmp, stdout=output, stderr=subprocess.STDOUT)
    try:
        for _ in range(600):
            assert process.poll() is None, log.read_text()
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.1)
        yield f"http://127.0.0.1:{port}", log
    finally:
        process.terminate()
        process.wait(20)
    assert process.returncode == 0 and not list((tmp / "temporary").glob("kgl-app-*")), log.read_text()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    tmp = tmp_path_factory.mktemp("served")
    point = {"threshold": THRESHOLD, "chosen": "for <i>tests", "recall": 0.9, "false_alarm_rate": 0.1}
    save_model(tmp / "model", operating_point=point | {"defective": 10, "good": 20})
    (tmp / "labelled.csv").write_text(LABELLED)
    with served(tmp, "--model", str(tmp / "model"), "--trust_remote_code", KGL_LABELLED=str(tmp / "labelled.csv")) as (
        address,
        log,
    ):
        yield address, tmp, log


@pytest.fixture(scope="module")
def browser(server):
    with chromium(1200, 900) as driver:
        yield driver


class Page:
    """The page in a browser, freshly loaded."""

    def __init__(self, driver: object, address: str, path: str = "/") -> None:
        self.driver, self.address = driver, address
        driver.get(address + path)
        self.until(lambda: self.all(".examples button") and self.all("#results p"))

    def all(self, selector: str) -> list:
        return self.driver.find_elements("css selector", selector)

    def texts(self, selector: str) -> list[str]:
        """Read at once: the page may put others in their place meanwhile."""
        script = "return [...document.querySelectorAll(arguments[0])].map(one => one.innerText.trim())"
        return self.driver.execute_script(script, selector)

    def until(self, condition, seconds: float = 30) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, self.texts("body")[0]
            time.sleep(0.05)

    def give(self, *paths: Path, to: str = "#images") -> None:
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
        """Nothing from elsewhere, nothing in the console, no path."""
        names = "return performance.getEntriesByType('resource').map(entry => entry.name)"
        asked = self.driver.execute_script(names)
        assert asked and [one for one in asked if not one.startswith((self.address, "data:"))] == []
        logged = [line["message"] for line in self.driver.get_log("browser")]
        assert [line for line in logged if GRADIO_S_OWN not in line] == []
        source = self.driver.page_source
        assert str(tmp) not in source and str(ROOT) not in source and "Traceback" not in source


@pytest.fixture
def page(browser, server):
    return Page(browser, server[0])


def write(folder: Path, name: str, raw: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(raw)
    return folder / name


def test_images_and_sliders(page, server, tmp_path):
    driver = page.driver
    files = [write(tmp_path, f"part_{index}.png", saved(noise(300, 200, index))) for index in range(3)]
    page.give(*files)
    page.until(lambda: len(page.all(".card")) == 3)
    assert page.texts(".card h3") == ["part_0.png", "part_1.png", "part_2.png"]
    scores = [float(card.get_attribute("data-score")) for card in page.all(".card")]
    assert len(set(scores)) == 3
    assert page.texts(".card .decision") == ["✕ Defective" if one >= THRESHOLD else "✓ Good" for one in scores]
    assert all(f"{score:.3f}" in text for score, text in zip(scores, page.texts(".card"), strict=True))
    shown = "return [...document.querySelectorAll('.shot img')].map(one => one.naturalWidth * one.clientWidth > 0)"
    assert driver.execute_script(shown) == [True] * 6
    over = "return ['.image', '.heat'].map(one => JSON.stringify(document.querySelector(one).getBoundingClientRect()))"
    assert len(set(driver.execute_script(over))) == 1

    assert page.opacity() == pytest.approx(0.6)
    page.slide("#heat", 0.25)
    page.until(lambda: page.opacity() == pytest.approx(0.25))

    assert page.counts() == [2, 1, 1, 1]  # at the exact stored operating point, as the sliders' rounded one means
    assert "for <i>tests (10 defective, 20 good)" in page.texts("body")[0]
    between = sorted(scores)[1] + 1e-4
    for threshold, counts in ((round(between, 3), None), (0.95, [0, 3, 0, 2]), (0.2, [3, 0, 1, 1])):
        page.slide("#point", threshold)
        expected = ["✕ Defective" if one >= threshold else "✓ Good" for one in scores]
        page.until(lambda: page.texts(".card .decision") == expected)  # noqa: B023
        boxed = "return [...document.querySelectorAll('.boxes')].map(one => getComputedStyle(one).display != 'none')"
        assert driver.execute_script(boxed) == [one >= threshold for one in scores]  # none on what is passed as good
        if counts is not None:
            page.until(lambda: page.counts() == counts)  # noqa: B023
    page.slide("#point", round(THRESHOLD, 3))
    page.until(lambda: page.counts() == [2, 1, 1, 1])
    line = "return Number(getComputedStyle(document.documentElement).getPropertyValue('--threshold'))"
    assert driver.execute_script(line) == THRESHOLD

    driver.save_screenshot(str(tmp_path / "page.png"))
    assert np.asarray(Image.open(tmp_path / "page.png").convert("L")).std() > 10
    driver.set_window_size(400, 800)
    try:
        wide, window = driver.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
        assert wide <= window
    finally:
        driver.set_window_size(1200, 900)
    assert [name for name in kept(server[1]) if "." in name] == ["part_0.png", "part_1.png", "part_2.png"]
    page.check(server[1])


def test_examples(page, server):
    names = page.texts(".examples button")
    assert names == sorted(path.stem for path in (ROOT / "examples").iterdir())
    page.all(".examples button")[-1].click()
    page.until(lambda: page.texts(".card h3") == [f"{names[-1]}.png"])
    page.check(server[1])


def test_a_labelled_set_is_dropped(page, server, tmp_path):
    table = b"label,defect_score\ngood,0.9\nscratch,0.9\n"
    page.give(write(tmp_path, f"{EVIL_FILE}.csv", table), to="#labelled")
    page.until(lambda: page.counts() == [1, 0, 1, 0])
    assert f"{EVIL_FILE}.csv: 2 images" in page.texts("#confusion")[0]
    page.give(write(tmp_path, "other.csv", b"label\ngood\n"), to="#labelled")
    page.until(lambda: page.all("#confusion .problem"))
    assert page.texts("#confusion .problem")[0].startswith("other.csv cannot be used: it has none of the columns")
    assert page.counts() == [1, 0, 1, 0]  # those of before
    page.slide("#point", 0.95)
    page.until(lambda: page.counts() == [0, 1, 0, 1])
    page.check(server[1])


def test_what_cannot_be_used_is_named_and_the_rest_goes_on(page, server, tmp_path):
    page.give(
        write(tmp_path, f"{EVIL_FILE}0.png", b"broken"),
        write(tmp_path, "huge.png", png(30_000, 30_000)),
        write(tmp_path, "deep.png", saved(Image.fromarray(np.zeros((16, 16), dtype=np.uint16)))),
        write(tmp_path, f"{EVIL_FILE}.png", saved(noise())),
    )
    page.until(lambda: page.all(".card"))
    assert page.texts("#results .problem") == [
        f"{EVIL_FILE}0.png was left out: it is no image that can be read here (PNG, JPEG, BMP, TIFF, WEBP).",
        "huge.png was left out: it has more than 50 million pixels.",
        "deep.png was left out: it has more than 8 bits a channel: convert it to 8.",
    ]
    assert page.texts(".card h3") == [f"{EVIL_FILE}.png"]
    assert page.all(".card .image")[0].get_attribute("alt") == f"{EVIL_FILE}.png"
    page.check(server[1])


def test_files_too_large_and_too_many(page, server, tmp_path):
    page.give(write(tmp_path, "large.png", bytes(app.UPLOAD_BYTES + 1)))
    page.until(lambda: "maximum allowed size" in page.texts("body")[0])
    assert not page.all(".card")
    page.give(*(write(tmp_path, f"{index}.png", saved(noise(8, 8))) for index in range(app.REQUEST_IMAGES + 1)))
    page.until(lambda: page.texts("#results .problem") == ["33 images are too many: at most 32 at once."])
    page.check(server[1])


def ask(address: str, path: str, body: object = None) -> tuple[int, str]:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{address}{path}", data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def test_no_file_is_served(server):
    address, tmp, _ = server
    for path in ("/etc/passwd", f"{tmp}/model/config.json", f"{ROOT}/app.py", "app.py", "https://example.com"):
        for prefix in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/gradio_api/proxy="):
            assert ask(address, f"{prefix}{path}")[0] == 403
    for path in ("/", "/config"):
        status, text = ask(address, path)
        assert status == 200 and str(tmp) not in text and str(ROOT) not in text and "/tmp" not in text


def answered(address: str, body: dict) -> dict:
    """What the page's server says in the end to a request that joins its queue."""
    session = secrets.token_hex(4)
    ask(address, "/gradio_api/queue/join", body | {"session_hash": session})
    _, events = ask(address, f"/gradio_api/queue/data?session_hash={session}")
    return json.loads(next(line for line in events.splitlines() if "process_completed" in line).removeprefix("data: "))


def test_only_uploads_are_looked_at_and_errors_stay_in_the_log(server):
    """What a stranger's program may send in place of the page."""
    address, tmp, log = server
    dependencies = json.loads(ask(address, "/config")[1])["dependencies"]
    look = next(one for one in dependencies if len(one["inputs"]) == len(one["outputs"]) == 2)
    file = {"meta": {"_type": "gradio.FileData"}}
    for one in (
        file | {"path": f"{tmp}/labelled.csv"}, file | {"path": "/etc/passwd"}, {"path": "/etc/passwd"},
        file | {"path": "http://127.0.0.1:1/x.png"}, "/etc/passwd",
    ):  # fmt: skip
        message = answered(address, {"data": [[one], 0.5], "fn_index": look["id"]})
        assert message["success"] is False and message["output"]["error"] is None
        assert str(tmp) not in str(message) and "passwd" not in str(message)
    logged = log.read_text()
    assert "it was not uploaded by a user" in logged and "a web address in place of an upload" in logged
    example = next(one for one in dependencies if len(one["inputs"]) == 1 and one["backend_fn"])
    body = {"fn_index": example["id"], "event_data": {"index": 0}}
    assert '<article class="card"' in str(answered(address, body | {"data": [0.5]}))
    message = answered(address, body | {"data": [0.5], "event_data": {}})
    assert message["success"] is False and message["output"]["error"] == app.WRONG
    assert "look_at_example failed\nTraceback" in log.read_text()


def test_no_more_than_so_many_images_a_minute(page, server, tmp_path):
    """What it uses up is gone for a minute: no test of this server below may need an image."""
    for turn in range(app.MINUTE_IMAGES // app.REQUEST_IMAGES + 1):
        names = [f"{turn}_{index}.png" for index in range(app.REQUEST_IMAGES)]
        page.give(*(write(tmp_path, name, saved(noise(8, 8))) for name in names))
        page.until(lambda: page.texts("h3") == names or page.texts("#results .problem"))  # noqa: B023
        if page.texts("#results .problem"):
            break
    assert page.texts("#results .problem") == ["Too fast: at most 96 images a minute. Wait a little."]
    page.check(server[1])


def test_without_trust_it_does_not_start(tmp_path):
    command, environment = space(tmp_path, "--model", str(tmp_path))
    process = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert process.returncode == 2 and "Traceback" not in process.stderr
    assert process.stderr.startswith("app.py: error: --trust_remote_code: ") and process.stderr.count("\n") == 1
    assert kept(tmp_path) == []


QUICK = """
import argparse, app
config = {"threshold": 0.5, "label2id": {"good": 0, "bad": 1}, "defect_free_label": "good", "operating_point": None}
model = argparse.Namespace(config=argparse.Namespace(**config))
app.load = lambda *_: argparse.Namespace(model=model)
app.KEPT_SECONDS, app.SWEEP_SECONDS = 1, 0.1
app.main()
"""


@contextmanager
def sent(address: str, path: str, *headers: str, body: bytes = b""):
    """A request by hand, which may lie; the connection stays open."""
    host, port = address.removeprefix("http://").split(":")
    lines = (f"POST {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers, "", "")
    with socket.create_connection((host, int(port)), timeout=30) as one:
        one.sendall("\r\n".join(lines).encode() + body)
        yield one


def soon(condition, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_nothing_stays_and_nothing_passes_by(tmp_path):
    """Behind a proxy's path, with Gradio's variables set against it."""
    against = {"GRADIO_ALLOWED_PATHS": "/", "GRADIO_VIBE_MODE": "1", "GRADIO_TEMP_DIR": str(tmp_path / "elsewhere")}
    quick = {"code": QUICK, "PYTHONPATH": str(ROOT), "GRADIO_ROOT_PATH": "/x"}
    form = "Content-Type: multipart/form-data; boundary=b"
    part = '--b\r\nContent-Disposition: form-data; name="files"; filename="%s"\r\n\r\n%s\r\n'
    chunked = "Transfer-Encoding: chunked"
    with served(tmp_path, "--model", "m", "--trust_remote_code", **quick, **against) as (address, _):
        for prefix in ("/x", ""):
            status, config = ask(address, f"{prefix}/config")
            assert status == 200 and json.loads(config)["vibe_mode"] is False
            for path in ("file=/etc/passwd", "deep_link?session_hash=a", "info", "vibe-code/", "upload/", "../config"):
                assert ask(address, f"{prefix}/gradio_api/{path}")[0] == 403
            for path, *headers, expected in (
                (UPLOAD, form, "Content-Length: 5", chunked, 411), (JOIN, "Content-Length: 5", chunked, 411),
                (JOIN, chunked, 411), (JOIN, "Content-Length: 300000000", 413),
                ("/gradio_api/component_server", form, "Content-Length: 5", 403),
            ):  # fmt: skip
                with sent(address, prefix + path, *headers) as one:
                    assert one.recv(99).startswith(f"HTTP/1.1 {expected} ".encode())

        refused = (part % ("a.png", "a") + part % ("..", "b") + "--b--\r\n").encode()
        with sent(address, f"/x{UPLOAD}", form, f"Content-Length: {len(refused)}", body=refused) as one:
            assert one.recv(99).startswith(b"HTTP/1.1 400 ") and kept(tmp_path)
        soon(lambda: kept(tmp_path) == [])
        aborted = (part % ("c.png", "c" * 1_000_000)).encode()
        with sent(address, f"/x{UPLOAD}", form, "Content-Length: 20000000", body=aborted):
            soon(lambda: kept(tmp_path))
        soon(lambda: kept(tmp_path) == [])
        with sent(address, f"/x{UPLOAD}", form, "Content-Length: 20000000", body=aborted):
            soon(lambda: kept(tmp_path))  # and is there at SIGTERM, of which `served` says the rest
    assert not (tmp_path / "elsewhere").exists()


def test_a_space_whose_classifier_has_no_defect_free_class(tmp_path):
    """There is no decision; and the page is alone, as in a Space."""
    alone = tmp_path / "space"
    shutil.copytree(ROOT / "examples", alone / "examples")
    shutil.copy(ROOT / "app.py", alone)
    save_model(tmp_path / "model", defect_free_label=None)
    image = write(tmp_path, "part.png", saved(noise()))
    with (
        served(
            tmp_path, folder=alone, KGL_MODEL=str(tmp_path / "model"), KGL_TRUST_REMOTE_CODE="1", GRADIO_ROOT_PATH="/x"
        ) as (address, _),
        chromium(1200, 900) as driver,
    ):
        page = Page(driver, address, "/x/")
        page.give(image)
        page.until(lambda: page.all(".card"))
        assert page.texts(".said")[0].startswith("Most probable class: ")
        for absent in (".decision", ".meter", "#point", "#confusion", "#labelled"):
            assert not page.all(absent)
        page.check(tmp_path)
