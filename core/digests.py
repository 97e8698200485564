"""Digests: canonical JSON and sha256, in full."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

__all__ = ["canonical_json", "digest_of", "file_digest"]


def canonical_json(data: Any) -> str:
    """Return data as JSON with sorted keys and no spaces; equal data gives equal text. NaN raises ValueError."""
    return json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(data: Any) -> str:
    """Return the sha256 (hex) of data's canonical JSON."""
    return hashlib.sha256(canonical_json(data).encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Return the sha256 (hex) of a file's bytes. Raises OSError."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()
