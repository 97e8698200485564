"""Headers of safetensors files in a fixed order: descriptions are written as they fall from a hash table."""

from __future__ import annotations

import json
from pathlib import Path

from drupe.core.errors import PassError

__all__ = ["settle_header"]


def settle_header(path: Path) -> None:
    """Sort the descriptions in a safetensors file's header, in place, so that equal work gives equal files."""
    with path.open("r+b") as handle:
        size = int.from_bytes(handle.read(8), "little")
        header = json.loads(handle.read(size))
        told = header.pop("__metadata__", {})
        settled = {"__metadata__": dict(sorted(told.items())), **header}
        text = json.dumps(settled, separators=(",", ":"), ensure_ascii=False).encode()
        if len(text) > size:
            raise PassError(f"the header of {path.name} takes {len(text)} bytes in order and has room for {size}")
        handle.seek(8)
        handle.write(text.ljust(size))
