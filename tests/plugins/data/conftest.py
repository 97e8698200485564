"""What the data tests share: a model with a byte tokenizer, and a way to load a data config."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from drupe.core.data import Sample
from drupe.core.job import JobData
from drupe.core.model import Model
from drupe.core.registry import Plugin, Registry
from drupe.core.work_data import WorkflowData
from drupe.plugins.data import plugin
from tests.support.jobs import job_context

Loaded = tuple[Sequence[Sample], Mapping[str, Any]]


def data_registry() -> Registry:
    registry = Registry()
    registry.add("drupe_data_containers", plugin.drupe_data_containers(), Plugin("data", "", "drupe", "0"))
    return registry


def write_rows(path: Path, rows: Sequence[Mapping[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def tiny_model(tiny_llama_dir: Path) -> Model:
    return Model("hf", {"tokenizer.json": ""}, {"task": "text-generation"}, path=tiny_llama_dir)


@pytest.fixture
def load(tmp_path: Path, tiny_model: Model) -> Callable[..., Loaded]:
    """Load a data config that lies in tmp_path: (samples, what the report says of it)."""

    def load(
        config: Mapping[str, Any],
        *,
        split: Mapping[str, Any] | None = None,
        part: str | None = None,
        model: Model | None = tiny_model,
        type: str = "HuggingfaceContainer",
        allow: Sequence[str] = (),
        seed: int = 0,
    ) -> Loaded:
        data = WorkflowData({"d": JobData(type, config, split or {})}, data_registry(), tmp_path)
        context = job_context(tmp_path, data_source=data, allow=frozenset(allow), seed=seed)
        samples = context.data("d", model=model, part=part)
        return samples, context.report["data"]["d"]

    return load
