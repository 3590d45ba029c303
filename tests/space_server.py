"""The Space's app as a process in its own environment, requests to it, and image files to send."""

import io
import json
import os
import secrets
import socket
import struct
import subprocess
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import tiny_model
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil


ROOT = Path(__file__).resolve().parents[1]
SPACE_PYTHON = ROOT / ".venv-space" / "bin" / "python"
CLASSES = ["good", "scratch", "<b>pit"]
TABLE = """file_name,label,final_defect_score
a.png,good,0.1
b.png,good,0.6
c.png,scratch,0.3
d.png,scratch,0.9
e.png,<b>pit,0.5
"""
THRESHOLD = 0.43215  # between two positions of the slider
LOOK_AGAIN = 0.4
UPLOAD, JOIN = "/gradio_api/upload", "/gradio_api/queue/join"


def noise(width: int = 60, height: int = 40, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8))


def encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def make_png(width: int, height: int, bits: int = 8, colours: int = 2, pixels: bytes = b"") -> bytes:
    """Return a PNG of any size in its header, and of 16 bits per channel, which Pillow writes in grey only."""
    header = struct.pack(">IIBBBBB", width, height, bits, colours, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(pixels)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    )


def write(folder: Path, name: str, raw: bytes) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / name).write_bytes(raw)
    return folder / name


def save_model(folder: Path, **config_kwargs: object) -> Path:
    """Save a tiny model of three classes, with its image processor and code."""
    tiny_model(id2label=dict(enumerate(CLASSES)), **config_kwargs).save_pretrained(folder)
    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder


def app_command(
    tmp: Path, *flags: str, folder: Path = ROOT / "space", code: str = "", **variables: str
) -> tuple[list[str], dict[str, str]]:
    """Return the command and variables that start the app in `folder`, or `code`, in the Space's environment."""
    if not SPACE_PYTHON.exists():
        pytest.skip("needs .venv-space: make .venv-space/installed")
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    environment = kept | {
        "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "TMPDIR": str(tmp / "temporary"),
        "HF_MODULES_CACHE": str(tmp / "modules"),
    }  # fmt: skip
    (tmp / "temporary").mkdir(exist_ok=True)
    start = ["-c", code] if code else [str(folder / "app.py")]
    return [str(SPACE_PYTHON), *start, *flags], environment | variables


def stored_names(tmp: Path) -> list[str]:
    """Return the names of files and folders that an app started in `tmp` stores."""
    return sorted(path.name for path in (tmp / "temporary").glob("kgl-app-*/**/*"))


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def served(tmp: Path, *flags: str, **start: object) -> Iterator[tuple[str, Path]]:
    """Start the app, yield its address and log, stop it by SIGTERM, and check that it leaves no files."""
    port = free_port()
    command, environment = app_command(tmp, *flags, GRADIO_SERVER_PORT=str(port), **start)
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


def request(address: str, path: str, body: object = None) -> tuple[int, str]:
    """Return the status and text of a GET, or of a POST of `body` as JSON."""
    data = None if body is None else json.dumps(body).encode()
    asked = urllib.request.Request(f"{address}{path}", data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(asked, timeout=30) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


def call_event(address: str, body: dict) -> dict:
    """Queue an event as the page does and return its completion message."""
    session = secrets.token_hex(4)
    request(address, JOIN, body | {"session_hash": session})
    _, events = request(address, f"/gradio_api/queue/data?session_hash={session}")
    return json.loads(next(line for line in events.splitlines() if "process_completed" in line).removeprefix("data: "))


@contextmanager
def raw_post(address: str, path: str, *headers: str, body: bytes = b"") -> Iterator[socket.socket]:
    """Send a POST with any headers and body, true or not; the connection stays open."""
    host, port = address.removeprefix("http://").split(":")
    lines = (f"POST {path} HTTP/1.1", f"Host: {host}", "Connection: close", *headers, "", "")
    with socket.create_connection((host, int(port)), timeout=30) as one:
        one.sendall("\r\n".join(lines).encode() + body)
        yield one


def wait_until(condition: Callable[[], bool], seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)
