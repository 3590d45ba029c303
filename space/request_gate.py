"""HTTP requests: admit those that the page makes, within limits."""

from collections.abc import Callable

import quotas
from rate_limiter import RateLimiter
from unread_answers import UnreadAnswers
from upload_folder import UploadFolder


UPLOAD, JOIN = "/gradio_api/upload", "/gradio_api/queue/join"
POST_PATHS = (UPLOAD, JOIN)
GET_PATHS = (
    "", "/", "/config", "/theme.css", "/manifest.json", "/favicon.ico", "/robots.txt",
    "/gradio_api/startup-events", "/gradio_api/app_id", "/gradio_api/queue/data", "/gradio_api/upload_progress",
)  # fmt: skip
GET_PREFIXES = ("/assets/", "/static/", "/gradio_api/heartbeat/")


class RequestGate:
    """ASGI middleware in front of Gradio's server: admit the page's own requests, refuse all others."""

    def __init__(self, app: Callable, uploads: RateLimiter, folder: UploadFolder, answers: UnreadAnswers) -> None:
        self._app, self._uploads, self._folder, self._answers = app, uploads, folder, answers

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        root, path = scope.get("root_path", ""), scope["path"]
        if f"{path}/".startswith(f"{root}/"):  # as Starlette resolves routes
            path = path[len(root) :]
        if refusal := self._refusal(path, scope):
            status, message = refusal
            headers = [(b"content-type", b"text/plain; charset=utf-8")]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": message.encode()})
            return
        if path == JOIN:
            self._answers.drop()
        await self._app(scope, self._limited(receive, path), send)

    def _refusal(self, path: str, scope: dict) -> tuple[int, str] | None:
        """Return a status and a message, or `None` for an admitted request."""
        if scope["method"] in ("GET", "HEAD") and (path in GET_PATHS or path.startswith(GET_PREFIXES)):
            return None
        if scope["method"] != "POST" or path not in POST_PATHS:
            return 403, "This address is closed: the page does not use it."
        headers = dict(scope["headers"])
        length = headers.get(b"content-length", b"").decode("latin-1")
        if b"transfer-encoding" in headers or not length.isdecimal():
            return 411, "The request needs a Content-Length header, and no Transfer-Encoding."
        if int(length) > _max_bytes(path):
            return 413, f"The request is too large: send at most {_max_bytes(path) // 1_000_000} MB."
        if path != UPLOAD:
            return None
        if not self._folder.has_room(int(length)):
            return 503, "The space for uploads is full: wait ten minutes and try again."
        if not self._uploads.admit(scope["client"][0]):
            return 429, f"At most {quotas.MAX_UPLOADS_PER_MINUTE} uploads per minute: wait a minute and try again."
        return None

    def _limited(self, receive: Callable, path: str) -> Callable:
        """Wrap `receive` so that a request longer than it claimed, or than there is room for, is cut off."""
        left = _max_bytes(path)

        async def receive_limited() -> dict:
            nonlocal left
            message = await receive()
            size = len(message.get("body", b""))
            left -= size
            if path == UPLOAD:
                self._folder.used += size
            cut_off = left < 0 or (path == UPLOAD and not self._folder.has_room())
            return {"type": "http.disconnect"} if cut_off else message

        return receive_limited


def _max_bytes(path: str) -> int:
    if path == UPLOAD:
        return quotas.MAX_IMAGES_PER_REQUEST * quotas.MAX_FILE_BYTES
    return quotas.MAX_REQUEST_BYTES
