"""A stand-in for the Hugging Face hub: serves repositories from a folder over the parts of its API that clients use."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """root/models/OWNER/NAME and root/datasets/OWNER/NAME hold files; `main` and `v1` name COMMIT.

    private: repositories that need `Authorization: Bearer TOKEN`. requests: "METHOD path" of all that came in.
    """

    def __init__(self, root: Path, private: tuple[str, ...] = (), token: str = "hf_secret") -> None:
        self.root, self.private, self.token = root, private, token
        self.requests: list[str] = []
        self.url = ""

    def respond(self, handler: BaseHTTPRequestHandler, body: bool) -> None:
        path = unquote(urlsplit(handler.path).path)
        self.requests.append(f"{handler.command} {path}")
        api = re.fullmatch(r"/api/(models|datasets)/([\w.-]+/[\w.-]+)(?:/(revision|tree)/([^/]+)(?:/(.*))?)?", path)
        file = re.fullmatch(r"/(datasets/)?([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)", path)
        if api:
            kind, name, what, revision = api[1], api[2], api[3], api[4] or "main"
        elif file:
            kind, name, what, revision = ("datasets" if file[1] else "models"), file[2], "file", file[3]
        else:
            return self._send(handler, 404, b"{}", body)
        folder = self.root / kind / name
        if name in self.private and handler.headers.get("Authorization") != f"Bearer {self.token}":
            return self._send(handler, 401, b"{}", body, {"X-Error-Code": "GatedRepo"})
        if not folder.is_dir():
            return self._send(handler, 404, b"{}", body, {"X-Error-Code": "RepoNotFound"})
        if revision not in ("main", "v1", COMMIT):
            return self._send(handler, 404, b"{}", body, {"X-Error-Code": "RevisionNotFound"})
        if what == "file":
            assert file is not None
            return self._file(handler, folder / file[4], body)
        files = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())
        if what == "tree":
            tree = [
                {
                    "type": "file",
                    "path": f,
                    "size": (folder / f).stat().st_size,
                    "oid": hashlib.sha1(f.encode()).hexdigest(),
                }
                for f in files
            ]
            return self._send(handler, 200, json.dumps(tree).encode(), body)
        info = {
            "id": name,
            "modelId": name,
            "sha": COMMIT,
            "private": False,
            "tags": [],
            "downloads": 0,
            "likes": 0,
            "siblings": [{"rfilename": f} for f in files],
        }
        return self._send(handler, 200, json.dumps(info).encode(), body)

    def _file(self, handler: BaseHTTPRequestHandler, path: Path, body: bool) -> None:
        if not path.is_file():
            return self._send(handler, 404, b"", body, {"X-Error-Code": "EntryNotFound"})
        data = path.read_bytes()
        headers = {"ETag": f'"{hashlib.sha1(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
        return self._send(handler, 200, data, body, headers)

    @staticmethod
    def _send(
        handler: BaseHTTPRequestHandler, status: int, data: bytes, body: bool, headers: dict[str, str] | None = None
    ) -> None:
        handler.send_response(status)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            handler.send_header(key, value)
        handler.end_headers()
        if body:
            handler.wfile.write(data)


@contextmanager
def serving(hub: Hub) -> Iterator[Hub]:
    """Serve a hub on a free port of this machine while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            hub.respond(self, body=True)

        def do_HEAD(self) -> None:
            hub.respond(self, body=False)

        def log_message(self, format: str, *args: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    hub.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
