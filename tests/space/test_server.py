"""The app's server in the Space's environment, which has no kgl, asked by other programs than the page."""

import json
import subprocess
import time
import urllib.request

from space_server import (
    JOIN,
    ROOT,
    UPLOAD,
    app_command,
    call_event,
    raw_post,
    request,
    served,
    stored_names,
    wait_until,
)

import quotas


SERVER_ERROR = "The server failed on this request. Its log has the details."
FORM = "Content-Type: multipart/form-data; boundary=b"
PART = '--b\r\nContent-Disposition: form-data; name="files"; filename="%s"\r\n\r\n%s\r\n'
COMPLETE = (PART % ("whole.png", "w" * 1000) + "--b--\r\n").encode()
REJECTED = (PART % ("a.png", "a") + PART % ("..", "b") + "--b--\r\n").encode()
CANCELLED = (PART % ("c.png", "c" * 1_000_000)).encode()

# The app with a model that answers nothing, whose uploads soon grow old.
QUICK = """
import argparse, app, quotas
config = {"threshold": 0.5, "label2id": {"good": 0, "bad": 1}, "defect_free_label": "good", "operating_point": None,
          "heat_threshold": 0.5, "has_heat_map": True}
model = argparse.Namespace(config=argparse.Namespace(**config))
app.load_pipeline = lambda *_: argparse.Namespace(model=model)
quotas.UPLOAD_SECONDS, quotas.LEFTOVER_SECONDS, quotas.SWEEP_SECONDS, quotas.ANSWER_SECONDS = 1, 2, 0.1, 0.5
app.main()
"""
WITHOUT_SWEEP = QUICK.replace("app.main()", "app.UploadFolder.sweep = lambda self: None; app.main()")
LAUNCH = "import gradio; gradio.Blocks.launch = lambda page, **_: print(page._queue.ANALYTICS_MAX_EVENTS)"
START = {"PYTHONPATH": str(ROOT / "space"), "GRADIO_ROOT_PATH": "/x"}


def test_no_file_is_served(server):
    address, tmp, _ = server
    paths = ("/etc/passwd", f"{tmp}/model/config.json", f"{ROOT}/space/app.py", "app.py", "https://example.com")
    for path in paths:
        for prefix in ("/gradio_api/file=", "/file=", "/gradio_api/file/", "/gradio_api/proxy="):
            assert request(address, f"{prefix}{path}")[0] == 403
    for path in ("/", "/config"):
        status, text = request(address, path)
        assert status == 200 and str(tmp) not in text and str(ROOT) not in text and "/tmp" not in text


def test_only_uploads_are_read_and_errors_stay_in_the_log(server):
    address, tmp, log = server
    events = json.loads(request(address, "/config")[1])["dependencies"]
    classify = next(one for one in events if len(one["inputs"]) == len(one["outputs"]) == 2)
    file = {"meta": {"_type": "gradio.FileData"}}
    for one in (
        file | {"path": f"{tmp}/labelled.csv"}, file | {"path": "/etc/passwd"}, {"path": "/etc/passwd"},
        file | {"path": "http://127.0.0.1:1/x.png"}, "/etc/passwd",
    ):  # fmt: skip
        message = call_event(address, {"data": [[one], 0.5], "fn_index": classify["id"]})
        assert message["success"] is False and message["output"]["error"] is None
        assert str(tmp) not in str(message) and "passwd" not in str(message)
    logged = log.read_text()
    assert "it was not uploaded by a user" in logged and "a web address in place of an upload" in logged
    example = next(one for one in events if len(one["inputs"]) == 1 and one["backend_fn"])
    body = {"fn_index": example["id"], "event_data": {"index": 0}}
    assert '<article class="card"' in str(call_event(address, body | {"data": [0.5]}))
    message = call_event(address, body | {"data": [0.5], "event_data": {}})
    assert message["success"] is False and message["output"]["error"] == SERVER_ERROR
    assert "classify_example failed\nTraceback" in log.read_text()


def upload(address: str, body: bytes) -> bytes:
    """Upload under the proxy's path and return the status line."""
    with raw_post(address, f"/x{UPLOAD}", FORM, f"Content-Length: {len(body)}", body=body) as connection:
        return connection.recv(99).split(b"\r\n")[0]


def cancel_upload(address: str, tmp: object) -> None:
    """Send the start of an upload and close the connection when a file of it is stored."""
    before = stored_names(tmp)
    with raw_post(address, f"/x{UPLOAD}", FORM, "Content-Length: 20000000", body=CANCELLED):
        wait_until(lambda: stored_names(tmp) != before)


def test_requests_behind_a_proxy_with_hostile_variables(tmp_path):
    hostile = {"GRADIO_ALLOWED_PATHS": "/", "GRADIO_VIBE_MODE": "1", "GRADIO_TEMP_DIR": str(tmp_path / "elsewhere")}
    chunked = "Transfer-Encoding: chunked"
    with served(tmp_path, "--model", "m", "--trust_remote_code", code=QUICK, **START, **hostile) as (address, _):
        for prefix in ("/x", ""):
            status, config = request(address, f"{prefix}/config")
            assert status == 200 and json.loads(config)["vibe_mode"] is False
            for path in ("file=/etc/passwd", "deep_link?session_hash=a", "info", "vibe-code/", "upload/", "../config"):
                assert request(address, f"{prefix}/gradio_api/{path}")[0] == 403
            for path, *headers, expected in (
                (UPLOAD, FORM, "Content-Length: 5", chunked, 411), (JOIN, "Content-Length: 5", chunked, 411),
                (JOIN, chunked, 411), (JOIN, "Content-Length: 300000000", 413),
                ("/gradio_api/component_server", FORM, "Content-Length: 5", 403),
            ):  # fmt: skip
                with raw_post(address, prefix + path, *headers) as connection:
                    assert connection.recv(99).startswith(f"HTTP/1.1 {expected} ".encode())

        assert upload(address, REJECTED).startswith(b"HTTP/1.1 400 ") and stored_names(tmp_path)
        cancel_upload(address, tmp_path)
        assert upload(address, COMPLETE).startswith(b"HTTP/1.1 200 ") and "whole.png" in stored_names(tmp_path)
        wait_until(lambda: stored_names(tmp_path) == [])
        with raw_post(address, f"/x{UPLOAD}", FORM, "Content-Length: 20000000", body=CANCELLED):
            wait_until(lambda: stored_names(tmp_path))  # and is there at SIGTERM; `served` checks what it leaves
    assert not (tmp_path / "elsewhere").exists()


def test_answers_that_nobody_reads_are_dropped(tmp_path):
    with served(tmp_path, "--model", "m", "--trust_remote_code", code=QUICK, **START) as (address, _):
        events = json.loads(request(address, "/config")[1])["dependencies"]
        event = next(one for one in events if len(one["inputs"]) == len(one["outputs"]) == 2)
        body = {"data": [[], 0.5], "fn_index": event["id"]}
        for wait, answered in ((0, True), (1, False)):
            assert request(address, JOIN, body | {"session_hash": "left"})[0] == 200
            for _ in range(3):  # the first after the answer of the client that left
                call_event(address, body)
            time.sleep(wait)
            call_event(address, body)
            with urllib.request.urlopen(f"{address}/gradio_api/queue/data?session_hash=left", timeout=30) as stream:
                first = stream.readline().decode()
            assert ('session_not_found":true' in first) != answered, first


def test_gradio_leaves_incomplete_uploads(tmp_path):
    """`delete_cache` deletes complete uploads only. Should this fail, `UploadFolder.sweep` is no longer needed."""
    with served(tmp_path, "--model", "m", "--trust_remote_code", code=WITHOUT_SWEEP, **START) as (address, _):
        assert upload(address, REJECTED).startswith(b"HTTP/1.1 400 ")
        rejected = set(stored_names(tmp_path))
        cancel_upload(address, tmp_path)
        incomplete = set(stored_names(tmp_path))
        assert rejected < incomplete
        assert upload(address, COMPLETE).startswith(b"HTTP/1.1 200 ")
        complete = set(stored_names(tmp_path)) - incomplete
        assert "whole.png" in complete
        wait_until(lambda: "whole.png" not in stored_names(tmp_path))
        assert set(stored_names(tmp_path)) == incomplete | complete - {"whole.png"}  # with its empty folder


def test_gradio_keeps_few_events(tmp_path):
    code = QUICK.replace("app.main()", f"{LAUNCH}\napp.main()")
    command, environment = app_command(
        tmp_path, "--model", "m", "--trust_remote_code", code=code, PYTHONPATH=str(ROOT / "space"),
        GRADIO_ANALYTICS_MAX_EVENTS="7",
    )  # fmt: skip
    done = subprocess.run(command, env=environment, capture_output=True, check=True)
    assert int(done.stdout) == quotas.MAX_ANALYTICS_EVENTS
