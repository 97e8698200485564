"""Batches that a user's loader makes whole: every metric looks at all samples in them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from drupe.core.data import Sample
from drupe.core.errors import EvaluationError
from tests.plugins.metrics.sessions import ForwardSession, configured, context, metric, model

X = np.random.default_rng(3).normal(size=(7, 4)).astype(np.float32)
TARGETS = np.array([0, 1, 2, 3, 0, 1, 2])
WHOLE = [
    Sample(str(i), {"x": X[part]}, TARGETS[part], str(i), {"whole_batch": True})
    for i, part in enumerate((slice(4), slice(4, 7)))
]
SINGLE = [Sample(str(i), {"x": x}, int(t), str(i)) for i, (x, t) in enumerate(zip(X, TARGETS, strict=True))]


def doubled(batch: Any) -> Any:
    return {"y": batch["x"] * 2}


def measured(name: str, samples: list[Sample], folder: Path, **config: Any) -> dict[str, tuple[float, ...]]:
    (folder / "s.py").write_text(
        "def hits(predictions, targets):\n    return (predictions.argmax(1) == targets).float()\n"
        "def said(output):\n    return [str(int(row.argmax())) for row in output]\n"
    )
    made = metric(name)
    told = context(folder, allow=frozenset({"user-scripts"}))
    told.reference_session = ForwardSession(lambda batch: {"y": batch["x"] ** 2})
    return dict(made.measure(model(folder), ForwardSession(doubled), samples, configured(made, **config), told))


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("accuracy", {}),
        ("custom", {"user_script": "s.py", "metric_func": "hits"}),
        ("wer", {"user_script": "s.py", "post_processing_func": "said", "method": "forward"}),
        ("discrepancy", {}),
        ("embedding_similarity", {}),
    ],
)
def test_all_samples_count(tmp_path: Path, name: str, config: dict[str, Any]) -> None:
    whole = measured(name, WHOLE, tmp_path, **config)
    single = measured(name, SINGLE, tmp_path, **config)
    assert list(whole) == ["0#0", "0#1", "0#2", "0#3", "1#0", "1#1", "1#2"]
    assert list(whole.values()) == [pytest.approx(row) for row in single.values()]


def test_targets_of_another_number_are_told(tmp_path: Path) -> None:
    odd = [Sample("0", {"x": X[:4]}, TARGETS[:3], "0", {"whole_batch": True})]
    config = {"user_script": "s.py", "metric_func": "hits"}
    with pytest.raises(EvaluationError, match=r"batch 0 has targets of shape \(3,\) and outputs for 4 samples"):
        measured("custom", odd, tmp_path, **config)


def test_throughput_counts_all_samples(tmp_path: Path) -> None:
    rows = measured("throughput", WHOLE[:1], tmp_path, repeat_test_num=2, warmup_num=0)
    assert [row[0] for row in rows.values()] == [4.0, 4.0]
