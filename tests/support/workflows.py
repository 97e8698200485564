"""Runs workflows of the toy plugin, in this process or as a user would."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.support.commands import run_command

TOY = Path(__file__).parent / "toy"


def toy_document(folder: Path, **changes: Any) -> dict[str, Any]:
    """Return a workflow on the text "ab": append once or twice, then measure."""
    document: dict[str, Any] = {
        "input_model": {"type": "TextModel", "model_path": "toy://ab"},
        "systems": {"here": {"type": "LocalSystem", "in_process": True}},
        "data_configs": [{"name": "items", "type": "ToyItems", "count": 400}],
        "evaluators": {
            "quality": {
                "metrics": [
                    {
                        "name": "accuracy",
                        "type": "toy_accuracy",
                        "data_config": "items",
                        "sub_types": [{"name": "accuracy_score", "priority": 1}],
                    },
                    {"name": "size", "type": "toy_length", "sub_types": [{"name": "characters", "priority": 2}]},
                ]
            }
        },
        "evaluator": "quality",
        "passes": {"append": {"type": "Append", "text": "!", "times": 3}},
        "host": "here",
        "target": "here",
        "cache_dir": str(folder / "cache"),
        "output_dir": str(folder / "out"),
    }
    document.update(changes)
    return document


def goal(document: dict[str, Any], value: float, confidence: float | None = None, kind: str = "threshold") -> None:
    """Put a goal on the accuracy of a toy workflow."""
    wanted: dict[str, Any] = {"type": kind, "value": value}
    if confidence is not None:
        wanted["confidence"] = confidence
    document["evaluators"]["quality"]["metrics"][0]["sub_types"][0]["goal"] = wanted


def write_workflow(folder: Path, document: Mapping[str, Any]) -> Path:
    """Write a workflow file and return its path."""
    path = folder / "workflow.json"
    path.write_text(json.dumps(document, indent=1))
    return path


def environment(folder: Path) -> dict[str, str]:
    """Return an environment in which the toy plugin is installed and counts its runs."""
    # Locks of its own keep a test from waiting for the timed jobs of another.
    temporary = folder / "tmp"
    temporary.mkdir(exist_ok=True)
    return {
        **os.environ,
        "TMPDIR": str(temporary),
        "DRUPE_LOCKS": str(folder / "locks"),
        "PYTHONPATH": os.pathsep.join([str(TOY), os.environ.get("PYTHONPATH", "")]).rstrip(os.pathsep),
        "DRUPE_HOME": str(folder / "home"),
        "DRUPE_TOY_LOG": str(folder / "toy.log"),
        "DRUPE_TOY_SPACE": str(folder / "space"),
        "DRUPE_TOY_LATEST": str(folder / "latest"),
        "OMP_NUM_THREADS": "1",
    }


def drupe(*arguments: str | Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own, to its end; see `commands`."""
    return run_command([*map(str, arguments)], env=environment(folder), cwd=folder)


def start_drupe(*arguments: str | Path, folder: Path) -> subprocess.Popen[str]:
    """Start the command line as a user would and return at once."""
    return subprocess.Popen(
        [sys.executable, "-m", "drupe", *map(str, arguments)],
        env=environment(folder),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str]) -> str:
    """End a process that did not do what was waited for, and return what it printed."""
    process.kill()
    return process.communicate()[0]


def runs(folder: Path) -> list[str]:
    """Return what the toy plugin noted: a line per piece of work that was really done."""
    log = folder / "toy.log"
    return log.read_text().splitlines() if log.exists() else []


def manifest(folder: Path) -> dict[str, Any]:
    """Return drupe.json of the run in folder/out."""
    data: dict[str, Any] = json.loads((folder / "out" / "drupe.json").read_text())
    return data
