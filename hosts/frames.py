"""Frames on a byte stream: a line of JSON, then as many bytes as its "size" says."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import IO, Any

__all__ = ["payload", "read_header", "write_frame"]

_CHUNK = 1024 * 1024


def write_frame(stream: IO[bytes], header: Mapping[str, Any], source: IO[bytes] | None = None) -> None:
    """Write a frame; source gives exactly header["size"] bytes. Raises OSError, EOFError."""
    stream.write(json.dumps(header, ensure_ascii=True).encode() + b"\n")
    left = int(header.get("size", 0)) if source is not None else 0
    while source is not None and left:
        chunk = source.read(min(_CHUNK, left))
        if not chunk:
            raise EOFError("a file is shorter than it was")
        stream.write(chunk)
        left -= len(chunk)
    stream.flush()


def read_header(stream: IO[bytes]) -> dict[str, Any] | None:
    """Return the next frame's header, None at the end. Raises ValueError for what is no frame."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    header = json.loads(line)
    if not isinstance(header, dict):
        raise ValueError(f"not a frame: {line[:200]!r}")
    return header


def payload(stream: IO[bytes], size: int) -> Iterator[bytes]:
    """Yield the bytes that follow a header. Raises EOFError when the stream ends before."""
    left = size
    while left:
        chunk = stream.read(min(_CHUNK, left))
        if not chunk:
            raise EOFError("the connection ended in the middle of a file")
        yield chunk
        left -= len(chunk)
