"""Clients of the Space's app for the soak: their images and what they ask."""

from __future__ import annotations

import http.client
import io
import json
import os
import secrets
import socket
import struct
import subprocess
import threading
import time
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from kgl.benchmarks.soak_requests import (
    MAX_AT_ONCE,
    MAX_FILE_BYTES,
    MAX_IMAGES,
    MAX_UPLOADS,
    QUEUE_FULL,
    Request,
    Upload,
    judge,
)
from kgl.data.synthetic import CLASSES, generate_surface


ROOT = Path(__file__).parents[1]
PYTHON = ROOT / ".venv-space" / "bin" / "python"
STEADY, EAGER, UPLOADING, ODD = ("127.0.0.2", "127.0.0.3", "127.0.0.4"), "127.0.0.5", "127.0.0.6", "127.0.0.7"
_FORMATS = {"png": "PNG", "jpg": "JPEG", "bmp": "BMP", "webp": "WEBP", "tif": "TIFF"}
_UPLOAD, _JOIN = "/gradio_api/upload", "/gradio_api/queue/join"
_TIMEOUT = 120
_ANSWERS = """
import json, sys
from pathlib import Path
from app import load_pipeline
from image_files import read_image
pipeline, answers = load_pipeline(sys.argv[1], True), {}
for path in Path(sys.argv[2]).iterdir():
    found = pipeline(read_image(path.read_bytes()))
    answers[path.name] = [found["label"], found["defect_score"]]
print(json.dumps(answers))
"""


@dataclass
class App:
    """The app as a process, its port, and the requests that were made to it."""

    process: subprocess.Popen
    port: int
    classify: int = -1  # Gradio's index of the event that classifies uploads
    requests: list[Request] = field(default_factory=list)

    def get(self, path: str, address: str = STEADY[0]) -> tuple[int, str]:
        """Return status and text of a GET from an address."""
        return self.send("GET", path, None, address)

    def send(self, method: str, path: str, body: bytes | None, address: str, kind: str = "") -> tuple[int, str]:
        """Return status and text of a request from an address."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, _TIMEOUT, (address, 0))
        try:
            connection.request(method, path, body, {"content-type": kind} if kind else {})
            answer = connection.getresponse()
            return answer.status, answer.read().decode()
        finally:
            connection.close()

    def upload(self, address: str, files: list[tuple[str, bytes]]) -> tuple[int, str]:
        """Upload files as the page does; the text of status 200 lists their paths as JSON."""
        start = '--b\r\nContent-Disposition: form-data; name="files"; filename="{}"\r\n\r\n'
        parts = [start.format(name).encode() + content + b"\r\n" for name, content in files]
        return self.send("POST", _UPLOAD, b"".join(parts) + b"--b--\r\n", address, "multipart/form-data; boundary=b")

    def join(self, address: str, session: str, paths: list[str]) -> tuple[int, str]:
        """Queue the classification of uploads."""
        files = [{"path": path, "meta": {"_type": "gradio.FileData"}} for path in paths]
        body = {"data": [files, 0.5], "fn_index": self.classify, "session_hash": session}
        return self.send("POST", _JOIN, json.dumps(body).encode(), address, "application/json")

    def answer(self, address: str, session: str) -> str:
        """Return the page's HTML for the queued uploads of a session; empty where the app failed."""
        _, events = self.get(f"/gradio_api/queue/data?session_hash={session}", address)
        done = [json.loads(line[6:]) for line in events.splitlines() if '"process_completed"' in line]
        return done[-1]["output"]["data"][0] if done and done[-1]["success"] else ""


def start_app(model: str, folder: Path) -> App:
    """
    Start the app as `docs/space.md` says, and wait until it answers.

    Raises:
        RuntimeError: it ended.
    """
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    with (folder / "app.log").open("w") as log:
        command = [PYTHON, ROOT / "space" / "app.py", "--model", model, "--trust_remote_code"]
        environment = _environment(folder) | {"GRADIO_SERVER_PORT": str(port)}
        app = App(subprocess.Popen(command, env=environment, stdout=log, stderr=log), port)
    while True:
        if app.process.poll() is not None:
            raise RuntimeError((folder / "app.log").read_text())
        try:
            events = json.loads(app.get("/config")[1])["dependencies"]
        except ConnectionRefusedError:
            time.sleep(0.5)
            continue
        app.classify = next(one["id"] for one in events if len(one["inputs"]) == len(one["outputs"]) == 2)
        return app


def _environment(folder: Path) -> dict[str, str]:
    (folder / "temporary").mkdir(exist_ok=True)
    return {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ} | {
        "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TMPDIR": str(folder / "temporary"),
        "HF_MODULES_CACHE": str(folder / "modules"), "PYTHONPATH": str(ROOT / "space"),
    }  # fmt: skip


def make_uploads(model: str, folder: Path) -> tuple[list[Upload], list[Upload]]:
    """Return images with the pipeline's answers in the app's environment, and files that the app leaves out."""
    images = folder / "uploads"
    images.mkdir()
    for number in range(25):
        suffix = list(_FORMATS)[number % len(_FORMATS)]
        surface = generate_surface(CLASSES[number % len(CLASSES)], 64 + 16 * number, 9000 + number)
        Image.fromarray(surface.image).save(images / f"{number}.{suffix}", _FORMATS[suffix])
    command = [PYTHON, "-c", _ANSWERS, model, str(images)]
    done = subprocess.run(command, env=_environment(folder), capture_output=True, text=True, check=True)
    answers = json.loads(done.stdout.splitlines()[-1])
    good = [Upload(Path(name).suffix, (images / name).read_bytes(), *answer) for name, answer in answers.items()]
    whole = good[0].content if good[0].suffix == ".png" else (images / "0.png").read_bytes()
    small, deep = io.BytesIO(), io.BytesIO()
    Image.new("L", (4, 40)).save(small, "PNG")
    Image.fromarray(np.zeros((40, 40), dtype=np.uint16)).save(deep, "PNG")
    bad = [
        Upload(".png", whole[: len(whole) // 2], problem="the file is damaged"),
        Upload(".png", b"no image at all", problem="the file is not a readable image"),
        Upload(".png", _large_png(10_000, 10_000), problem="more than 50 million pixels"),
        Upload(".png", small.getvalue(), problem="less than 8 pixels"),
        Upload(".png", deep.getvalue(), problem="more than 8 bits per channel"),
    ]
    return good, bad


def _large_png(width: int, height: int) -> bytes:
    """Return a PNG that is large by its header only."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", zlib.compress(b"")))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in (*chunks, (b"IEND", b""))
    )


def classify(app: App, kind: str, address: str, session: str, uploads: list[Upload], *refusals: str) -> str:
    """
    Upload images, have them classified, and note and return what came of it.

    Args:
        app: the app.
        kind: of request.
        address: that the client has.
        session: of the client's page.
        uploads: the images.
        refusals: parts of sentences, any of which refuses the request rightly, besides that of a full queue.
    """
    sent = {f"{secrets.token_hex(4)}{one.suffix}": one for one in uploads}
    request = Request(kind, address, len(uploads), time.monotonic())
    app.requests.append(request)
    status, text = app.upload(address, [(name, one.content) for name, one in sent.items()])
    request.sent = time.monotonic()
    if status == 200:
        request.queued = True
        status, text = app.join(address, session, json.loads(text))
    if status == 200:
        text = app.answer(address, session)
    request.answered = time.monotonic()
    if status == 503 and QUEUE_FULL in text:
        request.outcome = "queue full"
    elif any(refusal in text for refusal in refusals):
        request.outcome = "refused"
    elif status == 200 and text:
        request.note = judge(text, sent)
        request.outcome = "wrong" if request.note else "answered"
    else:
        request.note = f"{status}: {text[:200]}"
    return request.outcome


def plain(app: App, kind: str, address: str, call: Callable[[], tuple[int, str]], *refusals: str) -> None:
    """Note what came of a request that is answered at once; without `refusals` by status 200."""
    request = Request(kind, address, 1, time.monotonic())
    app.requests.append(request)
    status, text = call()
    request.answered = time.monotonic()
    if any(refusal in text for refusal in refusals) and status != 200:
        request.outcome = "refused"
    elif status == 200:
        request.outcome = "answered"
    else:
        request.note = f"{status}: {text[:200]}"


class Clients:
    """Threads that use the app until they are stopped."""

    def __init__(self, app: App, model: str, folder: Path) -> None:
        self._app, self._stop = app, threading.Event()
        self._good, self._bad = make_uploads(model, folder)
        loops = [
            *((self._steady, one) for one in STEADY),
            (self._eager,),
            (self._uploading,),
            (self._odd,),
            (self._burst,),
        ]
        self._threads = [threading.Thread(target=self._run, args=one, daemon=True) for one in loops]
        self.failures: list[str] = []
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """End all clients after their present request."""
        self._stop.set()
        for thread in self._threads:
            thread.join(_TIMEOUT)

    def _run(self, loop: Callable[..., None], *args: str) -> None:
        draws = np.random.default_rng(len(self._app.requests))
        while not self._stop.is_set():
            try:
                loop(draws, *args)
            except Exception as error:  # a request without an answer stays noted as lost
                self.failures.append(f"{loop.__name__}: {type(error).__name__}: {error}")
                self._stop.wait(1)

    def _images(self, draws: np.random.Generator, count: int) -> list[Upload]:
        return [self._good[index] for index in draws.integers(len(self._good), size=count)]

    def _steady(self, draws: np.random.Generator, address: str) -> None:
        """Open a page, classify a few images ten times, and close it."""
        session = secrets.token_hex(6)
        plain(self._app, "page", address, lambda: self._app.get("/", address))
        beats = http.client.HTTPConnection("127.0.0.1", self._app.port, _TIMEOUT, (address, 0))
        beats.request("GET", f"/gradio_api/heartbeat/{session}")
        for _ in range(10):
            uploads = self._images(draws, draws.integers(1, 4))
            uploads += [self._bad[draws.integers(len(self._bad))]] if draws.random() < 0.3 else []
            kind = "images, some unusable" if uploads[-1].problem else "images"
            classify(self._app, kind, address, session, uploads)
            if self._stop.wait(draws.uniform(3, 6)):
                break
        beats.close()

    def _eager(self, draws: np.random.Generator) -> None:
        """Classify more images a minute than the limit."""
        refusal = f"at most {MAX_IMAGES} per minute. Wait a minute"
        classify(self._app, "images above the rate", EAGER, secrets.token_hex(6), self._images(draws, 8), refusal)
        self._stop.wait(3)

    def _uploading(self, draws: np.random.Generator) -> None:
        """Upload more often a minute than the limit."""
        files = [("a.png", self._good[0].content)]
        plain(self._app, "uploads above the rate", UPLOADING, lambda: self._app.upload(UPLOADING, files),
              f"At most {MAX_UPLOADS} uploads per minute")  # fmt: skip
        self._stop.wait(0.8)

    def _odd(self, draws: np.random.Generator) -> None:
        """Send what the page never sends: too much, too large, closed addresses; and leave before the answer."""
        app, session = self._app, secrets.token_hex(6)
        classify(app, "too many images", ODD, session, self._images(draws, MAX_AT_ONCE + 1), "upload at most 32 at")
        self._stop.wait(10)
        large = [("a.png", bytes(MAX_FILE_BYTES + 1))]
        plain(app, "too large a file", ODD, lambda: app.upload(ODD, large), "maximum allowed size")
        self._stop.wait(10)
        plain(app, "closed address", ODD, lambda: app.get("/gradio_api/file=/etc/passwd", ODD), "address is closed")
        self._stop.wait(10)
        left = Request("left before the answer", ODD, 4, time.monotonic(), outcome="left", queued=True)
        app.requests.append(left)
        files = [(f"{index}{one.suffix}", one.content) for index, one in enumerate(self._images(draws, 4))]
        app.join(ODD, session, json.loads(app.upload(ODD, files)[1]))
        app.requests.append(Request("cancelled upload", ODD, 1, time.monotonic(), outcome="left"))
        with socket.create_connection(("127.0.0.1", app.port), _TIMEOUT, (ODD, 0)) as one:
            start = f"POST {_UPLOAD} HTTP/1.1\r\nHost: a\r\nContent-Length: 9000000\r\n"
            start += "Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
            start += 'Content-Disposition: form-data; name="files"; filename="c.png"\r\n\r\n'
            one.sendall(start.encode() + bytes(1_000_000))
            time.sleep(1)
        self._stop.wait(10)

    def _burst(self, draws: np.random.Generator) -> None:
        """Ask for more at once than the queue holds, each from another address."""
        if self._stop.wait(min(150, 150 * draws.random() + 30)):
            return

        def ask(number: int) -> None:
            uploads, address = [self._good[number % len(self._good)]] * 3, f"127.0.1.{number + 1}"
            classify(self._app, "burst", address, secrets.token_hex(6), uploads)

        with ThreadPoolExecutor(48) as pool:
            list(pool.map(ask, range(48)))
