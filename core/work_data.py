"""What a job's work gets when it asks for data: loaded by the container, split by content, accounted for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from drupe.core.context import JobContext
from drupe.core.data import DataContainer, Sample
from drupe.core.errors import ConfigError
from drupe.core.job import JobData
from drupe.core.model import Model
from drupe.core.registry import Registry
from drupe.core.splits import assign

__all__ = ["WorkflowData"]

_KEY_LENGTH = 16
"""Digits of a content key that a report keeps: enough to compare two parts, short enough to carry along."""
_MOST_KEYS = 100_000


class WorkflowData:
    """The data configs of one job. Loads each once per model, however many metrics ask."""

    def __init__(self, job_data: Mapping[str, JobData], registry: Registry, workflow_dir: Path) -> None:
        self._data = job_data
        self._registry = registry
        self._folder = workflow_dir
        self._loaded: dict[tuple[str, str], tuple[tuple[Sample, ...], Mapping[str, Any]]] = {}

    def samples(self, name: str, part: str | None, model: Model | None, context: JobContext) -> Sequence[Sample]:
        """Return the samples of a part; see JobContext.data.

        `context.report["data"][name]` gets the container's accounting and, by part, how many samples were used, how
        many of their contents are different, and the contents' keys (shortened). Raises ConfigError for an unknown name
        and for a part without samples.
        """
        if name not in self._data:
            known = ", ".join(sorted(self._data)) or "none"
            raise ConfigError(f"data config {name!r} is not part of this job; known here: {known}")
        data = self._data[name]
        samples, accounting = self._load(name, data, model, context)
        if not samples:
            raise ConfigError(f"data config {name!r} ({data.type}) gives no samples{_why(accounting)}")
        overlapping = next((s for s in samples if s.extras.get("overlaps")), None)
        if data.split and overlapping is not None:
            raise ConfigError(
                f"data config {name!r} has a split, but its samples overlap ({overlapping.extras['overlaps']}), so the "
                "parts would share text; use a strategy whose samples don't, or a data config for each part"
            )
        keys = [sample.content_key or sample.id for sample in samples]
        try:
            chosen = [samples[index] for index in assign(keys, data.split, part)]
        except ConfigError as error:
            raise ConfigError(f"data config {name!r}: {error}") from error
        if not chosen:
            raise ConfigError(
                f"data config {name!r}: the part {part!r} of its split {dict(data.split)} is empty "
                f"({len(samples)} samples, {len(set(keys))} different contents)"
            )
        self._report(name, part if data.split else None, accounting, samples, keys, chosen, context)
        return chosen

    def _load(
        self, name: str, data: JobData, model: Model | None, context: JobContext
    ) -> tuple[tuple[Sample, ...], Mapping[str, Any]]:
        memo = (name, model.digest if model is not None else "")
        if memo not in self._loaded:
            container: DataContainer = self._registry.create("drupe_data_containers", data.type)
            config = container.Config.model_validate(dict(data.config))
            own = replace(context, report={}, workflow_dir=context.workflow_dir or self._folder)
            try:
                samples = tuple(container.load(config, model, own))
            except ConfigError as error:
                raise ConfigError(f"data config {name!r}: {error}", error.faults) from error
            _check_ids(name, samples)
            for key, value in own.report.items():
                if key != "accounting":
                    context.report.setdefault(key, value)
            self._loaded[memo] = (samples, own.report.get("accounting", {}))
        return self._loaded[memo]

    def _report(
        self,
        name: str,
        part: str | None,
        accounting: Mapping[str, Any],
        samples: Sequence[Sample],
        keys: Sequence[str],
        chosen: Sequence[Sample],
        context: JobContext,
    ) -> None:
        used = sorted({(sample.content_key or sample.id)[:_KEY_LENGTH] for sample in chosen})
        entry = context.report.setdefault("data", {}).setdefault(name, {"parts": {}})
        entry.update(accounting)
        entry["samples"] = len(samples)
        entry["different"] = len(set(keys))
        entry["parts"][part or "all"] = {
            "samples": len(chosen),
            "different": len(used),
            "content_keys": used if len(used) <= _MOST_KEYS else None,
        }


def _check_ids(name: str, samples: Sequence[Sample]) -> None:
    seen: set[str] = set()
    for sample in samples:
        if sample.id in seen:
            raise ConfigError(f"data config {name!r} gives two samples with the id {sample.id!r}; ids must be unique")
        seen.add(sample.id)


def _why(accounting: Mapping[str, Any]) -> str:
    parts = [f"{accounting['rows']} rows"] if "rows" in accounting else []
    parts += [f"{count} dropped: {why}" for why, count in accounting.get("dropped", {}).items()]
    return f" ({'; '.join(parts)})" if parts else ""
