"""What lm-evaluation-harness found, as rows: one per document, or one per value where it is no mean over documents.

A row is a flat run of (code, kind, value, weight), four numbers for each value that the document counts for. A code is
the CRC-32 of the value's name ("TASK-METRIC").
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from drupe.core.metrics import SubType

__all__ = ["Found", "aggregated", "found_in", "named_sub_type", "part_of"]

_MEAN, _PERPLEXITY, _BITS, _WHOLE = 0.0, 1.0, 2.0, 3.0
_LOWER = ("perplexity", "word_perplexity", "byte_perplexity", "bits_per_byte", "brier_score", "ter")
_SHARES = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info", "exact_match")


@dataclass(frozen=True)
class Found:
    """rows: document → row. sub_types: value name → what it is, as the harness says. summary: task or group → metric →
    value, and the harness's standard error as NAME_stderr."""

    rows: Mapping[str, tuple[float, ...]]
    sub_types: Mapping[str, SubType]
    summary: Mapping[str, Mapping[str, float]]


def named_sub_type(name: str, higher: bool | None = None) -> SubType:
    """Return what a value is by its name alone: before anything was measured. higher: what the user says."""
    metric = name.partition(",")[0].rpartition("-")[2]
    better = metric not in _LOWER if higher is None else higher
    return SubType("", "higher" if better else "lower", proportion=metric in _SHARES)


def code_of(name: str) -> float:
    """Return the number that stands for a value's name in a row."""
    return float(zlib.crc32(name.encode()))


def part_of(rows: Mapping[str, tuple[float, ...]], name: str) -> dict[str, tuple[float, ...]]:
    """Return the rows that the value `name` rests on, as (value, weight, kind)."""
    code = code_of(name)
    found: dict[str, tuple[float, ...]] = {}
    for key, row in rows.items():
        for at in range(0, len(row), 4):
            if row[at] == code:
                found[key] = (row[at + 2], row[at + 3], row[at + 1])
    return found


def aggregated(rows: Sequence[tuple[float, ...]]) -> float:
    """Return the value of (value, weight, kind) rows; not a number where there are none."""
    if not rows:
        return math.nan
    kind = rows[0][2]
    if kind == _WHOLE:
        return rows[0][0]
    weights = math.fsum(row[1] for row in rows)
    if kind == _MEAN:
        return math.fsum(row[0] * row[1] for row in rows) / weights
    loss = math.fsum(row[0] for row in rows) / weights
    return loss / math.log(2) if kind == _BITS else math.exp(min(loss, 700.0))


def found_in(results: Mapping[str, Any], tasks: Mapping[str, Any], groups: Mapping[str, Any]) -> Found:
    """Turn what `lm_eval.evaluator.evaluate` returned, with its samples, into rows."""
    rows: dict[str, list[float]] = {}
    sub_types: dict[str, SubType] = {}
    summary: dict[str, dict[str, float]] = {}
    better = results["higher_is_better"]
    per_task: dict[tuple[str, str], dict[str, tuple[float, float, float]]] = {}
    for title, values in results["results"].items():
        for metric, filter_, value in _values(values):
            key = f"{metric},{filter_}"
            label = metric if _one_filter(values, metric) else key
            name = f"{title}-{label}"
            stderr = values.get(f"{metric}_stderr,{filter_}")
            told = summary.setdefault(title, {})
            told[label] = value
            if isinstance(stderr, (int, float)):
                told[f"{label}_stderr"] = float(stderr)
            if title in tasks:
                parts = _task_parts(results["samples"][title], tasks[title], metric, filter_)
                parts = {f"{title}/{doc}": part for doc, part in parts.items()}
                per_task[title, key] = parts
            else:
                parts = _group_parts(groups[title], metric, filter_, per_task)
            if not parts or not math.isclose(aggregated(list(parts.values())), value, rel_tol=1e-6, abs_tol=1e-9):
                # Computed over all documents at once (F1, BLEU, …): there is a value, and no evidence per document.
                parts = {name: (value, 1.0, _WHOLE)}
                if title in tasks:
                    per_task[title, key] = {}
            for place, (number, weight, kind) in parts.items():
                rows.setdefault(place, []).extend((code_of(name), kind, number, weight))
            flag = (better.get(title) or {}).get(metric)
            share = all(p[2] == _MEAN and p[0] in (0.0, 1.0) and p[1] == 1.0 for p in parts.values())
            direction = named_sub_type(name).direction if flag is None else ("higher" if flag else "lower")
            sub_types[name] = SubType("", direction, proportion=share)
    return Found({key: tuple(row) for key, row in rows.items()}, sub_types, summary)


def _values(values: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    for key, value in values.items():
        metric, comma, filter_ = key.partition(",")
        if comma and not metric.endswith("_stderr") and isinstance(value, (int, float)):
            yield metric, filter_, float(value)


def _one_filter(values: Mapping[str, Any], metric: str) -> bool:
    return sum(name == metric for name, _, _ in _values(values)) == 1


def _task_parts(
    samples: Sequence[Mapping[str, Any]], task: Any, metric: str, filter_: str
) -> dict[str, tuple[float, float, float]]:
    """Return document → (value, weight, kind) where the task's value is made of its documents' in a known way."""
    how = getattr(task.aggregation().get(metric), "__name__", "mean")
    kind = {"mean": _MEAN, "nanmean": _MEAN, "perplexity": _PERPLEXITY, "weighted_perplexity": _PERPLEXITY}.get(how)
    kind = _BITS if how == "bits_per_byte" else kind
    if kind is None:
        return {}
    found: dict[str, tuple[float, float, float]] = {}
    for sample in samples:
        if sample["filter"] != filter_ or metric not in sample:
            continue
        value = sample[metric]
        number, weight = value if isinstance(value, (tuple, list)) and len(value) == 2 else (value, 1.0)
        try:
            number, weight = float(number), float(weight)
        except (TypeError, ValueError):
            return {}
        if math.isnan(number):
            continue
        # A log-likelihood becomes a loss.
        found[f"{sample['doc_id']:05}"] = (number if kind == _MEAN else -number, weight, kind)
    return found


def _group_parts(
    group: Any, metric: str, filter_: str, per_task: Mapping[tuple[str, str], Mapping[str, tuple[float, float, float]]]
) -> dict[str, tuple[float, float, float]]:
    """Return the rows of a group's tasks, each document weighted as the harness weighs its task."""
    rules = [rule for rule in group.aggregate_metric_list or [] if rule.metric == metric]
    by_size = all(rule.weight_by_size for rule in rules)
    found: dict[str, tuple[float, float, float]] = {}
    for task in group.get_all_tasks():
        parts = per_task.get((task.task_name, f"{metric},{filter_}"))
        if parts is None:
            continue
        if not parts:
            return {}
        for place, (number, _, kind) in parts.items():
            found[place] = (number, 1.0 if by_size else 1.0 / len(parts), kind)
    return found if {part[2] for part in found.values()} == {_MEAN} else {}
