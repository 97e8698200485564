"""What the driver and the node of a job agree on: where things lie in the datastore, and lines of a job's log.

blobs/ab/ab12…          files by their sha256: inputs, what jobs read besides, and what they made
jobs/NAME/request.json  what to do, written by the driver
jobs/NAME/answer.json   what came of it, written by the node
checkpoints/KEY/        what a step keeps to go on after its node was taken away
facts/DIGEST.json       what is installed in an environment
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["SCHEMA", "blob_name", "event_line", "read_event"]

SCHEMA = 1
_MARK = "##drupe "


def blob_name(digest: str) -> str:
    """Return where a file lies below the root."""
    return f"blobs/{digest[:2]}/{digest}"


def event_line(event: Mapping[str, Any]) -> str:
    """Return an event as a line of the log."""
    return _MARK + json.dumps(event, ensure_ascii=True)


def read_event(line: str) -> Mapping[str, Any] | None:
    """Return the event of a line, or None where it is ordinary text."""
    if not line.startswith(_MARK):
        return None
    try:
        event = json.loads(line[len(_MARK) :])
    except ValueError:
        return None
    return event if isinstance(event, dict) else None
