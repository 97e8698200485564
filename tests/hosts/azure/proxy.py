"""A web server that answers for many hosts: clients reach it as their HTTPS proxy, under the names that they know.

So a client needs no setting of its own for tests: HTTPS_PROXY leads its connections here, and the certificate authority
in REQUESTS_CA_BUNDLE and SSL_CERT_FILE vouches for the names.
"""

from __future__ import annotations

import contextlib
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import trustme

__all__ = ["Fault", "Faults", "Proxy", "Reply", "Request"]


@dataclass
class Request:
    """One request. host: whom the client believes to talk to."""

    method: str
    host: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body or b"null")


@dataclass
class Reply:
    """An answer: data is JSON, unless it is bytes; chunks send a large body piece by piece."""

    status: int = 200
    data: Any = None
    headers: dict[str, str] = field(default_factory=dict)
    chunks: Iterator[bytes] | None = None
    length: int = 0


@dataclass
class Fault:
    """What goes wrong with requests whose "METHOD host/path" matches a pattern. times: how often still."""

    pattern: str
    status: int = 0
    headers: Mapping[str, str] = field(default_factory=dict)
    code: str = ""
    message: str = ""
    times: int = 1
    drop: bool = False
    delay: float = 0
    skip: int = 0
    hits: int = 0


class Faults:
    """The faults that are set, and a record of all requests."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self.seen: list[str] = []

    def add(self, pattern: str, status: int = 0, **what: Any) -> Fault:
        """Let requests fail. drop: the connection is closed in the middle of the request. delay: the answer comes
        after that many seconds."""
        fault = Fault(pattern, status, **what)
        with self._lock:
            self._faults.append(fault)
        return fault

    def count(self, pattern: str) -> int:
        """Return how many requests matched."""
        return sum(1 for line in self.seen if re.search(pattern, line))

    def due(self, line: str) -> Fault | None:
        with self._lock:
            self.seen.append(line)
            for fault in self._faults:
                if fault.times > 0 and re.search(fault.pattern, line):
                    if fault.skip > 0:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    fault.hits += 1
                    return fault
        return None


class Proxy:
    """The server. answer: gives the reply to a request."""

    def __init__(self, folder: Path, names: list[str], answer: Callable[[Request], Reply], faults: Faults) -> None:
        self.faults = faults
        self.answer = answer
        self.ca = folder / "ca.pem"
        authority = trustme.CA()
        authority.cert_pem.write_to_path(self.ca)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert(*names).configure_cert(self.context)
        proxy = self

        class Handler(_Handler):
            owner = proxy

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: Any, client_address: Any) -> None:
                pass  # Clients that go away in the middle of a request are part of the tests.

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    @property
    def url(self) -> str:
        """Where the server is, for requests that are to no other host."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to find this server."""
        names = ("HTTPS_PROXY", "https_proxy")
        trust = ("REQUESTS_CA_BUNDLE", "SSL_CERT_FILE", "CURL_CA_BUNDLE")
        return (
            dict.fromkeys(names, self.url) | {name: str(self.ca) for name in trust} | {"NO_PROXY": "", "no_proxy": ""}
        )

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    owner: Proxy
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = 1 << 16
    host = ""

    def do_CONNECT(self) -> None:
        self.send_response_only(200)
        self.end_headers()
        self.wfile.flush()
        self.host = self.path.split(":")[0]
        self.connection = self.owner.context.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb", self.rbufsize)
        self.wfile = self.connection.makefile("wb", self.wbufsize)
        self.close_connection = False
        while not self.close_connection:
            self.handle_one_request()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        host = self.host or "loopback"
        path = unquote(parts.path)
        fault = self.owner.faults.due(f"{self.command} {host}{self.path}")
        size = int(self.headers.get("Content-Length") or 0)
        if fault is not None and fault.drop:
            self.rfile.read(size // 2)
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True
            return
        body = self._chunked() if "chunked" in self.headers.get("Transfer-Encoding", "") else self.rfile.read(size)
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = dict(parse_qsl(parts.query, keep_blank_values=True))
        if fault is not None and fault.delay:
            time.sleep(fault.delay)
        if fault is not None and fault.status:
            reply = Reply(fault.status, error_body(fault.code or "Fault", fault.message), dict(fault.headers))
            reply.headers.setdefault("x-ms-error-code", fault.code or "Fault")
        else:
            reply = self.owner.answer(Request(self.command, host, path, query, headers, body))
        self._send(reply)

    do_PUT = do_POST = do_DELETE = do_PATCH = do_HEAD = do_GET  # noqa: N815

    def finish(self) -> None:
        with contextlib.suppress(OSError):
            super().finish()
        self.connection.close()

    def _chunked(self) -> bytes:
        found = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            found += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return found

    def _send(self, reply: Reply) -> None:
        self.send_response_only(reply.status)
        self.send_header("Date", self.date_time_string(time.time()))
        data = b""
        if reply.chunks is None and reply.data is not None:
            is_bytes = isinstance(reply.data, bytes)
            data = reply.data if is_bytes else json.dumps(reply.data).encode()
            reply.headers.setdefault("Content-Type", "application/octet-stream" if is_bytes else "application/json")
        length = reply.length if reply.chunks is not None or self.command == "HEAD" else len(data)
        if "Content-Length" not in reply.headers:
            reply.headers["Content-Length"] = str(length)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            if reply.chunks is not None:
                for chunk in reply.chunks:
                    self.wfile.write(chunk)
            self.wfile.write(data)
        self.wfile.flush()

    def log_message(self, format: str, *args: Any) -> None:
        pass


def error_body(code: str, message: str) -> dict[str, Any]:
    """Return an error as Azure's services word it."""
    return {"error": {"code": code, "message": message or code}}
