"""Size on disk and peak memory."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from drupe.core.errors import EvaluationError
from drupe.core.runtimes import Session
from tests.plugins.metrics.sessions import ForwardSession, configured, context, metric, model


def test_the_size_is_that_of_all_files(tmp_path: Path) -> None:
    made = metric("size_on_disk")
    subject = model(tmp_path, weights__bin="x" * 1000, config__json="{}")
    rows = made.measure(subject, None, (), configured(made), context(tmp_path))
    assert made.aggregate(list(rows.values()), "bytes", configured(made)) == 1002


@pytest.mark.skipif(sys.platform != "linux", reason="resident memory is read as Linux counts it")
def test_memory_that_opening_takes_is_seen_though_it_is_freed_later(tmp_path: Path) -> None:
    made = metric("peak_memory")
    config = configured(made, repeat_test_num=1, shape_kwargs={"n": 4})
    surroundings = context(tmp_path)

    def opened() -> Session:
        weights = np.ones(8_000_000)

        def function(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            return {"y": np.ones(4_000_000) + weights[0]}

        return ForwardSession(function, {"x": (("n",), "float32")})  # type: ignore[arg-type]

    surroundings.model_sessions = opened
    rows = list(made.measure(model(tmp_path), None, (), config, surroundings).values())
    peak, after = (made.aggregate(rows, name, config) for name in ("peak", "open"))
    assert 60e6 < after < 90e6
    assert after + 25e6 < peak < 200e6


def test_memory_needs_a_job_that_can_open_the_model(tmp_path: Path) -> None:
    made = metric("peak_memory")
    assert made.needs(configured(made)) == ()
    with pytest.raises(EvaluationError, match="opens the model itself"):
        made.measure(model(tmp_path), None, (), configured(made), context(tmp_path))
