"""Fixtures that read workflows against a small set of plugins."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from drupe.core.registry import Registry
from drupe.core.workflow.model import Workflow
from drupe.core.workflow.read import Examination, examine, read_workflow
from tests.core.workflow.plugins import make_registry


@pytest.fixture
def registry() -> Registry:
    return make_registry()


@pytest.fixture
def look(tmp_path: Path, registry: Registry) -> Callable[..., Examination]:
    """Examine a document (or a text) as the file workflow.json (or of another name)."""

    def run(document: Any, name: str = "workflow.json", allow: tuple[str, ...] = ()) -> Examination:
        path = tmp_path / name
        path.write_text(document if isinstance(document, str) else json.dumps(document), encoding="utf-8")
        return examine(path, registry, frozenset(allow))

    return run


@pytest.fixture
def read(tmp_path: Path, registry: Registry) -> Callable[..., Workflow]:
    """Read a document as read_workflow does."""

    def run(document: Mapping[str, Any], allow: tuple[str, ...] = ()) -> Workflow:
        path = tmp_path / "workflow.json"
        path.write_text(json.dumps(document), encoding="utf-8")
        return read_workflow(path, registry, frozenset(allow))

    return run
