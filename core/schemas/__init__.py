"""JSON Schemas of the files that Drupe writes: job.json, result.json, drupe.json."""

from __future__ import annotations

import json
from importlib.resources import files
from typing import Any, Literal

__all__ = ["load_schema"]


def load_schema(name: Literal["job", "result", "manifest"]) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of one of the files."""
    data: dict[str, Any] = json.loads(files(__package__).joinpath(f"{name}.json").read_text(encoding="utf-8"))
    return data
