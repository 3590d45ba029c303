"""A local Hub with the requests that huggingface_hub makes: models, LFS uploads, commits, downloads."""

import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit

from huggingface_hub import ModelCard


TOKEN = "hf_of_the_tests"
USER = "user"


@dataclass
class Repo:
    private: bool
    commits: list[dict[str, bytes]] = field(default_factory=lambda: [{".gitattributes": b"*.safetensors lfs\n"}])

    @property
    def sha(self) -> str:
        return hashlib.sha1(str(len(self.commits)).encode()).hexdigest()

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1]


@dataclass
class Hub:
    """State of the server; `fail` maps a request (a pattern of `METHOD path`) to an error status or `hang`."""

    url: str = ""
    repos: dict[str, Repo] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    fail: dict[str, int | str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)

    def edit(self, repo: str, path: str, content: str) -> None:
        """Commit a file, as its owner does on the website."""
        commits = self.repos[repo].commits
        commits.append(commits[-1] | {path: content.encode()})


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_GET(self) -> None:
        self._answer()

    do_HEAD = do_POST = do_PUT = do_GET

    def log_message(self, *args: object) -> None:
        """Print nothing."""

    def _answer(self) -> None:
        body = self._body()
        path = unquote(urlsplit(self.path).path)
        request = f"{self.command} {path}"
        self.hub.requests.append(request)
        for pattern, how in self.hub.fail.items():
            if re.fullmatch(pattern, request):
                if how == "hang":
                    time.sleep(3)
                    return self.close()
                return self._json({"error": "set by the test"}, how)
        if path.startswith("/blobs/"):  # a signed URL, which needs no token
            return self._blob(path.removeprefix("/blobs/"), body)
        if path == "/api/validate-yaml":
            return self._json({"errors": [], "warnings": self._yaml_problems(json.loads(body))})
        if self.headers.get("authorization") != f"Bearer {TOKEN}":
            return self._json({"error": "Invalid credentials in Authorization header"}, 401)
        if path == "/api/whoami-v2":
            return self._json({"type": "user", "name": USER, "orgs": []})
        if path == "/api/repos/create":
            return self._create(json.loads(body))
        for pattern, method in (
            (r"/api/models/([^/]+/[^/]+)/preupload/.+", self._preupload),
            (r"/api/models/([^/]+/[^/]+)/commit/.+", self._commit),
            (r"/api/models/([^/]+/[^/]+)/branch/.+", lambda *_: self._json({})),  # all branches share one history
            (r"/api/models/([^/]+/[^/]+)(?:/revision/.+)?", self._info),
            (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", self._lfs_batch),
            (r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)", self._resolve),
        ):
            found = re.fullmatch(pattern, path)
            if found:
                repo = self.hub.repos.get(found[1])
                if repo is None:
                    return self._json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
                return method(repo, found, body)
        return self._json({"error": f"unknown request {request}"}, 404)

    def close(self) -> None:
        self.close_connection = True

    def _body(self) -> bytes:
        if self.headers.get("transfer-encoding") == "chunked":
            parts = []
            while size := int(self.rfile.readline(), 16):
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)
        return self.rfile.read(int(self.headers.get("content-length") or 0))

    def _send(self, content: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _json(self, content: object, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self._send(json.dumps(content).encode(), status, {"Content-Type": "application/json"} | (headers or {}))

    def _yaml_problems(self, body: dict[str, str]) -> list[dict[str, str]]:
        card = ModelCard(body["content"])
        return [] if card.data.to_dict() else [{"message": "empty metadata"}]

    def _create(self, body: dict[str, str]) -> None:
        repo = f"{body.get('organization') or USER}/{body['name']}"
        url = {"url": f"{self.hub.url}/{repo}"}
        if repo in self.hub.repos:
            return self._json(url | {"error": "You already created this model repo"}, 409)
        private = body.get("visibility") == "private" or body.get("private") is True
        self.hub.repos[repo] = Repo(private)
        return self._json(url)

    def _info(self, repo: Repo, found: re.Match, _: bytes) -> None:
        siblings = [{"rfilename": name} for name in repo.files]
        self._json({"id": found[1], "sha": repo.sha, "private": repo.private, "siblings": siblings, "tags": []})

    def _preupload(self, repo: Repo, _: re.Match, body: bytes) -> None:
        files = json.loads(body)["files"]
        modes = [
            {
                "path": one["path"],
                "uploadMode": "lfs" if one["path"].endswith((".safetensors", ".png")) else "regular",
                "shouldIgnore": False,
            }
            for one in files
        ]
        self._json({"files": modes})

    def _lfs_batch(self, repo: Repo, _: re.Match, body: bytes) -> None:
        objects = [
            {"oid": one["oid"], "size": one["size"]}
            | (
                {}
                if one["oid"] in self.hub.blobs
                else {"actions": {"upload": {"href": f"{self.hub.url}/blobs/{one['oid']}"}}}
            )
            for one in json.loads(body)["objects"]
        ]
        self._json({"transfer": "basic", "objects": objects})

    def _blob(self, oid: str, body: bytes) -> None:
        if self.command == "PUT":
            if hashlib.sha256(body).hexdigest() != oid:
                return self._json({"error": "the content does not match its digest"}, 400)
            self.hub.blobs[oid] = body
        return self._send(b"" if self.command == "PUT" else self.hub.blobs[oid])

    def _commit(self, repo: Repo, found: re.Match, body: bytes) -> None:
        lines = [json.loads(line) for line in body.splitlines()]
        parent = lines[0]["value"].get("parentCommit")
        if parent not in (None, repo.sha):
            return self._json({"error": "A commit has happened since"}, 412)
        files = dict(repo.files)
        for line in lines[1:]:
            one = line["value"]
            if line["key"] == "file":
                files[one["path"]] = base64.b64decode(one["content"])
            else:
                files[one["path"]] = self.hub.blobs[one["oid"]]
        repo.commits.append(files)
        return self._json(
            {"success": True, "commitOid": repo.sha, "commitUrl": f"{self.hub.url}/{found[1]}/commit/{repo.sha}"}
        )

    def _resolve(self, repo: Repo, found: re.Match, _: bytes) -> None:
        headers = {"X-Repo-Commit": repo.sha}
        content = repo.files.get(found[2])
        if content is None:
            return self._json({"error": "Entry not found"}, 404, headers | {"X-Error-Code": "EntryNotFound"})
        digest = hashlib.sha256(content).hexdigest()
        headers["ETag"] = f'"{digest}"'
        if digest in self.hub.blobs:
            headers |= {"X-Linked-Etag": f'"{digest}"', "X-Linked-Size": str(len(content))}
            storage = self.hub.url.replace("127.0.0.1", "localhost")  # the Hub stores large files on another host
            return self._send(b"", 302, headers | {"Location": f"{storage}/blobs/{digest}"})
        return self._send(content, 200, headers)


@contextmanager
def hub_server() -> Iterator[Hub]:
    """Run a Hub and stop it at the end."""
    hub = Hub()
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
