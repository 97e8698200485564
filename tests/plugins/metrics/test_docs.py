"""docs/metrics.md against the code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from drupe.core.data import Sample
from drupe.core.metrics import Metric
from drupe.core.registry import Registry
from drupe.core.specs import MetricSpec
from tests.plugins.metrics.sessions import ForwardSession, configured, context, metric, model

TEXT = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text(encoding="utf-8")


def block(language: str) -> str:
    found = re.search(rf"^```{language}\n(.*?)^```", TEXT, re.M | re.S)
    assert found is not None
    return found[1]


def table() -> dict[str, str]:
    return dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", TEXT, re.M))


def test_the_table_lists_every_metric_with_its_values() -> None:
    built_in = {e.spec.name for e in Registry.discover().of("drupe_metrics") if e.spec.target.startswith("drupe.")}
    listed = table()
    assert set(listed) == built_in
    for name in built_in - {"custom", "LMEvaluator", "MTEBEvaluator"}:
        assert re.findall(r"`(\w+)`", listed[name]) == list(metric(name).sub_types)


def test_the_example_is_made_of_known_metrics_and_options() -> None:
    for entry in yaml.safe_load(block("yaml"))["evaluators"]["judge"]["metrics"]:
        made = metric(entry["type"])
        configured(made, user_config=entry.get("user_config", {}))
        assert all(sub["name"] in made.sub_types for sub in entry["sub_types"])


def test_the_metric_of_ones_own_measures(tmp_path: Path) -> None:
    names: dict[str, Any] = {}
    exec(block("python"), names)
    made: Metric = names["Loudness"](MetricSpec(name="loudness", target="a:b", needs="forward"))
    session = ForwardSession(lambda batch: {"y": -batch["x"]})
    samples = [Sample("a", {"x": np.array([1.0, 3.0]), "text": "t"})]
    rows = made.measure(model(tmp_path), session, samples, made.Config(), context(tmp_path))
    assert made.aggregate(list(rows.values()), "mean", made.Config()) == pytest.approx(2.0)
