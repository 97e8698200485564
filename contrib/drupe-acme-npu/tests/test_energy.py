"""The metric."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from drupe import EvaluationError, Model, PassContext, Result, Sample, Session

from drupe_acme_npu import plugin
from drupe_acme_npu.energy import Energy

from .conftest import mlp, opened


def test_it_is_what_the_device_counted_per_sample(compiled: Callable[..., Model], tmp_path: Path) -> None:
    model = compiled(mlp(tmp_path / "mlp"), batch_size=4)
    session = opened(model)
    metric = Energy(plugin.drupe_metrics()[0])
    config = metric.Config.model_validate({"repeat_test_num": 3})
    samples = [Sample(str(i), {"x": np.full(16, float(i), np.float32)}) for i in range(6)]
    for given in (samples, ()):
        rows = metric.measure(model, session, given, config, PassContext(tmp_path, tmp_path))
        counted = session.forward({"x": np.zeros((4, 16), np.float32)}).counters["energy"]
        assert len(rows) == 3
        assert metric.aggregate(list(rows.values()), "per_sample", config) == pytest.approx(counted / 4)
        assert metric.aggregate(list(rows.values()), "max", config) == pytest.approx(counted / 4)


def test_a_device_that_counts_none_is_an_error(tmp_path: Path) -> None:
    class Plain(Session):
        def input_shapes(self):  # type: ignore[no-untyped-def]
            return {"x": ((1, 2), "float32")}

        def forward(self, batch):  # type: ignore[no-untyped-def]
            return Result({})

    metric = Energy(plugin.drupe_metrics()[0])
    with pytest.raises(EvaluationError, match="counts no energy"):
        metric.measure(Model("onnx", {"a": "b"}), Plain(), (), metric.Config(), PassContext(tmp_path, tmp_path))
