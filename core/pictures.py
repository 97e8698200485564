"""Pictures that steps drew of their work (training curves, say): files in the output folder instead of text in JSON."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from drupe.core.executor import StepResult

__all__ = ["FOLDER", "shown", "write_pictures"]

FOLDER = "pictures"
_NAME = re.compile(r"[\w-][\w.-]{0,99}")


def shown(step: StepResult) -> dict[str, Any]:
    """Return a step's report with the place of each picture below the output folder in place of the picture."""
    report = dict(step.report)
    if pictures := _of(step):
        report["pictures"] = {name: f"{FOLDER}/{_folder(step)}/{name}" for name in pictures}
    return report


def write_pictures(output_dir: Path, steps: Sequence[StepResult]) -> None:
    """Write what is not there yet. Raises OSError."""
    for step in steps:
        for name, text in _of(step).items():
            path = output_dir / FOLDER / _folder(step) / name
            if path.exists():
                continue
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_name(f".{name}.{os.getpid()}")
            partial.write_text(text, encoding="utf-8")
            partial.replace(path)


def _of(step: StepResult) -> Mapping[str, str]:
    """Return the pictures of a report that can be files: a plugin's report may hold anything."""
    found = step.report.get("pictures")
    if not isinstance(found, Mapping):
        return {}
    return {n: t for n, t in found.items() if isinstance(t, str) and isinstance(n, str) and _NAME.fullmatch(n)}


def _folder(step: StepResult) -> str:
    return f"{re.sub(r'[^A-Za-z0-9_-]', '_', step.name)}-{step.key[:12]}"
