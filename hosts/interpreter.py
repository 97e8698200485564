"""Another Python interpreter: where it is, and what is installed for it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from drupe.core.digests import digest_of
from drupe.core.errors import HostError

__all__ = ["QUESTION", "find_interpreter", "interpreter_facts"]

_ASK_SECONDS = 60
QUESTION = """
import importlib.metadata as m, json, platform
found = {}
for d in m.distributions():
    if d.name:
        # The first on the path is the one that is imported.
        found.setdefault(d.name.lower().replace("_", "-"), d.version)
print(json.dumps({"python": platform.python_version(), "versions": found}))
"""


def find_interpreter(path: Path) -> Path:
    """Return the interpreter of an environment: its folder, its bin folder, or the interpreter itself.

    Raises HostError when there is none.
    """
    for candidate in (path, path / "python", path / "bin" / "python", path / "Scripts" / "python.exe"):
        if candidate.is_file() and os.access(candidate, os.X_OK):
            return candidate.absolute()
    message = f"{path} holds no Python interpreter; name an environment's folder, its bin folder or its python"
    raise HostError(message, retry=False)


def interpreter_facts(interpreter: Path, state_dir: Path, env: Mapping[str, str]) -> Mapping[str, Any]:
    """Return {"python": its version, "versions": {distribution: version}}; remembered until what is installed changes.

    state_dir: where it is remembered. env: variables that its jobs get. Raises HostError.
    """
    if not interpreter.is_absolute():
        interpreter = Path(shutil.which(interpreter) or interpreter)
    record = state_dir / f"facts-{digest_of(_mark(interpreter, env))[:24]}.json"
    try:
        known: Mapping[str, Any] = json.loads(record.read_text(encoding="utf-8"))
        return known
    except (OSError, ValueError):
        pass  # Not asked yet.
    try:
        done = subprocess.run(
            [interpreter, "-c", QUESTION],
            capture_output=True,
            text=True,
            timeout=_ASK_SECONDS,
            check=True,
            env={**os.environ, **env},
        )
        facts: Mapping[str, Any] = json.loads(done.stdout)
    except (OSError, ValueError, subprocess.SubprocessError) as error:
        raise HostError(f"{interpreter} does not run as a Python interpreter: {error}", retry=False) from error
    state_dir.mkdir(parents=True, exist_ok=True)
    part = record.with_suffix(f".{os.getpid()}")
    part.write_text(json.dumps(facts), encoding="utf-8")
    part.replace(record)
    return facts


def _mark(interpreter: Path, env: Mapping[str, str]) -> list[Any]:
    """What changes when something is installed or removed: the times of the folders that hold distributions."""
    added = [Path(path) for path in env.get("PYTHONPATH", os.environ.get("PYTHONPATH", "")).split(os.pathsep) if path]
    folders = [
        *sorted(interpreter.parent.parent.glob("lib*/python*/site-packages")),
        *sorted(interpreter.parent.parent.glob("lib*/python*/dist-packages")),
        *added,
    ]
    return [[str(path), path.stat().st_mtime_ns if path.exists() else None] for path in (interpreter, *folders)]
