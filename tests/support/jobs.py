"""Job contexts for tests that call plugins directly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from drupe.core.context import JobContext

__all__ = ["job_context"]


def job_context(folder: Path, **fields: Any) -> JobContext:
    """Return a context whose output and checkpoint folders lie below `folder`; the workflow's folder is `folder`."""
    output, checkpoint = folder / "output", folder / "checkpoint"
    output.mkdir(parents=True, exist_ok=True)
    checkpoint.mkdir(exist_ok=True)
    return JobContext(output, checkpoint, **{"workflow_dir": folder, **fields})
