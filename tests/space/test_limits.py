"""Rate limits, memory, the folder of uploads, and the requests that the server admits."""

import asyncio
import os
import platform
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
from space_server import JOIN, ROOT, UPLOAD, write

import quotas
from rate_limiter import RateLimiter
from request_gate import RequestGate
from unread_answers import UnreadAnswers
from upload_folder import UploadFolder


FRAGMENTED = """
from pathlib import Path

from heap import limit_arenas, return_freed

limit_arenas()
del [bytearray(16 << 20)][0]  # glibc now puts blocks of up to 16 MB among the small ones
resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * 4096 >> 20
before = resident()
blocks = [(bytearray(2 << 20), bytearray(2000)) for _ in range(50)]
kept = [small for _, small in blocks]
del blocks
held = resident()
return_freed()
print(held - before, resident() - before)
"""


def test_rate_limiter_window_slides(monkeypatch):
    now = [0.0]
    limiter = RateLimiter(3, seconds=10, clock=lambda: now[0])
    assert limiter.admit("a", 2) and not limiter.admit("a", 2) and limiter.admit("a")
    assert not limiter.admit("a") and limiter.admit("b")
    now[0] = 9
    assert not limiter.admit("a") and limiter.admit("b")
    now[0] = 10  # the units of time 0 have left the window
    assert limiter.admit("a", 3) and limiter.admit("b", 2) and not limiter.admit("b")
    now[0] = 100
    assert limiter.admit("c") and len(limiter) == 1
    monkeypatch.setattr(quotas, "MAX_CLIENTS", 5)
    for index in range(20):
        limiter.admit(f"client {index}")
    assert len(limiter) == 5


def test_upload_folder_deletes_leftovers(tmp_path):
    folder, past = UploadFolder(tmp_path), time.time() - quotas.LEFTOVER_SECONDS - 1
    for name in ("old", "young"):
        write(tmp_path / name, "a.png", bytes(1000))
    for path in ("old/a.png", "old", "young"):
        os.utime(tmp_path / path, (past, past))
    (tmp_path / "dangling").symlink_to(tmp_path / "none")
    folder.sweep()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a.png", "dangling", "old", "young"]
    assert 1000 < folder.used < 20_000
    os.utime(tmp_path / "old", (past, past))
    folder.sweep()
    assert not (tmp_path / "old").exists()


def test_closed_upload_folder_has_no_room(tmp_path):
    folder = UploadFolder(tmp_path)
    assert folder.has_room(quotas.MAX_STORED_BYTES) and not folder.has_room(quotas.MAX_STORED_BYTES + 1)
    folder.close()
    assert not folder.has_room()


def gradio_queue(*pages: str, busy: tuple[str, ...] = ()) -> SimpleNamespace:
    """Return what the app knows of Gradio's queue, of pages that wait for an answer or for nothing."""
    return SimpleNamespace(
        event_ids_to_events={page: SimpleNamespace(session_hash=page) for page in busy},
        pending_messages_per_session=dict.fromkeys(pages),
        pending_event_ids_session={page: set() for page in pages},
    )


def test_unread_answers_are_dropped(monkeypatch):
    monkeypatch.setattr(quotas, "ANSWER_SECONDS", 10)
    now, queue = [0.0], gradio_queue("left", "waits", "returns", busy=("waits",))
    answers = UnreadAnswers(queue, clock=lambda: now[0])
    answers.drop()
    now[0] = 9
    queue.event_ids_to_events["returns"] = SimpleNamespace(session_hash="returns")
    answers.drop()
    assert list(queue.pending_messages_per_session) == ["left", "waits", "returns"]
    now[0] = 10
    queue.event_ids_to_events.clear()
    answers.drop()
    assert list(queue.pending_messages_per_session) == list(queue.pending_event_ids_session) == ["waits", "returns"]
    now[0] = 20
    answers.drop()
    answers.drop()
    assert not queue.pending_messages_per_session and not queue.pending_event_ids_session


def test_answers_of_a_page_that_was_busy_between_two_looks_are_fresh(monkeypatch):
    monkeypatch.setattr(quotas, "ANSWER_SECONDS", 10)
    now, queue = [0.0], gradio_queue("again")
    answers = UnreadAnswers(queue, clock=lambda: now[0])
    answers.drop()
    now[0] = 9
    queue.pending_event_ids_session["again"] = {"a request of this moment"}
    now[0] = 11
    answers.drop()
    assert list(queue.pending_messages_per_session) == ["again"]
    now[0] = 21
    answers.drop()
    assert not queue.pending_messages_per_session and not queue.pending_event_ids_session


def ask(
    gate: RequestGate, method: str, path: str, headers: dict, root: str = "", chunks=(b"", b"")
) -> tuple[int, str]:
    """Return the gate's status and message, or 200 and whether the application behind it got the body "whole"."""
    sent, arriving = [], [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]

    async def receive():
        return arriving.pop(0)

    async def send(message):
        sent.append(message)

    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": raw, "client": ("1.2.3.4", 5)}
    asyncio.run(gate(scope | ({"root_path": root} if root else {}), receive, send))
    return sent[0]["status"], sent[1]["body"].decode()


async def application(scope, receive, send):
    """Read two chunks and answer how the second arrived."""
    messages = [await receive() for _ in range(2)]
    answer = "cut" if messages[1]["type"] == "http.disconnect" else "whole"
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": answer.encode()})


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
def test_gate_admits_only_requests_of_the_page(method, path, headers, status, root, tmp_path):
    gate = RequestGate(application, RateLimiter(1), UploadFolder(tmp_path), UnreadAnswers(gradio_queue()))
    assert ask(gate, method, root + path, headers, root)[0] == status
    if (path, status) == (UPLOAD, 200):
        again, message = ask(gate, method, root + path, headers, root)
        assert again == 429 and "wait" in message


def test_gate_counts_received_bytes(tmp_path, monkeypatch):
    folder = UploadFolder(tmp_path)
    gate = RequestGate(application, RateLimiter(9), folder, UnreadAnswers(gradio_queue()))
    short = {"content-length": "5"}
    half = bytes(quotas.MAX_REQUEST_BYTES // 2)
    assert ask(gate, "POST", JOIN, short, chunks=(half, half)) == (200, "whole")
    assert ask(gate, "POST", JOIN, short, chunks=(half, half + b" ")) == (200, "cut")
    assert ask(gate, "GET", "/config", {}, chunks=(b"", half * 3)) == (200, "cut")
    assert folder.used == 0
    monkeypatch.setattr(quotas, "MAX_STORED_BYTES", quotas.MAX_REQUEST_BYTES)
    assert ask(gate, "POST", UPLOAD, short, chunks=(half, b"12")) == (200, "whole")
    assert ask(gate, "POST", UPLOAD, short, chunks=(half, b"12")) == (200, "cut")
    status, message = ask(gate, "POST", UPLOAD, short)
    assert status == 503 and "wait" in message
    folder.sweep()
    assert ask(gate, "POST", UPLOAD, short, chunks=(half, b"12")) == (200, "whole")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc's allocator is set")
def test_freed_images_go_back_to_the_system():
    command = [sys.executable, "-c", FRAGMENTED]
    done = subprocess.run(command, cwd=ROOT / "space", capture_output=True, check=True)
    held, rest = map(int, done.stdout.split())
    assert held >= 80 and rest <= 4  # MiB, of 100
