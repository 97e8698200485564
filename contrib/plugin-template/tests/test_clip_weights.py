"""The contract that every pass must keep, and what this one does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from drupe import Model, Pass, PassConfig
from drupe.testing import PassContract, make_context, tiny_onnx_mlp


class TestClipWeights(PassContract):
    name = "ClipWeights"

    @pytest.fixture
    def model(self, tmp_path: Path) -> Model:
        return tiny_onnx_mlp(tmp_path / "model")

    def test_no_weight_is_beyond_the_limit(
        self, subject: Pass, model: Model, config_class: type[PassConfig], tmp_path: Path
    ) -> None:
        config = config_class.model_validate({"limit": 0.25})
        result = subject(model, config, make_context(tmp_path / "run"))
        proto = onnx.load(tmp_path / "run" / "outputs" / result.attributes["onnx_file"])
        largest = max(float(np.abs(numpy_helper.to_array(weight)).max()) for weight in proto.graph.initializer)
        assert largest == 0.25
