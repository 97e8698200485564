"""Blob containers, and the files of a share, kept below a folder: what jobs mount is what clients see."""

from __future__ import annotations

import base64
import hashlib
import shutil
import threading
import uuid
from collections.abc import Iterator
from email.utils import formatdate
from pathlib import Path
from xml.sax.saxutils import escape

from tests.hosts.azure.proxy import Reply, Request

__all__ = ["Storage"]

_CHUNK = 1 << 20


class Storage:
    """Storage accounts. key: what signs requests to every account here. full: no room for another byte."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.full = False
        self.denied = False
        self._blocks = root.parent / "blocks"
        self._blocks.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._hashes: dict[str, tuple[int, int, str]] = {}
        self._metadata: dict[Path, dict[str, str]] = {}

    def path(self, account: str, container: str, name: str = "") -> Path:
        """Return where a blob lies."""
        return self.root / account / container / name

    def answer(self, request: Request, allowed: bool) -> Reply:
        """Answer a request to a blob or file endpoint."""
        if not allowed or self.denied:
            return _error(403, "AuthorizationPermissionMismatch", "not authorized to perform this operation")
        account, kind = request.host.split(".")[:2]
        container, _, name = request.path.lstrip("/").partition("/")
        if kind == "file":
            return self._share(request, account, container, name)
        if request.query.get("restype") == "container" or not name:
            if request.query.get("comp") == "list":
                return self._list(request, account, container)
            return Reply(200, headers={"ETag": '"0x1"', "Last-Modified": formatdate(usegmt=True)})
        return self._blob(request, self.path(account, container, name))

    # Blobs

    def _blob(self, request: Request, path: Path) -> Reply:
        part = request.query.get("comp")
        if request.method == "PUT":
            if self.full:
                return _error(507, "InsufficientAccountPermissions", "the storage account has no room left")
            told = {name: value for name, value in request.headers.items() if name.startswith("x-ms-meta-")}
            if part == "metadata":
                if not path.is_file():
                    return _error(404, "BlobNotFound", "the specified blob does not exist")
                self._metadata[path] = told
                return Reply(200, headers=self._marks(path))
            if part == "block":
                self._block(path, request.query["blockid"]).write_bytes(request.body)
                return Reply(201)
            if request.headers.get("if-none-match") == "*" and path.exists():
                return _error(409, "BlobAlreadyExists", "the specified blob already exists")
            self._write(path, request, part == "blocklist")
            self._metadata[path] = told
            return Reply(201, headers=self._marks(path))
        if not path.is_file():
            return _error(404, "BlobNotFound", "the specified blob does not exist")
        if request.method == "DELETE":
            path.unlink()
            self._metadata.pop(path, None)
            return Reply(202)
        return self._read(request, path, {"x-ms-blob-type": "BlockBlob", **self._metadata.get(path, {})})

    def _block(self, path: Path, number: str) -> Path:
        return self._blocks / hashlib.sha256(f"{path} {number}".encode()).hexdigest()

    def _write(self, path: Path, request: Request, commit: bool) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        part = self._blocks / uuid.uuid4().hex
        with part.open("wb") as sink:
            if not commit:
                sink.write(request.body)
            for number in _between(request.body, b"Latest") if commit else ():
                block = self._block(path, number)
                with block.open("rb") as source:
                    shutil.copyfileobj(source, sink, _CHUNK)
                block.unlink()
        part.replace(path)

    def _read(self, request: Request, path: Path, more: dict[str, str]) -> Reply:
        size = path.stat().st_size
        headers = self._marks(path) | more | {"Accept-Ranges": "bytes", "Content-Type": "application/octet-stream"}
        asked = request.headers.get("x-ms-range") or request.headers.get("range")
        start, end, status = 0, size - 1, 200
        if asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            start, end, status = int(first), min(int(last or size - 1), size - 1), 206
            if start >= size:
                return _error(416, "InvalidRange", "the range specified is invalid")
            headers["Content-Range"] = f"bytes {start}-{end}/{size}"
        length = end - start + 1
        return Reply(status, headers=headers, chunks=_chunks(path, start, length), length=length)

    def _marks(self, path: Path) -> dict[str, str]:
        found = path.stat()
        return {"ETag": f'"0x{found.st_mtime_ns:X}"', "Last-Modified": formatdate(found.st_mtime, usegmt=True)}

    def _list(self, request: Request, account: str, container: str) -> Reply:
        root, prefix = self.path(account, container), request.query.get("prefix", "")
        divider = request.query.get("delimiter", "")
        items, folders = [], []
        for path in sorted(root.rglob("*")) if root.is_dir() else ():
            name = path.relative_to(root).as_posix()
            if not path.is_file() or not name.startswith(prefix):
                continue
            rest = name[len(prefix) :]
            if divider and divider in rest:
                folder = prefix + rest.split(divider)[0] + divider
                if folder not in folders:
                    folders.append(folder)
                    items.append(f"<BlobPrefix><Name>{escape(folder)}</Name></BlobPrefix>")
                continue
            marks = self._marks(path)
            items.append(
                f"<Blob><Name>{escape(name)}</Name><Properties><Last-Modified>{marks['Last-Modified']}</Last-Modified>"
                f"<Etag>{escape(marks['ETag'])}</Etag><Content-Length>{path.stat().st_size}</Content-Length>"
                f"<Content-Type>application/octet-stream</Content-Type><Content-MD5>{self._md5(path)}</Content-MD5>"
                "<BlobType>BlockBlob</BlobType></Properties></Blob>"
            )
        text = f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults ContainerName="{container}"><Blobs>'
        text += "".join(items) + "</Blobs><NextMarker/></EnumerationResults>"
        return Reply(200, text.encode(), {"Content-Type": "application/xml"})

    def _md5(self, path: Path) -> str:
        stat = path.stat()
        known = self._hashes.get(str(path))
        if known is None or known[:2] != (stat.st_mtime_ns, stat.st_size):
            digest = base64.b64encode(hashlib.md5(path.read_bytes()).digest()).decode()
            known = self._hashes[str(path)] = (stat.st_mtime_ns, stat.st_size, digest)
        return known[2]

    # File shares

    def _share(self, request: Request, account: str, share: str, name: str) -> Reply:
        path = self.path(account, share, name)
        if request.query.get("comp") == "list":
            if not path.is_dir():
                return _error(404, "ResourceNotFound", "the specified directory does not exist")
            items = ""
            for item in sorted(path.iterdir()):
                kind = "Directory" if item.is_dir() else "File"
                mark = self._marks(item)
                more = f"<Content-Length>{item.stat().st_size}</Content-Length>" if item.is_file() else ""
                more += f"<Last-Modified>{mark['Last-Modified']}</Last-Modified><Etag>{escape(mark['ETag'])}</Etag>"
                items += f"<{kind}><Name>{escape(item.name)}</Name><Properties>{more}</Properties></{kind}>"
            text = f'<?xml version="1.0" encoding="utf-8"?><EnumerationResults ShareName="{share}"><Entries>{items}'
            text += "</Entries><NextMarker/></EnumerationResults>"
            return Reply(200, text.encode(), {"Content-Type": "application/xml"})
        if request.query.get("restype") == "directory":
            return Reply(200, headers=self._marks(path)) if path.is_dir() else _error(404, "ResourceNotFound", "no")
        if not path.is_file():
            return _error(404, "ResourceNotFound", "the specified resource does not exist")
        return self._read(request, path, {"x-ms-type": "File"})


def _between(body: bytes, tag: bytes) -> Iterator[str]:
    for piece in body.split(b"<" + tag + b">")[1:]:
        yield piece.split(b"</")[0].decode()


def _chunks(path: Path, start: int, length: int) -> Iterator[bytes]:
    with path.open("rb") as handle:
        handle.seek(start)
        while length > 0 and (data := handle.read(min(_CHUNK, length))):
            length -= len(data)
            yield data


def _error(status: int, code: str, message: str) -> Reply:
    text = f'<?xml version="1.0" encoding="utf-8"?><Error><Code>{code}</Code><Message>{message}</Message></Error>'
    return Reply(status, text.encode(), {"x-ms-error-code": code, "Content-Type": "application/xml"})
